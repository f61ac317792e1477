"""`bayesrm report`."""

import pytest
from tiny import tiny_steps

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.evaluate.scored_file import read_scored_file
from bayesrm_fast.text.files import read_rows, write_rows

pytest.importorskip("matplotlib", reason="the extra `eval` is not installed")


@pytest.fixture
def judged_file(candidates_file, tmp_path):
    write_rows(tmp_path / "judged.jsonl", [row | {"gold": [0, 1, 2]} for row in read_rows(candidates_file)])
    return tmp_path / "judged.jsonl"


def test_a_scored_file_becomes_a_page(model_folder, judged_file, pairs_file, tmp_path, bayesrm, summary):
    scores, output = tmp_path / "scores.parquet", tmp_path / "report.html"
    bayesrm("score", model_folder, judged_file, scores, "--relative")
    told = summary("report", scores, output, "--input", judged_file)
    assert (told["kind"], told["rows"], told["prompts_with_gold"]) == ("responses", 5, 5)
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "prompts_with_gold" not in summary("report", scores, output)
    bayesrm("score", model_folder, pairs_file, tmp_path / "pair-scores.jsonl")
    told = summary("report", tmp_path / "pair-scores.jsonl", output, "--input", pairs_file)
    assert (told["kind"], told["labelled"]) == ("pairs", 6)
    assert 0 <= told["accuracy"] <= 1


def test_a_column_of_the_input_does_not_change_what_the_scores_are_of(model_folder, candidates_file, tmp_path, bayesrm):
    own = {"baseline": [0.5, 0.5, 0.5], "first_error": 1, "aggregates": {"mean": 2}}
    write_rows(tmp_path / "rows.jsonl", [row | own for row in read_rows(candidates_file)])
    bayesrm("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "scores.jsonl")
    scored = read_scored_file(tmp_path / "scores.jsonl")
    assert (scored.kind, scored.is_relative) == ("responses", False)


def test_steps_are_told(step_adapter_folder, tmp_path, bayesrm, summary):
    write_rows(tmp_path / "steps.jsonl", tiny_steps())
    rm = BayesianRewardModel.from_pretrained(step_adapter_folder, device="cpu")
    rm.fit(tiny_steps(), rank=4, prior_precision=1.0).save_pretrained(tmp_path / "rm")
    bayesrm("score", tmp_path / "rm", tmp_path / "steps.jsonl", tmp_path / "scores.jsonl")
    told = summary("report", tmp_path / "scores.jsonl", tmp_path / "report.html", "--input", tmp_path / "steps.jsonl")
    assert told["kind"] == "steps"
    assert told["labelled"] == sum(len(row["labels"]) for row in read_rows(tmp_path / "steps.jsonl"))


def test_a_place_that_cannot_be_written_is_told_before_the_file_is_read(judged_file, tmp_path, refused):
    (tmp_path / "linked.html").hardlink_to(judged_file)
    for name, message in (
        ("report.txt", "must end in .html"),
        ("absent/report.html", "does not exist"),
        ("linked.html", "is an input"),
    ):
        assert message in refused("report", judged_file, tmp_path / name)


def test_a_file_that_is_not_scored_is_refused(judged_file, tmp_path, refused):
    assert "give a file that `bayesrm score` wrote" in refused("report", judged_file, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
