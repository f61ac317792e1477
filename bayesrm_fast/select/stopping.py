"""When to stop drawing candidates: Pandora's box, with a reward whose mean and spread are learnt on the way.

Kalayci et al., arXiv 2510.01394: where each draw v costs c and the best so far can be kept, it is optimal to draw until
the best is at least the reservation value τ, `E (v − τ)⁺ = c` (Weitzman, Econometrica 47, 1979).
"""

import math

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite, positive
from bayesrm_fast.select.excess import expected_excess, reservation_value

TYPICAL_DRAWS = 20
"""How many draws a std from other prompts is worth."""


def stopping_threshold(mean: float, std: float, cost: float) -> float:
    """The reservation value of draws from a known N(mean, std²): `σ (φ(z) − z Φ(−z)) = c`, `z = (τ − mean) / σ`.

    Args:
        mean: of the rewards of a prompt's responses.
        std: of the same; 0 gives `mean − c`.
        cost: c of a draw, in units of the reward.

    Raises:
        InputError: a mean that is not finite, a std that is negative, or a cost that is not above 0.
    """
    return reservation_value(_one(finite(mean, "mean")), _one(at_least(std, 0, "std")), positive(cost, "cost"))


class Stopping:
    """Draws candidates of one prompt until another one is not worth its cost.

    The rewards' population is taken for Gaussian, its mean and std unknown: given n draws, the next one is
    `N(m, s² (1 + 1/n) ν / (ν − 2))`, m and s² their mean and variance, with the variance of Student's t of ν degrees of
    freedom. Drawing stops as soon as `E (v − best)⁺` of that is at most the cost. A population may end where the
    Gaussian goes on, and then no draw is ever good enough; so the probability of a better one is held to `2 / (n + 1)`,
    twice what the last of n + 1 exchangeable draws has of being the best.

    A candidate's own posterior variance is not part of the population's: what is kept is worth its posterior mean, and
    drawing another candidate does not make the reward of this one known. It counts by the penalty alone,
    `v = mean − k·std`.

    Args:
        cost: of one draw, in units of the reward.
        typical_std: of the rewards' means within a prompt, from other prompts: worth 20 draws. Without it at least four
            draws are made, and a cost above a tenth of the std is better served by a fixed number of draws.
        k: of the penalty.

    Raises:
        InputError: a cost or a typical std that is not a finite number above 0, or a k that is negative or not finite.
    """

    def __init__(self, cost: float, *, typical_std: float | None = None, k: float = 0.0) -> None:
        self.cost = positive(cost, "cost")
        self.k = at_least(k, 0, "k")
        self.typical_std = None if typical_std is None else positive(typical_std, "typical_std")
        self._values: list[float] = []
        self._mean = 0.0
        self._squares = 0.0
        self._best = -1

    def observe(self, mean: float, variance: float = 0.0) -> None:
        """Take the next candidate.

        Args:
            mean: its reward, in any gauge that is the same for all candidates of the prompt.
            variance: of its reward; of a difference where there is something to take it to.

        Raises:
            InputError: values that are not finite, or a negative variance, with the candidate's position.
        """
        position = len(self._values)
        variance = at_least(variance, 0, f"the variance of candidate {position}")
        value = finite(mean, f"the reward of candidate {position}") - self.k * math.sqrt(variance)
        self._values.append(value)
        step = value - self._mean
        self._mean += step / len(self._values)
        self._squares += step * (value - self._mean)
        if position == 0 or value > self._values[self._best]:
            self._best = position

    @property
    def drawn(self) -> int:
        """How many candidates were taken."""
        return len(self._values)

    @property
    def best(self) -> int:
        """Position of the best candidate so far, the first of equals.

        Raises:
            InputError: no candidate was taken.
        """
        if not self._values:
            raise InputError("no candidate was taken, so that there is no best one")
        return self._best

    @property
    def threshold(self) -> float:
        """τ of the next draw; infinite as long as too few draws are known."""
        if math.isinf(std := self._predictive_std()):
            return math.inf
        return stopping_threshold(self._mean, std, self.cost)

    @property
    def expected_gain(self) -> float:
        """Of one more draw, over the best so far and before its cost; infinite as long as too few draws are known."""
        if math.isinf(std := self._predictive_std()):
            return math.inf
        best = self._values[self._best]
        gain = float(expected_excess(_one(self._mean), _one(std), best))
        exceeds = math.erfc((best - self._mean) / (std * math.sqrt(2))) / 2 if std > 0 else 0.0
        return gain * min(1.0, 2 / ((self.drawn + 1) * exceeds)) if exceeds > 0 else gain

    @property
    def should_stop(self) -> bool:
        """Whether another draw is not worth its cost."""
        return self.expected_gain <= self.cost

    def _predictive_std(self) -> float:
        prior = 0 if self.typical_std is None else TYPICAL_DRAWS
        freedom = self.drawn - 1 + prior
        if self.drawn == 0 or freedom <= 2:
            return math.inf
        squares = self._squares + (0.0 if self.typical_std is None else prior * self.typical_std**2)
        return math.sqrt(squares / (freedom - 2) * (1 + 1 / self.drawn))


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, device="cpu")
