"""Laws of the chosen candidate's quantile U, where the base's is uniform on (0, 1).

U is the share of the base's responses whose proxy reward is below the chosen one's: 1 is the best. A law has a
parameter θ of how hard it optimises, a density `p_θ(u)` and the score function `∂_θ log p_θ(u)`, of mean 0 under p_θ.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite_values, positive
from bayesrm_fast.select.pools import soft_best_of_n, worst_to_best


class Law(ABC):
    """A stochastic rule at one value of its parameter θ, over a pool that stands for the base."""

    @abstractmethod
    def of_pool(self, scores: Tensor) -> tuple[Tensor, Tensor]:  # shape: (N,) -> (N,), (N,)
        """Probability of each of N candidates, and its derivative in θ, float64; the derivatives sum to 0.

        Raises:
            InputError: scores that are not finite.
        """

    @staticmethod
    @abstractmethod
    def path(pools: Sequence[Tensor], points: int) -> list[float]:
        """Values of θ from the one that optimises least to the one that does most on pools of these scores."""


class QuantileLaw(Law):
    """A law of U itself, whatever the scores are.

    On a pool the draws are with replacement: the candidate of rank i of N has `P((i − 1)/N < U ≤ i/N)`. Of equal scores
    the lower index has the higher rank.
    """

    @abstractmethod
    def density(self, u: Tensor) -> Tensor:
        """`p_θ(u)`, float64 of the shape of u.

        Raises:
            InputError: a u outside [0, 1].
        """

    @abstractmethod
    def score_function(self, u: Tensor) -> Tensor:
        """`∂_θ log p_θ(u)`, float64 of the shape of u; may be infinite at u = 0.

        Raises:
            InputError: a u outside [0, 1].
        """


@dataclass(frozen=True)
class BestOfNLaw(QuantileLaw):
    """Best-of-n for a real n ≥ 1: `p_n(u) = n u^{n−1}`, score function `1/n + log u`.

    Raises:
        InputError: an n that is not a finite number of at least 1.
    """

    n: float

    def __post_init__(self) -> None:
        at_least(self.n, 1, "n")

    def density(self, u: Tensor) -> Tensor:
        """See `QuantileLaw`."""
        density: Tensor = self.n * _quantiles(u) ** (self.n - 1)
        return density

    def score_function(self, u: Tensor) -> Tensor:
        """See `QuantileLaw`."""
        return 1 / self.n + _quantiles(u).log()

    def of_pool(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantileLaw`."""
        held, u = _edges(scores)
        cumulative = u**self.n
        return _of_bins(held, cumulative, torch.xlogy(cumulative, u))

    @staticmethod
    def path(pools: Sequence[Tensor], points: int) -> list[float]:
        """See `Law`: from one draw to as many as the largest pool has candidates."""
        return _geometric(1.0, max(len(scores) for scores in pools), points)


@dataclass(frozen=True)
class BestOfPoissonLaw(QuantileLaw):
    """Best-of-n with `n = 1 + Poisson(θ)` (Khalaf et al., arXiv 2506.19248): `p_θ(u) = (θu + 1) e^{θ(u−1)}`.

    The mean of `n u^{n−1}` over n. The score function is `u / (θu + 1) + u − 1`.

    Raises:
        InputError: a θ that is not a finite number of at least 0.
    """

    theta: float

    def __post_init__(self) -> None:
        at_least(self.theta, 0, "theta")

    def density(self, u: Tensor) -> Tensor:
        """See `QuantileLaw`."""
        u = _quantiles(u)
        return (self.theta * u + 1) * (self.theta * (u - 1)).exp()

    def score_function(self, u: Tensor) -> Tensor:
        """See `QuantileLaw`."""
        u = _quantiles(u)
        return u / (self.theta * u + 1) + u - 1

    def of_pool(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantileLaw`."""
        held, u = _edges(scores)
        cumulative = u * (self.theta * (u - 1)).exp()
        return _of_bins(held, cumulative, (u - 1) * cumulative)

    @staticmethod
    def path(pools: Sequence[Tensor], points: int) -> list[float]:
        """See `Law`: from one draw to a mean of as many as the largest pool has candidates."""
        return [size - 1 for size in BestOfNLaw.path(pools, points)]


@dataclass(frozen=True)
class SoftBestOfNLaw(Law):
    """Soft best-of-n: `P(i) ∝ e^{r_i/λ}`, with the score function `(Σ_j P(j) r_j − r_i) / λ²`.

    One softmax over the whole pool. The quantile's density is `N P(i)` between `(i − 1)/N` and `i/N`, i the rank: for a
    large N the tilted law `e^{r/λ}` that soft best-of-n tends to (Verdun et al., arXiv 2505.03156).

    Attributes:
        temperature: λ, in units of the scores; a larger one optimises less.

    Raises:
        InputError: a temperature that is not a finite number above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature")

    def of_pool(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `Law`."""
        held = finite_values(scores, "scores")
        probabilities = soft_best_of_n(held, self.temperature)
        return probabilities, probabilities * _below_mean(held, probabilities) / self.temperature**2

    @staticmethod
    def path(pools: Sequence[Tensor], points: int) -> list[float]:
        """See `Law`: from 100 stds of the pools' scores, which is almost uniform, down to 1/1000."""
        spread = float(torch.stack([scores.double().var(correction=0) for scores in pools]).mean().sqrt())
        return _geometric(100 * spread, spread / 1000, points)


def _geometric(first: float, last: float, points: int) -> list[float]:
    steps = [first * (last / first) ** (i / (points - 1)) for i in range(points)]
    return [first, *steps[1:-1], last]


def _below_mean(scores: Tensor, probabilities: Tensor) -> Tensor:
    centred = scores - scores.mean()
    return probabilities @ centred - centred


def _quantiles(u: Tensor) -> Tensor:
    held = u.detach().to("cpu", torch.float64)
    if not bool(((held >= 0) & (held <= 1)).all()):
        raise InputError("quantiles must be between 0 and 1")
    return held


def _edges(scores: Tensor) -> tuple[Tensor, Tensor]:  # shape: (N,) -> (N,), (N + 1,)
    held = finite_values(scores, "scores")
    return held, torch.arange(len(held) + 1, dtype=torch.float64, device="cpu") / len(held)


def _of_bins(scores: Tensor, cumulative: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor]:
    order = worst_to_best(scores)
    probabilities, slopes = torch.empty_like(scores), torch.empty_like(scores)
    probabilities[order], slopes[order] = cumulative.diff(), derivative.diff()
    return probabilities, slopes
