"""Scores of a response's segments, jointly, and what is made of them for a choice or for training."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.model.passes import Passes
from bayesrm_fast.model.token_budget import free_bytes
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.probit import probit_probability
from bayesrm_fast.score.aggregates import chained_products, minimum, product
from bayesrm_fast.score.features import Outside
from bayesrm_fast.score.joint import JointRewards, joint_scores
from bayesrm_fast.text.examples import SegmentedRow

Aggregate = Literal["mean", "last", "min", "product"]

SHARE_FOR_GRADIENTS = 1 / 8
"""Of the free memory of model and host: what the gradients of responses that share their passes may hold."""

MOST_RESPONSES = 16
"""That share their passes."""


@dataclass(frozen=True)
class AggregateScore:
    """One number for a response, made of its segments.

    Attributes:
        mean: its posterior mean.
        variance: its posterior variance.
    """

    mean: float
    variance: float

    @property
    def std(self) -> float:
        """Its posterior standard deviation."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class SegmentScores:
    """Scores of the S segments of one response; float32 on the CPU (float64 for a float64 model).

    A score is the log-odds z of a segment being correct, or whatever reward a classifier with one output gives.

    Attributes:
        joint: the joint Gaussian of the S scores.
        input_ids: the row's T tokens.
        ends: the token at which each segment is read, `[S]`, int64, ascending.
    """

    joint: JointRewards
    input_ids: list[int]
    ends: Tensor

    @property
    def mean(self) -> Tensor:
        """MAP scores `[S]`."""
        return self.joint.mean

    @property
    def covariance(self) -> Tensor:
        """Posterior covariance of the scores `[S, S]`."""
        return self.joint.covariance

    @property
    def variance(self) -> Tensor:
        """Posterior variances `[S]`, in squared units of the score."""
        return self.joint.covariance.diagonal()

    @property
    def std(self) -> Tensor:
        """Posterior standard deviations `[S]`, in units of the score."""
        return self.variance.clamp(min=0).sqrt()

    @property
    def truncated(self) -> bool:
        """Whether `max_length` cut the prompt."""
        return bool(self.joint.truncated.any())

    @property
    def probability(self) -> Tensor:
        """Probability `[S]` that each segment is correct, the variance taken into account: `σ(z / √(T² + π v / 8))`."""
        return probit_probability(self.mean, self.variance, self.joint.temperature)

    def first_error(self) -> Tensor:  # shape: (S + 1,), float64
        """Probability that the first segment that is not correct is the k-th one; the last entry, that there is none.

        `P(k) = E[Π_{j<k} σ(z_j / T) (1 − σ(z_k / T))]` over the joint posterior, labels being independent given z. It
        sums to one. Computed by `score.aggregates.chained_products`.
        """
        correct_so_far = chained_products(*self._tempered())
        before = torch.cat([correct_so_far.new_ones(1), correct_so_far])
        return torch.cat([before[:-1] - before[1:], before[-1:]])

    def aggregate(self, by: Aggregate, *, draws: int | None = None, seed: int = 0) -> AggregateScore:
        """Mean and variance of one number for the response.

        Args:
            by: "mean" or "last" of the scores, exact, since both are linear; "min" of the scores, by Clark's moments;
                "product" of the probabilities `Π σ(z_k / T)`, by assumed density filtering (`score.aggregates`).
            draws: take the moments of "min" and "product" from so many draws of the joint posterior instead.
            seed: of the draws.

        Raises:
            InputError: an unknown aggregate, or no whole count of draws of at least 1.
        """
        if by not in get_args(Aggregate):
            raise InputError(f"the aggregate must be one of {', '.join(get_args(Aggregate))}, not {by!r}")
        mean, covariance = self.mean.double(), self.covariance.double()
        if by == "mean":
            return AggregateScore(float(mean.mean()), max(float(covariance.mean()), 0.0))
        if by == "last":
            return AggregateScore(float(mean[-1]), float(covariance[-1, -1]))
        if draws is not None:
            drawn = self.joint.samples(draws, seed).double()
            values = drawn.amin(1) if by == "min" else torch.sigmoid(drawn / self.joint.temperature).prod(1)
            return AggregateScore(float(values.mean()), float(values.var(correction=0)))
        return AggregateScore(*(minimum(mean, covariance) if by == "min" else product(*self._tempered())))

    def token_rewards(self, k: float = 0.0) -> Tensor:  # shape: (T,)
        """`mean − k · std` at each segment's last token and zero elsewhere: a reward for each of `input_ids`.

        Raises:
            InputError: a k that is no finite number.
        """
        if isinstance(k, bool) or not isinstance(k, Real) or not math.isfinite(k):
            raise InputError(f"k must be a finite number, not {shown(k)}")
        rewards = self.mean.new_zeros(len(self.input_ids))
        rewards[self.ends] = self.mean - k * self.std
        return rewards

    def _tempered(self) -> tuple[Tensor, Tensor]:  # shapes: (S,), (S, S)
        """Mean and covariance of the scores over the temperature."""
        temperature = self.joint.temperature
        return self.mean.double() / temperature, self.covariance.double() / temperature**2


def segment_scores(
    passes: Passes,
    rows: Sequence[SegmentedRow],
    posterior: Posterior,
    outside: Outside = "auto",
) -> list[SegmentScores]:
    """Scores of the segments of each response.

    Args:
        passes: a token classifier.
        rows: the responses.
        posterior: on the device of the passes.
        outside: as for `whitened_gradients`.

    Raises:
        InputError: a score or a variance that is NaN or infinite, by its response.
    """
    is_causal = passes.forward.shortcuts.no_mask
    found: dict[int, SegmentScores] = {}
    for positions in _in_batches(passes, rows, posterior):
        whole = [rows[i].whole(is_causal) for i in positions]
        for i, joint in zip(positions, joint_scores(passes, whole, posterior, outside), strict=True):
            ends = torch.tensor(rows[i].ends, dtype=torch.int64, device="cpu")
            found[i] = SegmentScores(joint, rows[i].row.input_ids, ends)
    return [found[i] for i in range(len(rows))]


def _in_batches(passes: Passes, rows: Sequence[SegmentedRow], posterior: Posterior) -> Iterator[list[int]]:
    """Positions of responses with as many segments each, few enough that all of their gradients fit in memory."""
    a_gradient = max(posterior.parameters * passes.tapped.gradient_dtype.itemsize, 1)
    free = min(free_bytes(device) for device in (passes.device, torch.device("cpu")))
    by_count: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_count.setdefault(len(row.ends), []).append(i)
    for count, positions in by_count.items():
        size = min(max(int(SHARE_FOR_GRADIENTS * free) // (count * a_gradient), 1), MOST_RESPONSES)
        for start in range(0, len(positions), size):
            yield positions[start : start + size]
