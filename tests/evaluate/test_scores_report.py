"""What scores are worth where somebody has judged the same responses."""

import math
from pathlib import Path

import pytest
import torch

from bayesrm_fast.evaluate.scored_file import KnownOfRow, ScoredFile, ScoredLine
from bayesrm_fast.evaluate.scores_report import EXAMPLES, scores_report
from bayesrm_fast.fit.reliability import reliability


def of(kind, *lines):
    return ScoredFile(Path("scores.jsonl"), kind, False, list(lines))


def line(mean, std, probability=()):
    return ScoredLine("p", mean, std, list(probability), False)


def test_pairs_are_labelled_by_themselves():
    lines = [line([d], [1.0], [p]) for d, p in ((2.0, 0.8), (-1.0, 0.3), (0.5, 0.6))]
    told = scores_report(of("pairs", *lines), [KnownOfRow(["a", "b"], labels=[True])] * 3)
    assert told.labelled == 3
    expected = reliability(torch.tensor([0.8, 0.3, 0.6], dtype=torch.float64))
    assert repr(told.probabilities["posterior"]) == repr(expected)  # NaN of empty bins included
    assert told.probabilities["reward"].nll == pytest.approx(
        sum(math.log1p(math.exp(-d)) for d in (2, -1, 0.5)) / 3, rel=1e-12
    )
    assert told.coverage["posterior"][-1] == pytest.approx(2 / 3)
    assert [one.number for one in told.examples] == [2, 3, 1]


def test_a_wrong_step_is_expected_with_one_minus_its_probability():
    lines = [line([1.0, -1.0], [0.1, 0.1], [0.7, 0.2]), line([3.0], [0.1], [0.9])]
    told = scores_report(of("steps", *lines), [KnownOfRow(["a", "b"], labels=[True, False]), KnownOfRow(["c"])])
    assert told.labelled == 2
    assert told.probabilities["posterior"].nll == pytest.approx(-(math.log(0.7) + math.log(0.8)) / 2, rel=1e-12)
    assert told.probabilities["reward"].nll == pytest.approx(math.log1p(math.exp(-1)), rel=1e-12)


def test_gold_is_told_by_rule_and_size():
    unsure = line([0.0, 1.0], [0.0, 2.0])  # the reward alone takes the second, reward − std the first
    told = scores_report(of("responses", unsure, unsure), [KnownOfRow(["a", "b"], [1.0, 0.0]), KnownOfRow(["a", "b"])])
    assert told.gold.prompts == 1
    assert told.gold.sizes == [1, 2]
    assert told.gold.gold == {"reward alone": [0.5, 0.0], "reward − std": [0.5, 1.0]}
    assert (told.gold.gain, told.gold.gain_error) == (1.0, math.inf)
    assert told.changed == 2


def test_without_its_input_a_file_has_scores_alone():
    told = scores_report(of("responses", line([0.0, 1.0], [0.5, 0.1])), None)
    assert (told.labelled, told.probabilities, told.coverage, told.gold, told.changed) == (0, {}, {}, None, 0)
    assert told.examples[0].known is None
    assert told.mean.tolist() == [0.0, 1.0]
    assert told.std.tolist() == [0.5, 0.1]


def test_of_many_rows_those_whose_choice_changes_are_shown_with_their_texts():
    lines = [line([0.0, 1.0], [0.0, 0.1 + i / 1000]) for i in range(10 * EXAMPLES)]
    lines[7] = line([0.0, 1.0], [0.0, 2.0])
    known = [KnownOfRow([f"a{i}", f"b{i}"]) for i in range(len(lines))]
    told = scores_report(of("responses", *lines), known)
    numbers = [one.number for one in told.examples]
    assert numbers == [8, *range(len(lines), len(lines) - EXAMPLES + 1, -1)]
    assert all(one.known.texts[0] == f"a{one.number - 1}" for one in told.examples)
