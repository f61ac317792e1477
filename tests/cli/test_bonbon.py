"""`bayesrm bonbon`."""

import pytest
from full_disk import full_disk
from tiny import tiny_policy, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.proximity.log_probability import PolicyLogProbabilities
from bayesrm_fast.text.files import read_rows, write_rows
from bayesrm_fast.train.bonbon import bonbon_rows

EQUAL = {"prompt": "able", "responses": ["above", "above"]}


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ((), ("std", 1.0, True)),
        (("--rule", "variance", "--k", "0.5", "--absolute"), ("variance", 0.5, False)),
        (("--rule", "mean"), ("mean", 1.0, True)),
    ],
)
def test_the_pairs_are_those_of_the_library(model_folder, candidates_file, tmp_path, options, given, summary):
    told = summary("bonbon", model_folder, candidates_file, tmp_path / "pairs.jsonl", *options)
    assert told.items() >= {"prompts": 5, "pairs": 5, "prompts_of_equal_candidates": 0, "pairs_of_n": {"3": 5}}.items()
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    rule, k, relative = given
    expected = bonbon_rows(rm, read_rows(candidates_file), rule, k, relative=relative)
    assert read_rows(tmp_path / "pairs.jsonl") == expected


def test_a_tuned_penalty_is_asked_for(model_folder, candidates_file, tmp_path, summary, refused):
    arguments = ("--k", "tuned")
    assert "call tune_penalty first" in refused(
        "bonbon", model_folder, candidates_file, tmp_path / "pairs.jsonl", *arguments
    )
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    rm.tune_penalty([one | {"gold": [0.0, 1.0, 2.0]} for one in read_rows(candidates_file)])
    rm.save_pretrained(tmp_path / "rm")
    summary("bonbon", tmp_path / "rm", candidates_file, tmp_path / "pairs.jsonl", *arguments)
    assert read_rows(tmp_path / "pairs.jsonl") == bonbon_rows(rm, read_rows(candidates_file), k="tuned")


def test_a_policy_gives_the_log_probabilities_that_a_rule_reads(model_folder, candidates_file, tmp_path, summary):
    tiny_policy().save_pretrained(tmp_path / "policy")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "policy")
    options = ("--rule", "log_probability", "--policy", tmp_path / "policy")
    summary("bonbon", model_folder, candidates_file, tmp_path / "pairs.jsonl", *options)
    policy = PolicyLogProbabilities.from_pretrained(tmp_path / "policy")
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    expected = bonbon_rows(rm, policy.add(read_rows(candidates_file)), "log_probability")
    assert read_rows(tmp_path / "pairs.jsonl") == expected


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_prompts_of_equal_candidates_give_no_row_and_are_counted(model_folder, tmp_path, name, summary, bayesrm):
    rows = [EQUAL, *({"prompt": words(3, n), "responses": [words(4, 9 * n + j) for j in range(n)]} for n in (2, 4))]
    write_rows(tmp_path / "rows.jsonl", [*rows, EQUAL])
    arguments = ("bonbon", model_folder, tmp_path / "rows.jsonl", tmp_path / name)
    told = summary(*arguments)
    assert (told["prompts"], told["pairs"], told["prompts_of_equal_candidates"]) == (4, 2, 2)
    assert told["pairs_of_n"] == {"2": 1, "4": 1}
    assert [row["n"] for row in read_rows(tmp_path / name)] == [2, 4]
    assert "train on the rows of one n at a time" in bayesrm(*arguments)[1]


def test_without_any_pair_nothing_is_written(model_folder, tmp_path, refused):
    write_rows(tmp_path / "rows.jsonl", [EQUAL])
    line = refused("bonbon", model_folder, tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl")
    assert "rows.jsonl: no row has candidates of different scores" in line
    assert not (tmp_path / "pairs.jsonl").exists()


def test_a_run_is_resumed_with_the_same_bytes(model_folder, tmp_path, summary, refused, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 4)
    rows = [{"prompt": words(3, i), "responses": [words(4, 9 * i + j) for j in range(3)]} for i in range(10)]
    write_rows(tmp_path / "rows.jsonl", [EQUAL, *rows, EQUAL])
    arguments = ("bonbon", model_folder, tmp_path / "rows.jsonl")
    told = summary(*arguments, tmp_path / "pairs.jsonl")
    again = tmp_path / "again.jsonl"
    with full_disk(3_500):  # after the first chunk
        assert "cannot be written: File too large" in refused(*arguments, again)
    assert "(what differs: rule)" in refused(*arguments, again, "--k", "2", "--resume")
    assert summary(*arguments, again, "--resume") == told | {"output": str(again)}
    assert again.read_bytes() == (tmp_path / "pairs.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rule", "best"), "rule must be one of mean, "),
        (("--rule", "soft"), "SoftBestOfN draws among the candidates"),
        (("--rule", "mbr"), "row 1 does not have"),
        (("--k", "-1"), "k must be"),
        (("--k", "much"), "--k must be a number"),
    ],
)
def test_bad_rules_are_told_before_the_model_is_loaded(
    model_folder, candidates_file, tmp_path, options, message, refused, no_model
):
    assert message in refused("bonbon", model_folder, candidates_file, tmp_path / "pairs.jsonl", *options)


def test_one_candidate_is_told_by_its_row_before_the_model_is_loaded(model_folder, tmp_path, refused, no_model):
    write_rows(tmp_path / "rows.jsonl", [EQUAL, {"prompt": "able", "responses": ["above"]}])
    line = refused("bonbon", model_folder, tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl")
    assert (
        line == f"bayesrm: {tmp_path}/rows.jsonl, row 2 has 1 response, and the best and the worst of n need at least 2"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
