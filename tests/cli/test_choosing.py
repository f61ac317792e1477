"""Rules as the command line gives them."""

import json

import pytest
import torch
from tiny import words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.choosing import Choosing
from bayesrm_fast.proximity.log_probability import PolicyLogProbabilities
from bayesrm_fast.select.stochastic import SoftBestOfN
from bayesrm_fast.text.files import read_rows, write_rows

SOFT = json.dumps({"rule": "soft", "temperature": 0.01})


def test_a_rule_that_draws_tells_its_probabilities(model_folder, candidates_file, tmp_path, summary):
    summary("best-of-n", model_folder, candidates_file, tmp_path / "best.jsonl", "--rule", SOFT)
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    for row, given in zip(read_rows(tmp_path / "best.jsonl"), read_rows(candidates_file), strict=True):
        best = rm.best_of_n(given["prompt"], given["responses"], SoftBestOfN(0.01))
        assert row["index"] == best.index
        assert row["probabilities"] == pytest.approx(best.scores.tolist(), rel=1e-3)
        assert row["score"] == row["probabilities"][row["index"]]


def test_rows_bring_what_a_rule_reads(model_folder, tmp_path, summary):
    rows = [
        {
            "prompt": words(3, i),
            "responses": [words(4 + j, 10 * i + j) for j in range(3)],
            "log_probabilities": [-900.0, -1.0, -900.0],
            "similarities": [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
        }
        for i in range(2)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    for rule, index in (("rbon_kl", 1), ("log_probability", 1), ("mbr", 0)):
        out = tmp_path / f"{rule}.jsonl"
        summary("best-of-n", model_folder, tmp_path / "rows.jsonl", out, "--rule", rule)
        assert [row["index"] for row in read_rows(out)] == [index] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rule", "rbon_wd"), "needs similarities, which"),
        (("--rule", "rbon_kl"), "needs log_probabilities, which"),
        (("--rule", "std", "--policy", "gpt2"), "--policy is for rules that read log_probabilities"),
        (("--rule", "rbon_kl", "--similarity", "x"), "--similarity is for rules that read similarities"),
        (("--rule", '{"rule": "soft", "temperature": -1}'), "temperature must be"),
        (("--rule", SOFT, "--k", "tuned"), "call tune_penalty first"),
        (("--rule", "worst"), "ensemble"),
    ],
)
def test_what_a_rule_lacks_is_told(model_folder, candidates_file, tmp_path, refused, options, message):
    assert message in refused("best-of-n", model_folder, candidates_file, tmp_path / "best.jsonl", *options)
    assert not list(tmp_path.glob("best*"))


@pytest.mark.parametrize(
    ("option", "of"), [("--policy", "weights of the policy"), ("--similarity", "weights of the sentence encoder")]
)
@pytest.mark.parametrize("command", ["best-of-n", "bonbon"])
def test_a_run_by_other_weights_under_the_same_name_is_not_continued(
    model_folder, candidates_file, tmp_path, refused, monkeypatch, option, of, command
):
    class Model:
        def __init__(self, *_):
            self.encoder = self.model = torch.nn.Linear(2, 1)

        def add(self, _):
            raise InputError("no further")

    monkeypatch.setattr(PolicyLogProbabilities, "from_pretrained", Model)
    monkeypatch.setattr("bayesrm_fast.proximity.similarity.SentenceSimilarities", Model)
    rule = {"--policy": "rbon_kl", "--similarity": "mbr"}[option]
    arguments = (command, model_folder, candidates_file, tmp_path / "out.jsonl", "--rule", rule, option, "name")
    assert "no further" in refused(*arguments)
    assert f"(what differs: {of})" in refused(*arguments, "--resume")


def test_k_tuned_needs_no_model_to_be_checked():
    Choosing("soft", "tuned", relative=True)
    with pytest.raises(InputError, match="--k must be a number"):
        Choosing("soft", "much", relative=True)
