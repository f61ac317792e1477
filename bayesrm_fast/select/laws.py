"""Laws of the chosen candidate's quantile U, where the base's is uniform on (0, 1).

U is the share of the base's responses whose proxy reward is below the chosen one's: 1 is the best. A law has a
parameter θ of how hard it optimises, a density `p_θ(u)` and the score function `∂_θ log p_θ(u)`, of mean 0 under p_θ.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite_values, positive
from bayesrm_fast.select.pools import soft_best_of_n, worst_to_best


class QuantileLaw(ABC):
    """The law of U at one θ."""

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

    @abstractmethod
    def of_pool(self, scores: Tensor) -> tuple[Tensor, Tensor]:  # shape: (N,) -> (N,), (N,)
        """Probability of each of N candidates, and its derivative in θ, with the pool in place of the base.

        Draws are with replacement: the candidate of rank i has `P((i − 1)/N < U ≤ i/N)`. Of equal scores the lower
        index has the higher rank.
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


class SoftBestOfNLaw(QuantileLaw):
    """Soft best-of-n on a pool of N: `P(i) ∝ e^{r_i/λ}`, and `p_λ(u) = N P(i)` for the i of rank `⌈N u⌉`.

    The score function is `(Σ_j P(j) r_j − r_i) / λ²`. One softmax over the pool, which is its own base: as N grows this
    is the tilted law `e^{r/λ}` that soft best-of-n tends to (Verdun et al., arXiv 2505.03156).

    Args:
        scores: r `[N]`.
        temperature: λ, in units of the scores; a larger one optimises less.

    Raises:
        InputError: scores that are not finite, or a temperature that is not a finite number above 0.
    """

    def __init__(self, scores: Tensor, temperature: float) -> None:
        self.temperature = positive(temperature, "temperature")
        self.scores = finite_values(scores, "scores")

    def density(self, u: Tensor) -> Tensor:
        """See `QuantileLaw`."""
        probabilities = soft_best_of_n(self.scores, self.temperature)
        return len(self.scores) * self._at(u, probabilities)

    def score_function(self, u: Tensor) -> Tensor:
        """See `QuantileLaw`."""
        probabilities = soft_best_of_n(self.scores, self.temperature)
        return self._at(u, _below_mean(self.scores, probabilities) / self.temperature**2)

    def of_pool(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `QuantileLaw`; of any pool, by the temperature alone."""
        held = finite_values(scores, "scores")
        probabilities = soft_best_of_n(held, self.temperature)
        return probabilities, probabilities * _below_mean(held, probabilities) / self.temperature**2

    def _at(self, u: Tensor, values: Tensor) -> Tensor:
        u = _quantiles(u)
        rank = (u * len(self.scores)).ceil().clamp(min=1).long() - 1
        return values[worst_to_best(self.scores)][rank]


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
