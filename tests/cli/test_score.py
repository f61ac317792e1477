"""`bayesrm score`."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_pairs, tiny_steps, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.resumable import CHUNK
from bayesrm_fast.cli.score import score
from bayesrm_fast.text.files import read_rows, write_rows

COMMAND = Path(sys.executable).with_name("bayesrm")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 4)


def rows_of(count, responses=2):
    return [
        {"prompt": words(3, i), "responses": [words(2 + j, 7 * i + j) for j in range(responses)]} for i in range(count)
    ]


def test_every_response_is_scored(model_folder, candidates_file, tmp_path, summary):
    told = summary("score", model_folder, candidates_file, tmp_path / "scores.parquet")
    assert told == {"output": str(tmp_path / "scores.parquet"), "rows": 5, "rows_with_cut_text": 0}
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    for row, given in zip(read_rows(tmp_path / "scores.parquet"), read_rows(candidates_file), strict=True):
        assert row["prompt"] == given["prompt"]
        expected = rm.score([given["prompt"]] * 3, given["responses"])
        assert row["mean"] == pytest.approx(expected.mean.tolist(), rel=1e-4, abs=1e-5)
        assert row["std"] == pytest.approx(expected.std.tolist(), rel=1e-4)
        assert row["truncated"] == [False] * 3


def test_responses_are_scored_relative_to_their_prompt(
    model_folder, candidates_file, pairs_file, tmp_path, bayesrm, refused
):
    bayesrm("score", model_folder, candidates_file, tmp_path / "scores.jsonl", "--relative")
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    for row, given in zip(read_rows(tmp_path / "scores.jsonl"), read_rows(candidates_file), strict=True):
        scores = rm.score([given["prompt"]] * 3, given["responses"], relative_to="prompt")
        assert row["std"] == pytest.approx(scores.std.tolist(), rel=1e-4)
        assert row["mean"] == pytest.approx(scores.mean.tolist(), rel=1e-4, abs=1e-5)
        assert row["baseline"] == pytest.approx(scores.baseline.tolist(), rel=1e-4, abs=1e-5)
    message = refused("score", model_folder, pairs_file, tmp_path / "differences.jsonl", "--relative")
    assert "pairs are scored as differences already" in message


def test_pairs_of_other_layouts_are_scored_each_in_its_row(model_folder, tmp_path, bayesrm):
    asked = {"role": "user", "content": "above all"}
    whole = {side: [asked, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    rows = [
        whole,
        {"prompt": "above all", **whole, "score_chosen": 8.0},
        {"prompt": "above all", "chosen": "act", "rejected": "act"},
        {"chosen": "above act", "rejected": "above all"},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    bayesrm("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "scores.jsonl")
    found = read_rows(tmp_path / "scores.jsonl")
    assert [row["prompt"] for row in found] == [[asked], [asked], "above all", None]
    assert found[0]["mean"] == pytest.approx(found[1]["mean"], rel=1e-4)
    assert found[2]["mean"] == 0.0


def test_pairs_are_scored_as_differences(model_folder, pairs_file, tmp_path, bayesrm):
    bayesrm("score", model_folder, pairs_file, tmp_path / "scores.jsonl")
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    expected = rm.score_pairs(tiny_pairs())
    rows = read_rows(tmp_path / "scores.jsonl")
    assert [row["mean"] for row in rows] == pytest.approx(expected.mean.tolist(), rel=1e-4, abs=1e-5)
    assert [row["probability"] for row in rows] == pytest.approx(expected.probability.tolist(), rel=1e-4)


def test_a_killed_run_that_is_resumed_equals_an_unbroken_one(model_folder, tmp_path, bayesrm):
    rows = [{"prompt": words(3, i), "responses": [words(2 + j, 7 * i + j) for j in range(4)]} for i in range(200)]
    write_rows(tmp_path / "many.jsonl", rows)
    partial = tmp_path / "resumed.jsonl.partial"
    running = subprocess.Popen(
        [COMMAND, "score", model_folder, tmp_path / "many.jsonl", tmp_path / "resumed.jsonl"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 64) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "resumed.jsonl").exists()
    done = partial.read_bytes().count(b"\n") - 1
    assert 64 <= done < 200
    bayesrm("score", model_folder, tmp_path / "many.jsonl", tmp_path / "resumed.jsonl", "--resume")
    bayesrm("score", model_folder, tmp_path / "many.jsonl", tmp_path / "unbroken.jsonl")
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()
    assert not partial.exists()


def test_a_failure_in_the_middle_leaves_what_was_scored_readable(model_folder, tmp_path, monkeypatch):
    rows = [{"prompt": words(3, i), "responses": [words(4, i)]} for i in range(CHUNK + 6)]
    write_rows(tmp_path / "many.jsonl", rows)
    score_tokenized, calls = BayesianRewardModel.score_tokenized, []

    def fails(self, segments, **options):
        calls.append(segments)
        if len(calls) == 2:
            raise InputError("the model's reward of row 3 is NaN or infinite")
        return score_tokenized(self, segments, **options)

    monkeypatch.setattr(BayesianRewardModel, "score_tokenized", fails)
    with pytest.raises(InputError, match="NaN"):
        score(model_folder, tmp_path / "many.jsonl", tmp_path / "scores.jsonl")
    partial = [json.loads(line) for line in (tmp_path / "scores.jsonl.partial").read_text().splitlines()]
    assert [row["result"]["prompt"] for row in partial[1:]] == [row["prompt"] for row in rows[:CHUNK]]
    score(model_folder, tmp_path / "many.jsonl", tmp_path / "scores.jsonl", resume=True)
    assert len(read_rows(tmp_path / "scores.jsonl")) == len(rows)


@pytest.mark.parametrize("number", [3, 10])
def test_a_reward_that_is_nan_is_named_by_its_file_row_and_response(
    model_folder, tmp_path, number, refused, nan_at, small_chunks
):
    """In a chunk after the first, too."""
    rows = [{"prompt": "able", "responses": ["act", "all " * i]} for i in range(1, 13)]
    rows[number - 1]["responses"][1] = "art"
    write_rows(tmp_path / "rows.jsonl", rows)
    pairs = [{"prompt": "able", "chosen": row["responses"][0], "rejected": row["responses"][1]} for row in rows]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    nan_at("art")
    line = refused("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert line == f"bayesrm: {tmp_path}/rows.jsonl, row {number}: responses[1]: the model's reward is NaN or infinite"
    line = refused("score", model_folder, tmp_path / "pairs.jsonl", tmp_path / "out.jsonl")
    assert line == f"bayesrm: {tmp_path}/pairs.jsonl, row {number}: the model's reward is NaN or infinite"
    done = (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n") - 1
    assert done == (number - 1) // 4 * 4


@pytest.fixture
def interrupted(model_folder, tmp_path, monkeypatch, small_chunks):
    """A run over ten rows that has ended after its first chunk."""
    write_rows(tmp_path / "rows.jsonl", rows_of(10))
    tokenized, calls = BayesianRewardModel.score_tokenized, []

    def fails(self, rows, **options):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tokenized(self, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BayesianRewardModel, "score_tokenized", fails)
        with pytest.raises(KeyboardInterrupt):
            score(model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    partial = tmp_path / "out.jsonl.partial"
    assert partial.read_bytes().count(b"\n") == 1 + 4
    return partial


def refit(model_folder, folder, **options):
    """A model whose posterior has the same λ."""
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    precision = rm.posterior.prior_precision
    rm.fit(**options, structure="ekfac", rank=4, prior_precision=precision).save_pretrained(folder)
    return folder


def test_another_posterior_of_the_same_prior_precision_is_not_continued(
    model_folder, tmp_path, interrupted, refused, summary
):
    before = interrupted.read_bytes()
    other = refit(model_folder, tmp_path / "other", pairs=tiny_pairs(seed=50))
    arguments = (tmp_path / "rows.jsonl", tmp_path / "out.jsonl", "--resume")
    assert "out.jsonl.partial is of another run (what differs: posterior): remove it" in refused(
        "score", other, *arguments
    )
    assert interrupted.read_bytes() == before
    same = refit(model_folder, tmp_path / "same", pairs=tiny_pairs())  # fitted again, to the same numbers
    assert summary("score", same, *arguments)["rows"] == 10
    summary("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "unbroken.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()


def test_another_input_or_another_budget_is_not_continued(model_folder, tmp_path, interrupted, refused, summary):
    write_rows(tmp_path / "rows.jsonl", [*rows_of(9), *rows_of(1)])
    arguments = (model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert "(what differs: input)" in refused("score", *arguments, "--resume")
    write_rows(tmp_path / "rows.jsonl", rows_of(10))
    line = refused("score", *arguments, "--resume", "--max-batch-tokens", "99")
    assert "(what differs: max_batch_tokens)" in line
    moved = shutil.copy(tmp_path / "rows.jsonl", tmp_path / "moved.jsonl")  # the same rows
    assert summary("score", model_folder, moved, tmp_path / "out.jsonl", "--resume")["rows"] == 10


@pytest.mark.parametrize("command", ["score", "best-of-n", "bonbon"])
@pytest.mark.parametrize("change", ["grows", "shrinks", "other rows"])
def test_an_input_that_changes_meanwhile_becomes_no_output(
    model_folder, tmp_path, monkeypatch, refused, summary, command, change
):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    write_rows(path, rows_of(6))
    load = BayesianRewardModel.from_pretrained

    def meanwhile(*args, **options):
        write_rows(path, {"grows": rows_of(7), "shrinks": rows_of(5), "other rows": rows_of(7)[1:]}[change])
        return load(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BayesianRewardModel, "from_pretrained", meanwhile)
        line = refused(command, model_folder, path, out)
    assert "rows.jsonl has changed while it was read: nothing is written, run again" in line
    assert not out.exists()
    assert f"{out}.partial is of another run (what differs: input)" in refused(
        command, model_folder, path, out, "--resume"
    )
    write_rows(path, rows_of(6))  # as it was: what was scored of other rows is not taken
    summary(command, model_folder, path, out, "--resume")
    summary(command, model_folder, path, tmp_path / "unbroken.jsonl")
    assert out.read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()


@pytest.mark.parametrize("command", ["score", "best-of-n", "bonbon"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    candidates_file, tmp_path, command, refused, no_model
):
    """The model does not exist, and is not even looked for."""
    line = refused(command, tmp_path / "no model", candidates_file, tmp_path / "nothing" / "out.jsonl")
    assert "cannot be written" in line
    assert "must end in" in refused(command, tmp_path / "no model", candidates_file, tmp_path / "out.csv")


def test_bad_rows_are_told_before_the_model_is_loaded(model_folder, tmp_path, refused, no_model):
    rows = [*rows_of(100), {"prompt": "a", "responses": ["b", None]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    line = refused("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert "rows.jsonl, row 101: responses[1] must be" in line


def test_broken_models_are_refused_and_nothing_is_written(model_folder, candidates_file, tmp_path, refused):
    assert "is not a folder" in refused("score", tmp_path / "nothing", candidates_file, tmp_path / "out.jsonl")
    copied = shutil.copytree(model_folder, tmp_path / "copy")
    tensors = copied / "posterior.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    assert "posterior.safetensors is truncated" in refused("score", copied, candidates_file, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_an_adapter_without_a_posterior_is_refused(adapter_folder, candidates_file, tmp_path, refused):
    assert "there is no posterior" in refused("score", adapter_folder, candidates_file, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_every_step_is_scored(step_adapter_folder, model_folder, tmp_path, summary, refused):
    rows, out = [{**row, "labels": None} for row in tiny_steps(5)], tmp_path / "scores.jsonl"
    write_rows(tmp_path / "steps.jsonl", rows)
    rm = BayesianRewardModel.from_pretrained(step_adapter_folder, device="cpu").fit(tiny_steps(4), rank=8)
    rm.save_pretrained(tmp_path / "rm")
    told = summary("score", tmp_path / "rm", tmp_path / "steps.jsonl", out)
    assert told == {"output": str(out), "rows": 5, "rows_with_cut_text": 0}
    for found, row, expected in zip(read_rows(out), rows, rm.score_steps(rows), strict=True):
        assert found["prompt"] == row["prompt"]
        for name in ("mean", "variance", "std", "probability"):
            assert found[name] == pytest.approx(getattr(expected, name).tolist(), rel=1e-4, abs=1e-5)
        assert found["first_error"] == pytest.approx(expected.first_error().tolist(), rel=1e-4, abs=1e-6)
        assert found["truncated"] is False
        for by, one in found["aggregates"].items():
            assert one == pytest.approx(vars(expected.aggregate(by)), rel=1e-4, abs=1e-5)
        assert list(found["aggregates"]) == ["mean", "last", "min", "product"]
    message = refused("score", tmp_path / "rm", tmp_path / "steps.jsonl", tmp_path / "other.jsonl", "--relative")
    assert "relative is for rows of responses" in message
    message = refused("score", model_folder, tmp_path / "steps.jsonl", tmp_path / "other.jsonl")
    assert "scores whole responses" in message
