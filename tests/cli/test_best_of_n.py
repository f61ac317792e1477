"""`bayesrm best-of-n`."""

import pytest
from full_disk import full_disk
from tiny import words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.text.files import read_rows, write_rows


def test_the_best_is_that_of_the_library(model_folder, candidates_file, tmp_path, summary):
    told = summary("best-of-n", model_folder, candidates_file, tmp_path / "best.jsonl", "--k", "0.5")
    assert (told["prompts"], told["candidates"]) == (5, 15)
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    changed = 0
    for row, given in zip(read_rows(tmp_path / "best.jsonl"), read_rows(candidates_file), strict=True):
        best = rm.best_of_n(given["prompt"], given["responses"], k=0.5, exhaustive=True)
        assert (row["index"], row["response"], row["candidates"]) == (best.index, best.response, 3)
        assert row["index_by_mean"] == int(best.mean.argmax())
        assert row["mean"] == pytest.approx(best.mean[best.index].item(), rel=1e-4, abs=1e-5)
        assert row["score"] == pytest.approx(row["mean"] - 0.5 * row["std"], rel=1e-5, abs=1e-7)
        changed += row["index"] != row["index_by_mean"]
    assert told["choices_changed_by_the_penalty"] == changed


def test_absolute_and_tuned_penalties(model_folder, candidates_file, tmp_path, summary, refused):
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    arguments = ("best-of-n", model_folder, candidates_file)
    summary(*arguments, tmp_path / "absolute.jsonl", "--absolute")
    for row, given in zip(read_rows(tmp_path / "absolute.jsonl"), read_rows(candidates_file), strict=True):
        assert row["index"] == rm.best_of_n(given["prompt"], given["responses"], relative=False).index
        assert row["baseline"] is None
    assert "call tune_penalty first" in refused(*arguments, tmp_path / "tuned.jsonl", "--k", "tuned")
    assert "--k must be a number" in refused(*arguments, tmp_path / "tuned.jsonl", "--k", "much")
    given = read_rows(candidates_file)
    tuned = rm.tune_penalty([one | {"gold": [0.0, 1.0, 2.0]} for one in given])
    rm.save_pretrained(tmp_path / "rm")
    summary("best-of-n", tmp_path / "rm", candidates_file, tmp_path / "tuned.jsonl", "--k", "tuned")
    for row, one in zip(read_rows(tmp_path / "tuned.jsonl"), given, strict=True):
        assert row["index"] == rm.best_of_n(one["prompt"], one["responses"], k=tuned.k).index


def test_a_run_is_explained(model_folder, tmp_path, summary):
    rows = [
        {"prompt": words(3, i), "responses": [words(4 + j, 10 * i + j) for j in range(n)]} for i, n in enumerate((5, 2))
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    arguments = ("best-of-n", model_folder, tmp_path / "rows.jsonl")
    told = summary(*arguments, tmp_path / "best.jsonl", "--explain")
    assert (told["prompts_with_warnings"], told["k_by_tuning"]) == (1, "not tuned")
    plain = summary(*arguments, tmp_path / "plain.jsonl")
    assert told.keys() - plain.keys() == {"prompts_with_warnings", "k_by_tuning"}
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    both = (read_rows(tmp_path / "best.jsonl"), read_rows(tmp_path / "plain.jsonl"))
    for row, bare, given in zip(*both, rows, strict=True):
        advice = row.pop("advice")
        assert row == bare
        alone = rm.advice(given["prompt"], given["responses"])
        assert advice["std_over_spread"] == pytest.approx(alone.std_over_spread, rel=1e-4)
        assert advice["warnings"] == alone.warnings
        assert [winner["index"] for winner in advice["winners"]] == [winner.index for winner in alone.winners]
    rm.tune_penalty([one | {"gold": [float(i) for i in range(len(one["responses"]))]} for one in rows])
    rm.save_pretrained(tmp_path / "tuned")
    told = summary("best-of-n", tmp_path / "tuned", *arguments[2:], tmp_path / "tuned.parquet", "--explain")
    assert told["k_by_tuning"] == rm.posterior.penalty.k
    assert [len(row["advice"]["warnings"]) for row in read_rows(tmp_path / "tuned.parquet")] == [0, 1]


def test_variances_are_counted_and_a_run_is_resumed(model_folder, tmp_path, summary, refused, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 16)
    rows = [{"prompt": words(3, i), "responses": [words(2 + j, 9 * i + j) for j in range(12)]} for i in range(70)]
    write_rows(tmp_path / "many.jsonl", rows)
    arguments = (model_folder, tmp_path / "many.jsonl")
    told = summary("best-of-n", *arguments, tmp_path / "best.jsonl", "--k", "0.1", "--absolute")
    assert (told["prompts"], told["candidates"]) == (70, 840)
    assert 70 <= told["variances_computed"] < 840
    again = tmp_path / "again.jsonl"
    with full_disk(10_000):  # before the last rows
        assert "cannot be written: File too large" in refused(
            "best-of-n", *arguments, again, "--k", "0.1", "--absolute"
        )
    assert summary("best-of-n", *arguments, again, "--k", "0.1", "--absolute", "--resume") == told | {
        "output": str(again)
    }
    assert again.read_bytes() == (tmp_path / "best.jsonl").read_bytes()


def test_a_run_by_another_rule_is_not_continued(model_folder, candidates_file, tmp_path, refused, monkeypatch):
    def fails(self, *args, **options):
        raise KeyboardInterrupt

    from bayesrm_fast.cli.best_of_n import best_of_n

    with monkeypatch.context() as patch:
        patch.setattr(BayesianRewardModel, "best_of_each", fails)
        with pytest.raises(KeyboardInterrupt):
            best_of_n(model_folder, candidates_file, tmp_path / "best.jsonl")
    arguments = ("best-of-n", model_folder, candidates_file, tmp_path / "best.jsonl", "--resume")
    for differs, *options in (("rule", "--k", "0.5"), ("rule", "--rule", "variance"), ("explain", "--explain")):
        assert f"(what differs: {differs})" in refused(*arguments, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rule", "best"), "rule must be one of mean, "),
        (("--k", "-1"), "k must be"),
        (("--k", "nan"), "k must be"),
        (("--explain", "--absolute"), "--explain is about the relative std"),
        (("--explain", "--rule", "mean"), "--explain is about the relative std"),
    ],
)
def test_bad_rules_are_told_before_the_model_is_loaded(
    model_folder, candidates_file, tmp_path, options, message, refused, no_model
):
    line = refused("best-of-n", model_folder, candidates_file, tmp_path / "best.jsonl", *options)
    assert message in line
    assert not list(tmp_path.glob("best*"))


def test_rows_without_responses_are_refused(model_folder, pairs_file, tmp_path, refused, no_model):
    line = refused("best-of-n", model_folder, pairs_file, tmp_path / "best.jsonl")
    assert "pairs.jsonl, row 1 has no column 'responses'" in line


@pytest.mark.parametrize("number", [3, 10])
def test_a_reward_that_is_nan_is_named_by_its_file_row_and_response(
    model_folder, tmp_path, number, refused, nan_at, monkeypatch
):
    """In a chunk after the first, too."""
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 4)
    rows = [{"prompt": "able", "responses": ["act", "all " * i]} for i in range(1, 13)]
    rows[number - 1]["responses"][1] = "art"
    write_rows(tmp_path / "rows.jsonl", rows)
    nan_at("art")
    line = refused("best-of-n", model_folder, tmp_path / "rows.jsonl", tmp_path / "best.jsonl")
    assert line == f"bayesrm: {tmp_path}/rows.jsonl, row {number}: responses[1]: the model's reward is NaN or infinite"
