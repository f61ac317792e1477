"""Best and worst of n as preference pairs."""

import json
from collections.abc import Sequence

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.estimators import bonbon_beta
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.train.bonbon import bonbon_rows


class Given(Rule):
    """Scores from outside."""

    def __init__(self, *scores: float) -> None:
        self.given = scores

    def scores(self, known):
        return torch.tensor(self.given, dtype=torch.float32)[: len(known.mean)]


@pytest.fixture(scope="module")
def rm():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)


def candidates(n=4, count=3):
    return [{"prompt": words(3, i), "responses": [words(3 + j, 10 * i + j) for j in range(n)]} for i in range(count)]


@pytest.mark.parametrize(
    ("rule", "relative"),
    [("mean", False), ("std", True), ("std", False), ("entropic", False), ("most_probably_best", True)],
)
def test_best_and_worst_are_of_one_score(rm, rule, relative, monkeypatch):
    """Also of a rule that chooses the best without the variances of candidates that cannot win."""
    monkeypatch.setattr("bayesrm_fast.select.choice.CPU_WAVE", 1e-9)  # one candidate at a time
    given = candidates(8)
    rows = bonbon_rows(rm, given, rule, 2.0, relative=relative)
    for row, one in zip(rows, given, strict=True):
        best = rm.best_of_n(one["prompt"], one["responses"], rule, 2.0, relative=relative, exhaustive=True)
        assert row["prompt"] == one["prompt"]
        assert row["chosen"] == best.response
        assert row["rejected"] == one["responses"][int(best.scores.argmin())]
        # Batches of other lengths, and a penalty of twice a root.
        expected = (best.scores.max().item(), best.scores.min().item())
        assert (row["score_chosen"], row["score_rejected"]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert (row["n"], row["beta"]) == (8, bonbon_beta(8))


def test_a_penalty_moves_the_worst_as_it_moves_the_best(rm):
    """The least certain of equal means is the worst, and not the least by the mean."""
    by_mean, by_std = (bonbon_rows(rm, candidates(8), "std", k) for k in (0.0, 100.0))
    assert [row["rejected"] for row in by_mean] != [row["rejected"] for row in by_std]


def test_each_row_has_the_beta_of_its_n(rm):
    rows = bonbon_rows(rm, [candidates(n, 1)[0] for n in (2, 4, 8)], "mean")
    assert [row["n"] for row in rows] == [2, 4, 8]
    assert [row["beta"] for row in rows] == pytest.approx([1 / 2, 1 / 11, 10 / 363], rel=1e-15)


def test_copies_of_a_response_count_as_draws(rm):
    (row,) = bonbon_rows(rm, [{"prompt": "a", "responses": ["above", "again", "above", "again"]}], "mean")
    assert (row["n"], {row["chosen"], row["rejected"]}) == (4, {"above", "again"})


@pytest.mark.parametrize(
    ("scores", "chosen", "rejected"), [((1, 2, 2, 1), 1, 3), ((0, 0, 1), 2, 1), ((1, 0, 0), 0, 2), ((1, 1, 0), 0, 2)]
)
def test_the_lower_index_wins_ties_and_the_higher_one_loses_them(rm, scores, chosen, rejected):
    (one,) = candidates(len(scores), 1)
    (row,) = bonbon_rows(rm, [one], Given(*scores))
    assert (row["chosen"], row["rejected"]) == (one["responses"][chosen], one["responses"][rejected])


def test_prompts_that_prefer_nothing_are_left_out_and_told(rm):
    equal = {"prompt": "a", "responses": ["above", "above"]}
    with pytest.warns(UserWarning, match=r"2 prompt\(s\) of 5, whose candidates are all equal, give no pair"):
        rows = bonbon_rows(rm, [equal, *candidates(4), equal], "std")
    assert len(rows) == 3
    with pytest.raises(InputError, match="no prompt has candidates of different scores"):
        bonbon_rows(rm, [equal], "mean")
    with pytest.raises(InputError, match="no prompt has candidates of different scores"):
        bonbon_rows(rm, candidates(3), Given(1, 1, 1))  # whatever the texts


@pytest.mark.parametrize("rule", ["soft", "thompson", {"rule": "poisson"}])
def test_a_rule_that_draws_has_no_worst(rm, rule):
    with pytest.raises(InputError, match="draws among the candidates, and so has no best and worst of them"):
        bonbon_rows(rm, candidates(2), rule)


def test_one_candidate_is_refused_by_row(rm):
    with pytest.raises(InputError, match="candidates, row 2 has 1 response, and the best and the worst of n need"):
        bonbon_rows(rm, [*candidates(2, 1), {"prompt": "a", "responses": ["above"]}])


def test_a_candidate_without_a_score_is_refused_by_row(rm):
    with pytest.raises(InputError, match=r"candidates, row 1: responses\[1\] has no score by the rule"):
        bonbon_rows(rm, candidates(3, 1), Given(1, float("nan"), 0))


SAID = {"role": "user", "content": "above"}
ANSWERS = [[{"role": "assistant", "content": text}] for text in ("again", "air")]
HH = "\n\nHuman: above\n\nAssistant: about\n\nHuman: act"


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "above", "responses": ["again", " air"]}, "above", {"again", " air"}),
        ({"prompt": [SAID], "responses": ANSWERS}, [SAID], ANSWERS),
        ({"prompt": [SAID], "responses": ["again", "air"]}, [SAID], ANSWERS),
        ({"prompt": "above", "responses": ANSWERS}, [SAID], ANSWERS),
        ({"prompt": "above", "responses": [ANSWERS[0], "air"]}, [SAID], ANSWERS),
        ({"responses": [[SAID, *answer] for answer in ANSWERS], "prompt": [SAID]}, [SAID], ANSWERS),
        ({"prompt": f"{HH}\n\nAssistant:", "responses": [" again", " air"]}, f"{HH}\n\nAssistant:", {" again", " air"}),
        (
            {"prompt": HH, "responses": [f"{HH}\n\nAssistant: {text}" for text in ("again", "air")]},
            f"{HH}\n\nAssistant:",
            {" again", " air"},
        ),
    ],
    ids=[
        "strings",
        "conversations",
        "string responses",
        "string prompt",
        "mixed",
        "whole",
        "open dialogue",
        "dialogue",
    ],
)
def test_rows_are_all_strings_or_all_conversations_whatever_the_layout(rm, row, prompt, responses):
    """And what trl joins, with nothing between, is what the policy has written."""
    (found,) = bonbon_rows(rm, [row], "mean")
    assert found["prompt"] == prompt
    ours = [found["chosen"], found["rejected"]]
    assert sorted(map(str, ours)) == sorted(map(str, responses))
    assert len({isinstance(text, str) for text in (found["prompt"], *ours)}) == 1
    assert isinstance(found["prompt"], Sequence)


def test_tools_go_along_as_json():
    tokenizer = tiny_tokenizer("llama", "{% for t in tools or [] %}{{ t.name }} {% endfor %}{{ messages[-1].content }}")
    rm = BayesianRewardModel(tiny_adapter("llama"), tokenizer).fit(tiny_pairs(), rank=4)
    tools = [{"name": "able"}]
    row, without = bonbon_rows(
        rm, [{"prompt": [SAID], "responses": ANSWERS, "tools": tools}, {"prompt": [SAID], "responses": ANSWERS}], "mean"
    )
    assert json.loads(row["tools"]) == tools
    assert "tools" not in without
