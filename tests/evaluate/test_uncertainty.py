"""Probabilities, coverage and AUROC against counting."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.evaluate.accuracy import ScoredRow
from bayesrm_fast.evaluate.uncertainty import (
    Comparisons,
    accuracy_by_coverage,
    at_coverage,
    auroc,
    decisions,
    labelled_pairs,
    probabilities,
)
from bayesrm_fast.posterior.probit import probit_probability


def row(subset, scores, variance, num_correct=1, name=0):
    return ScoredRow(name, subset, num_correct, scores, variance, False)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_ordered_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 6, (40,), generator=generator).double()
    positive = torch.rand(40, generator=generator) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive].tolist() for b in score[~positive].tolist()]
    assert auroc(score, positive) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@pytest.mark.parametrize("positive", [True, False])
def test_auroc_of_one_kind_is_unknown(positive):
    assert auroc(torch.rand(4), torch.full((4,), positive)) is None


def test_the_most_confident_are_answered_first():
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7], dtype=torch.float64)
    right = torch.tensor([True, False, False, True])
    by_coverage = accuracy_by_coverage(confidence, right)
    assert by_coverage.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])
    assert at_coverage(by_coverage, 1.0) == 0.5
    assert at_coverage(by_coverage, 0.5) == 0.5
    assert at_coverage(by_coverage, 0.51) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="coverage"):
        at_coverage(by_coverage, 0.0)


def test_rows_of_equal_confidence_count_by_their_mean():
    """However they are ordered in the file."""
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5], dtype=torch.float64)
    for right in ([True, True, False, False], [True, False, False, True]):
        by_coverage = accuracy_by_coverage(confidence, torch.tensor(right))
        assert by_coverage.tolist() == pytest.approx([1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 0.5])


@pytest.mark.parametrize("coverage", [0.07, 0.29, 0.57, 0.58])
def test_a_whole_number_of_rows_is_not_rounded_up(coverage):
    """0.29 · 100 is a little above 29 in floating point."""
    assert at_coverage(torch.arange(1.0, 101.0), coverage) == round(100 * coverage)


def test_a_decision_is_the_best_against_the_next_best():
    variance = [[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]]
    rows = [
        row("Math", [1.0, 4.0, 0.0, 3.0], variance),  # the rejected ones 1 and 3
        row("Math", [5.0, 4.0, 0.0, 3.0], variance),
        row("Ties", [5.0, 4.0, 0.0, 3.0], variance, 2, "tied:1"),
        row("Math", [5.0, 5.0, 0.0, 3.0], variance),  # half right
    ]
    made = decisions(2, rows, 2.0)
    assert made.margin.tolist() == [1.0, 1.0, 0.0]
    assert made.compared.variance.tolist() == [5, 1, 1]
    assert made.is_right.tolist() == [False, True, False]
    expected = probit_probability(made.margin, made.compared.variance, 2.0)
    torch.testing.assert_close(made.confidence, expected, rtol=0, atol=0)
    assert decisions(2, rows[2:3], 1.0) is None
    pairs = labelled_pairs(2, rows[:1])
    assert (pairs.difference.tolist(), pairs.variance.tolist()) == ([-3.0, 1.0, -2.0], [1, 2, 3])


def test_the_variance_takes_confidence_from_wrong_answers():
    """Right where it is sure, wrong where it is not: the posterior's NLL is the lesser."""
    difference = torch.tensor([3.0] * 9 + [-3.0] * 4, dtype=torch.float64)
    pairs = Comparisons(difference, torch.where(difference > 0, 0.01, 400.0).double())
    found = probabilities(pairs, 1.0)
    assert found["posterior"].nll < found["reward"].nll
    assert found["posterior"].accuracy == found["reward"].accuracy == 9 / 13
    assert found["reward"].nll == pytest.approx(float(torch.nn.functional.softplus(-difference).mean()), abs=1e-12)
    tempered = probabilities(Comparisons(difference, torch.zeros_like(difference)), 1.5)
    nll = float(torch.nn.functional.softplus(-difference / 1.5).mean())
    assert tempered["posterior"].nll == pytest.approx(nll, abs=1e-12)
    assert tempered["reward"] == found["reward"]
