"""`bayesrm select-pairs`."""

import json

import pytest
from tiny import tiny_pairs

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.text.files import read_rows, write_rows

POOL = [pair | {"source": f"web {i}"} for i, pair in enumerate(tiny_pairs(12, seed=300))]


@pytest.fixture
def pool_file(tmp_path):
    write_rows(tmp_path / "pool.jsonl", POOL)
    return tmp_path / "pool.jsonl"


@pytest.mark.parametrize("strategy", ["information", "uncertainty", "random"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_come_with_their_rank_as_the_library_gives_them(
    model_folder, pool_file, tmp_path, summary, strategy, ending
):
    out = tmp_path / f"out.{ending}"
    told = summary("select-pairs", model_folder, pool_file, out, "--count", 5, "--strategy", strategy, "--seed", 3)
    assert told == {"output": str(out), "pool": 12, "pairs": 5, "left_out": 0.0}
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    expected = rm.select_pairs(POOL, 5, strategy=strategy, seed=3).pairs
    rows = read_rows(out)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    for row, pair in zip(rows, expected, strict=True):
        assert {name: row[name] for name in POOL[0]} == POOL[pair.row]
        for name in ("information", "probability", "std"):
            assert row[name] == pytest.approx(getattr(pair, name), rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["pool.jsonl", out.name])


def test_a_pair_of_a_row_of_responses_is_named(model_folder, candidates_file, tmp_path, summary):
    out = tmp_path / "out.jsonl"
    told = summary("select-pairs", model_folder, candidates_file, out, "--count", 4, "--shortlist", 9)
    assert told["pool"] == 15
    assert told["left_out"] > 0
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    given = read_rows(candidates_file)
    for row, pair in zip(read_rows(out), rm.select_pairs(given, 4, shortlist=9).pairs, strict=True):
        assert row["responses"] == given[pair.row]["responses"]
        assert row["pair"] == [pair.first, pair.second]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "13"], "count is 13, and the pool has 12 pair(s)"),
        (["--count", "0"], "count must be a whole number of at least 1, not 0"),
        (
            ["--count", "2", "--strategy", "best"],
            "strategy must be one of information, uncertainty, random, not 'best'",
        ),
        (["--count", "3", "--shortlist", "2"], "shortlist must be a whole number of at least the count, 3, not 2"),
    ],
)
def test_what_cannot_be_asked_for_is_told_before_the_model_is_loaded(
    pool_file, tmp_path, refused, no_model, options, message
):
    line = refused("select-pairs", tmp_path / "no model", pool_file, tmp_path / "out.jsonl", *options)
    assert line == f"bayesrm: {message}"
    assert list(tmp_path.iterdir()) == [pool_file]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": None}, "row 13: rejected must be"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "rank": 4}, "row 13 has a column 'rank' already: rename it"),
    ],
)
def test_bad_rows_are_told_before_the_model_is_loaded(tmp_path, refused, no_model, row, message):
    write_rows(tmp_path / "pool.jsonl", [*POOL, row])
    line = refused("select-pairs", tmp_path / "no model", tmp_path / "pool.jsonl", tmp_path / "out.jsonl", "--count", 2)
    assert f"pool.jsonl, {message}" in line


def test_a_reward_that_is_nan_is_named_by_its_file_and_row(model_folder, tmp_path, refused, nan_at):
    pool = [{"prompt": "able", "chosen": "act", "rejected": "all " * i} for i in range(1, 6)]
    pool[3]["chosen"] = "art"
    write_rows(tmp_path / "pool.jsonl", pool)
    nan_at("art")
    line = refused("select-pairs", model_folder, tmp_path / "pool.jsonl", tmp_path / "out.jsonl", "--count", 2)
    assert line == f"bayesrm: {tmp_path}/pool.jsonl, row 4: chosen: the model's reward is NaN or infinite"
    assert not (tmp_path / "out.jsonl").exists()


def test_an_input_that_changes_meanwhile_becomes_no_output(model_folder, pool_file, tmp_path, monkeypatch, refused):
    load = BayesianRewardModel.from_pretrained

    def meanwhile(*args, **options):
        write_rows(pool_file, [{**row, "source": "another"} for row in POOL])
        return load(*args, **options)

    monkeypatch.setattr(BayesianRewardModel, "from_pretrained", meanwhile)
    line = refused("select-pairs", model_folder, pool_file, tmp_path / "out.jsonl", "--count", 2)
    assert "pool.jsonl has changed while it was read" in line
    assert not (tmp_path / "out.jsonl").exists()


def test_the_input_is_not_overwritten_and_a_model_without_a_posterior_is_refused(
    adapter_folder, pool_file, tmp_path, refused
):
    assert "is the input" in refused("select-pairs", adapter_folder, pool_file, pool_file, "--count", 2)
    line = refused("select-pairs", adapter_folder, pool_file, tmp_path / "out.jsonl", "--count", 2)
    assert "there is no posterior" in line
    assert [json.loads(row) for row in pool_file.read_text().splitlines()] == POOL
    assert list(tmp_path.iterdir()) == [pool_file]
