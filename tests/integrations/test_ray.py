"""Reward models on a Ray cluster."""

import datetime
import socket
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from ray_cluster import kill, process_of
from tiny import words

from bayesrm_fast import InputError
from bayesrm_fast.serve.client import Client

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
on_ray = pytest.importorskip("bayesrm_fast.integrations.ray")

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

COUNT = 20
PROMPTS = [words(3, i) for i in range(COUNT)]
RESPONSES = [[words(2 + j, 7 * i + j) for j in range(2 + i % 3)] for i in range(COUNT)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rule": "no such rule"}, "no such rule"),
        ({"k": 1.0}, "there is no rule"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"concurrency": (3, 2)}, "concurrency must be a whole number of at least 3"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(given, sentence):
    with pytest.raises(InputError, match=sentence):
        on_ray.ScoringConfig("my-rm", **given)


@pytest.mark.parametrize("path", ["ray-serve.yaml", "ray-service.yaml"])
def test_the_files_for_ray_serve_ask_for_what_there_is(path):
    from ray.serve.schema import ServeDeploySchema

    held = yaml.safe_load((DEPLOY / path).read_text())
    if held.get("kind") == "RayService":
        groups = held["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        (container,) = groups[0]["template"]["spec"]["containers"]
        held = yaml.safe_load(held["spec"]["serveConfigV2"])
        takes = held["applications"][0]["deployments"][0]["ray_actor_options"]["num_gpus"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == str(takes)
    (told,) = ServeDeploySchema.model_validate(held).applications
    assert told.import_path == f"{on_ray.application.__module__}:{on_ray.application.__name__}"
    arguments = on_ray.ServedArguments.model_validate(told.args)
    assert [one.name for one in told.deployments] == [on_ray.deployment(arguments.models)._bound_deployment.name]


def test_a_deployment_needs_a_model_and_replicas():
    with pytest.raises(InputError, match="no model"):
        on_ray.deployment({})
    with pytest.raises(InputError, match="replicas must be"):
        on_ray.deployment({"rm": "my-rm"}, replicas=(2, 1))


def test_a_core_is_left_to_reading_and_writing(ray_cluster):
    assert on_ray.WorkerRoom.of_cluster() == on_ray.WorkerRoom("CPU", 4, 3)


def test_rows_of_a_dataset_get_the_scores_of_the_model_and_keep_their_columns(ray_cluster, rm, model_folder, tmp_path):
    when = [datetime.datetime(2026, 1, 1 + i) for i in range(COUNT)]
    table = pyarrow.table({"question": PROMPTS, "answers": RESPONSES, "when": when, "id": range(COUNT)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    score = on_ray.build_processor(
        on_ray.ScoringConfig(model_folder, relative=True, batch_size=8, concurrency=1),
        preprocess=lambda row: {"prompt": row["question"], "responses": row["answers"], **row},
        postprocess=lambda row: row | {"widest": max(row["std"])},
    )
    score(ray.data.read_parquet(str(tmp_path / "rows.parquet"))).write_parquet(str(tmp_path / "out"))
    found = pyarrow.parquet.read_table(tmp_path / "out").sort_by("id")
    assert found.column("when").cast(pyarrow.timestamp("us")).to_pylist() == when
    assert found.column("answers").to_pylist() == RESPONSES
    for prompt, responses, row in zip(PROMPTS, RESPONSES, found.to_pylist(), strict=True):
        expected = rm.score([prompt] * len(responses), responses, relative_to="prompt")
        for name in ("mean", "std", "baseline"):
            values = getattr(expected, name).tolist()
            assert row[name] == pytest.approx(values, rel=1e-3, abs=1e-4)
        assert row["widest"] == max(row["std"])


def test_the_best_response_of_every_row_is_that_of_the_model(ray_cluster, rm, model_folder):
    rows = [{"prompt": p, "responses": r, "id": i} for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]
    choose = on_ray.build_processor(on_ray.ScoringConfig(model_folder, rule="std", k=0.5, concurrency=1))
    found = sorted(choose(ray.data.from_items(rows)).take_all(), key=lambda row: row["id"])
    for row, best in zip(found, rm.best_of_each(rows, "std", 0.5), strict=True):
        assert (row["index"], row["response"]) == (best.index, best.response)
        assert row["std"] == pytest.approx(float(best.variance[best.index].sqrt()), rel=1e-3)


def test_a_row_that_cannot_be_scored_is_told_by_the_rows_beside_it(ray_cluster, model_folder):
    rows = [
        {"prompt": p, "responses": r, "id": f"row {i}"} for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))
    ]
    rows[13]["responses"] = []
    score = on_ray.build_processor(on_ray.ScoringConfig(model_folder, batch_size=8, concurrency=1))
    with pytest.raises(ray.exceptions.RayTaskError, match=r"'id': 'row 8'.*, row 6: responses is empty"):
        score(ray.data.from_items(rows, override_num_blocks=1)).materialize()


def test_blocks_without_rows_are_no_trouble(ray_cluster, model_folder):
    score = on_ray.build_processor(on_ray.ScoringConfig(model_folder, concurrency=1))
    rows = [{"prompt": p, "responses": r, "id": i} for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]
    few = ray.data.from_items(rows, override_num_blocks=5).filter(lambda row: row["id"] >= COUNT // 2)
    assert sorted(row["id"] for row in score(few).take_all()) == list(range(COUNT // 2, COUNT))


def test_a_killed_replica_costs_no_request_of_a_client_that_asks_again(ray_cluster, rm, model_folder):
    """One of two, with requests in flight."""
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(on_ray.deployment({"rm": model_folder}, replicas=2), logging_config=None)
        client = Client(f"http://127.0.0.1:{port}", patience=120)
        assert client.models() == ["rm"]

        def ask(scorer, i):
            return scorer.score([PROMPTS[i]] * 100, RESPONSES[i][:2] * 50).mean.tolist()

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, client, i) for i in range(COUNT)]
            next(as_completed(asked))
            kill(process_of("ServeReplica:"))
            found = [one.result() for one in asked]
        for i, means in enumerate(found):
            assert means == pytest.approx(ask(rm, i), rel=1e-3, abs=1e-4)
    finally:
        serve.shutdown()
