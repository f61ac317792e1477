"""What an uncertainty is worth on a benchmark: probabilities, accuracy at coverage, and telling wrong answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.evaluate.accuracy import ScoredRow, row_result
from bayesrm_fast.fit.reliability import Reliability, reliability
from bayesrm_fast.posterior.probit import probit_probability

COVERAGES = (0.5, 0.8, 0.9, 1.0)
"""Shares of the rows that are answered, at which the accuracy is told."""

CURVE_POINTS = 100
"""Coverages at which curves are told: every hundredth."""


@dataclass(frozen=True)
class Comparisons:
    """Differences of two rewards of a row, float64 on the CPU.

    Attributes:
        difference: `[M]`.
        variance: of each difference `[M]`.
    """

    difference: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Decisions:
    """The answers that a model gives to N rows: the response with the largest reward, against the next best.

    Attributes:
        compared: their differences, none below 0.
        is_right: whether the row counts as right in full `[N]`, bool.
        temperature: T of the probabilities.
    """

    compared: Comparisons
    is_right: Tensor
    temperature: float

    @property
    def confidence(self) -> Tensor:
        """Probability `[N]` that the answer is preferred to the next best, from ½ to 1."""
        return probit_probability(self.compared.difference, self.compared.variance, self.temperature)

    @property
    def margin(self) -> Tensor:
        """|Δ| `[N]`, what a reward model without an uncertainty has to go by."""
        return self.compared.difference

    @property
    def std(self) -> Tensor:
        """Posterior std of the difference `[N]`."""
        return self.compared.variance.sqrt()


def decisions(version: int, rows: Sequence[ScoredRow], temperature: float) -> Decisions | None:
    """What was answered to all rows but those of Ties, which have no one right answer; None where no other is there."""
    difference, variance, right = [], [], []
    for row in rows:
        result = row_result(version, row)
        if result is None:
            continue
        best, second, *_ = sorted(range(len(row.scores)), key=lambda i: -row.scores[i])
        difference.append(row.scores[best] - row.scores[second])
        variance.append(row.difference_variance[best][second])
        right.append(result == 1)
    if not right:
        return None
    is_right = torch.tensor(right, dtype=torch.bool, device="cpu")
    return Decisions(_comparisons(difference, variance), is_right, temperature)


def labelled_pairs(version: int, rows: Sequence[ScoredRow]) -> Comparisons:
    """The chosen response of each row against each rejected one, all rows but those of Ties."""
    own = [row for row in rows if row_result(version, row) is not None]
    pairs = [(row, i) for row in own for i in range(1, len(row.scores))]
    return _comparisons(
        [row.scores[0] - row.scores[i] for row, i in pairs], [row.difference_variance[0][i] for row, i in pairs]
    )


def _comparisons(difference: Sequence[float], variance: Sequence[float]) -> Comparisons:
    return Comparisons(*(torch.tensor(values, dtype=torch.float64, device="cpu") for values in (difference, variance)))


def probabilities(pairs: Comparisons, temperature: float) -> dict[str, Reliability]:
    """What the probability of the chosen response is worth: `reward` is σ(Δ), `posterior` has variance and temperature.

    There is no σ(Δ/T): T was chosen together with the variance, and is too small, or too large, for the reward alone.
    """
    nothing = torch.zeros_like(pairs.variance)
    return {
        "reward": reliability(probit_probability(pairs.difference, nothing)),
        "posterior": reliability(probit_probability(pairs.difference, pairs.variance, temperature)),
    }


def auroc(score: Tensor, is_positive: Tensor) -> float | None:  # shapes: (N,), (N,) bool
    """Probability that a positive row has a larger score than a negative one, equal scores counting half.

    Returns:
        None where all rows are of one kind.
    """
    positive, negative = score[is_positive], score[~is_positive].sort().values
    if not len(positive) or not len(negative):
        return None
    below = torch.searchsorted(negative, positive, right=False)
    up_to = torch.searchsorted(negative, positive, right=True)
    return float((below + up_to).double().mean()) / (2 * len(negative))


def accuracy_by_coverage(confidence: Tensor, is_right: Tensor) -> Tensor:  # shapes: (N,), (N,) bool -> (N,)
    """Accuracy of the k rows of the largest confidence, k from 1 to N; rows of equal confidence come in any order.

    Where they do, it is the mean over these orders.
    """
    values, group, counts = torch.unique(confidence, return_inverse=True, return_counts=True)
    right = torch.zeros_like(values, dtype=torch.float64).index_add_(0, group, is_right.double()) / counts
    order = confidence.argsort(descending=True)
    numbers = torch.arange(1, len(order) + 1, dtype=torch.float64, device="cpu")
    accuracy: Tensor = right[group[order]].cumsum(0) / numbers
    return accuracy


def at_coverage(by_coverage: Tensor, coverage: float) -> float:  # shape: (N,)
    """Accuracy where this share of the rows is answered, rounded up to a whole row.

    Raises:
        InputError: a coverage that is not above 0 and at most 1.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"a coverage must be above 0 and at most 1, not {coverage!r}")
    return float(by_coverage[math.ceil(coverage * len(by_coverage) - 1e-9) - 1])


def coverage_curves(orders: Mapping[str, Tensor], is_right: Tensor) -> dict[str, list[float]]:  # shape: (N,) bool
    """`coverage`, and the accuracy there where the rows are answered in each order, the largest values first.

    Args:
        orders: by name the confidence in each row, `[N]`.
        is_right: whether the row is answered right.
    """
    coverages = [number / CURVE_POINTS for number in range(1, CURVE_POINTS + 1)]
    curves = {"coverage": coverages}
    for name, confidence in orders.items():
        accuracy = accuracy_by_coverage(confidence, is_right)
        curves[name] = [at_coverage(accuracy, coverage) for coverage in coverages]
    return curves
