"""`bayesrm fit`."""

import json
import shutil

import pytest
import torch
from tiny import tiny_pairs, tiny_steps, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.text.files import read_rows, write_rows


@pytest.mark.parametrize("options", [(), ("--second-pass", "--basis-dtype", "bfloat16", "--rank", "3")])
def test_a_ggn_fit_says_what_it_keeps_and_is_served_like_any_other(
    adapter_folder, pairs_file, candidates_file, tmp_path, options, summary, caplog
):
    folder = tmp_path / "rm"
    with caplog.at_level("INFO", "bayesrm_fast"):
        fitted = summary("fit", adapter_folder, pairs_file, "--output", folder, "--structure", "ggn", *options)
    assert "the fit keeps" in caplog.text
    assert (fitted["structure"], fitted["rank"]) == ("ggn", 3 if options else 128)
    assert summary("best-of-n", folder, candidates_file, tmp_path / "best.jsonl")["prompts"] == 5
    assert summary("score", folder, candidates_file, tmp_path / "scores.jsonl")["rows"] == 5


def test_without_an_output_the_posterior_goes_beside_its_adapter(adapter_folder, pairs_file, tmp_path, summary):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    fitted = summary("fit", folder, pairs_file, "--structure", "kfac", "--rank", "full", "--include-head")
    assert (fitted["output"], fitted["rank"], fitted["structure"]) == (str(folder), None, "kfac")
    record = json.loads((folder / "posterior.json").read_text())
    assert record["include_head"]
    assert record["sites"][-1]["name"] == "score.weight"


def test_options_reach_the_fit(adapter_folder, pairs_file, tmp_path, summary):
    options = ("--prior-precision", "2.5", "--max-length", "16", "--max-batch-tokens", "40", "--output-weights", "2")
    fitted = summary("fit", adapter_folder, pairs_file, "--output", tmp_path / "rm", "--rank", "4", *options)
    assert (fitted["prior_precision"], fitted["prior_chosen_by"]) == (2.5, "given")
    record = json.loads((tmp_path / "rm" / "posterior.json").read_text())
    assert (record["max_length"], record["output_weights"], record["rank"]) == (16, [2.0], 4)


def test_a_model_as_it_is_gets_virtual_adapters(base_folder, tmp_path, summary, refused, bayesrm):
    pairs, rows, out = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl", tmp_path / "fitted"
    write_rows(pairs, tiny_pairs(20))
    responses = [words(4 + i, i) for i in range(3)]
    write_rows(rows, [{"prompt": words(3, 1), "responses": responses}])
    fit = ("fit", base_folder, pairs, "--virtual-rank", "2", "--virtual-targets", "q_proj")
    assert "--output is needed" in refused(*fit)
    told = summary(*fit, "--output", out)
    assert (told["virtual_rank"], told["prior_chosen_by"], told["virtual_layers"]) == (2, "margins", 2)
    summary("score", out, rows, tmp_path / "scores.jsonl")
    (found,) = read_rows(tmp_path / "scores.jsonl")
    rm = BayesianRewardModel.from_pretrained(out, device="cpu")
    torch.testing.assert_close(torch.tensor(found["variance"]), rm.score([words(3, 1)] * 3, responses).variance)
    bayesrm("info", out)
    assert summary("fit", out, pairs, "--structure", "kfac", "--prior-precision", "1")["structure"] == "kfac"
    unlabelled = summary("fit", out, rows, "--unlabelled")
    assert unlabelled["pairs"] == 2  # of three responses
    assert "log_evidence" not in unlabelled


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "pairs.jsonl is empty"),
        ('{"prompt": "a"\n', "pairs.jsonl, row 1 is not valid JSON"),
        ('{"prompt": "a", "chosen": "b"}\n', "pairs.jsonl, row 1 has no column 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}\n', "pairs.jsonl, row 1: rejected must be"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "pairs.jsonl, row 1: chosen and rejected are equal"),
        ('{"prompt": "\\u0000", "chosen": "b", "rejected": "c"}\n', "pairs.jsonl, row 1: prompt contains a NUL"),
        ('{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}\n', "pairs.jsonl, row 1: prompt contains a lone surr"),
    ],
)
def test_bad_pairs_are_told_before_the_model_is_loaded(adapter_folder, tmp_path, content, message, refused, no_model):
    (tmp_path / "pairs.jsonl").write_text(content)
    assert message in refused("fit", adapter_folder, tmp_path / "pairs.jsonl", "--output", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prior-precision", "-1"), "positive"),
        (("--prior-precision", "much"), "--prior-precision must be a number"),
        (("--rank", "0"), "rank"),
        (("--rank", "some"), "--rank must be a whole number"),
        (("--structure", "kfac", "--second-pass"), "for structure='ggn' alone"),
        (("--structure", "ggn", "--basis-dtype", "int4"), "--basis-dtype must be"),
        (("--structure", "diag"), "structure must be one of"),
        (("--output-weights", "1,two"), "--output-weights must be a number, not 'two'"),
        (("--virtual-targets", "q_proj"), "--virtual-targets goes with --virtual-rank"),
        (("--output", "/proc/nothing/model"), "cannot be written"),
    ],
)
def test_bad_options_are_told_before_the_model_is_loaded(
    adapter_folder, pairs_file, options, message, refused, no_model
):
    assert message in refused("fit", adapter_folder, pairs_file, *options)
    assert not (adapter_folder / "posterior.json").exists()


def test_a_reward_that_is_nan_is_named_by_its_row(adapter_folder, tmp_path, refused, nan_at):
    pairs = [{"prompt": "able", "chosen": "act", "rejected": text} for text in ("all", "add", "art")]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    nan_at("art")
    line = refused("fit", adapter_folder, tmp_path / "pairs.jsonl", "--output", tmp_path / "rm")
    assert f"{tmp_path}/pairs.jsonl, row 3: the model's reward is NaN or infinite" in line
    assert not (tmp_path / "rm").exists()


def test_rows_that_no_fit_can_use_are_told_before_the_model_is_loaded(adapter_folder, tmp_path, refused, no_model):
    equal = {"prompt": "above", "chosen": "act", "rejected": "act"}
    write_rows(tmp_path / "equal.jsonl", [equal, equal])
    assert "row 1: chosen and rejected are equal" in refused("fit", adapter_folder, tmp_path / "equal.jsonl")
    tools = [{"type": "function", "function": {"name": "add"}}]
    write_rows(tmp_path / "sets.jsonl", [{"prompt": "above", "responses": ["act", "all"], "tools": tools}])
    assert "has tools" in refused("fit", adapter_folder, tmp_path / "sets.jsonl", "--unlabelled")


def test_steps_are_fitted_by_a_token_classifier(
    step_adapter_folder, adapter_folder, pairs_file, tmp_path, summary, refused
):
    write_rows(tmp_path / "steps.jsonl", tiny_steps())
    told = summary("fit", step_adapter_folder, tmp_path / "steps.jsonl", "--output", tmp_path / "rm")
    assert told["steps"] == sum(len(row["completions"]) for row in tiny_steps())
    assert json.loads((tmp_path / "rm" / "posterior.json").read_text())["step_separator"] == "\n"
    options = ("--output", tmp_path / "other")
    summary("fit", step_adapter_folder, tmp_path / "steps.jsonl", *options, "--step-separator", "art")
    assert json.loads((tmp_path / "other" / "posterior.json").read_text())["step_separator"] == "art"
    assert "scores whole responses" in refused(
        "fit", adapter_folder, tmp_path / "steps.jsonl", "--output", tmp_path / "no"
    )
    assert "leave out --unlabelled" in refused("fit", adapter_folder, tmp_path / "steps.jsonl", "--unlabelled")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [True]}, "has 2 completions and 1 labels"),
        ({"completions": ["act", ""]}, "is an empty step"),
    ],
)
def test_bad_steps_are_refused_before_a_model_is_loaded(
    no_model, step_adapter_folder, tmp_path, refused, change, message
):
    row = {"prompt": "able", "completions": ["act", "add"], "labels": [True, False]}
    write_rows(tmp_path / "steps.jsonl", [row, row | change])
    told = refused("fit", step_adapter_folder, tmp_path / "steps.jsonl")
    assert message in told
    assert "steps.jsonl, row 2" in told
