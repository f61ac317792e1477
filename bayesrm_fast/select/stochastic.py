"""Rules that draw a candidate: softer choices, which over-optimise less, each by any rule's scores.

What they choose by is `reward`, by default the mean less one std of the difference to the prompt's candidates; with
`MeanReward()` they are as in their papers.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.score.joint import DRAWS, MOST_DRAWS
from bayesrm_fast.select.checks import at_least, positive, whole
from bayesrm_fast.select.pessimism import pessimism
from bayesrm_fast.select.pools import best_of_poisson, best_of_subset, soft_best_of_draws, soft_best_of_n, top_share
from bayesrm_fast.select.rules import KnownCandidates, Need, PenalisedReward, Rule, StochasticRule

ALL = 10**6
"""Of a parameter: more candidates than any prompt has."""


@dataclass(frozen=True)
class _ByReward(StochasticRule):
    """A distribution over candidates by their scores under another rule."""

    reward: Rule = field(default_factory=PenalisedReward, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_scores("reward", self.reward)
        whole(self.seed, 0, "seed")

    @property
    def needs(self) -> frozenset[Need]:
        """Those of the reward."""
        return self.reward.needs

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `StochasticRule`."""
        return self.probabilities(self.reward.scores(known))

    @abstractmethod
    def probabilities(self, scores: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        """Of being chosen."""


@dataclass(frozen=True)
class SoftBestOfN(_ByReward):
    """`P(i) ∝ exp(score_i / temperature)` (Verdun et al., arXiv 2505.03156).

    Args:
        temperature: above 0, in units of the reward.
        reward: whose scores; any rule that has some.
        seed: of the draw.

    Raises:
        InputError: a temperature that is not above 0 or not finite.
    """

    temperature: float = 1.0

    grids = {"temperature": (1e-6, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self.temperature, "temperature")

    def probabilities(self, scores: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        """See `soft_best_of_n`."""
        return soft_best_of_n(scores, self.temperature)


@dataclass(frozen=True)
class JointSoftBestOfN(StochasticRule):
    """Soft best-of-n of rewards that are drawn together: the mean softmax over draws of the joint posterior.

    As the temperature goes to 0 it becomes the probability of being the best, and its draw Thompson's.

    Args:
        temperature: above 0, in units of the reward.
        draws: of the joint posterior, by a seed of their own.
        seed: of the choice.

    Raises:
        InputError: a temperature that is not above 0 or not finite, or no whole number of draws from 1 to `MOST_DRAWS`.
    """

    temperature: float = 1.0
    draws: int = DRAWS // 16
    seed: int = 0

    needs = frozenset({Need.JOINT})
    grids = SoftBestOfN.grids

    def __post_init__(self) -> None:
        positive(self.temperature, "temperature")
        whole(self.draws, 1, "draws", most=MOST_DRAWS)
        whole(self.seed, 0, "seed")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `StochasticRule`."""
        assert known.joint is not None
        return soft_best_of_draws(known.joint.samples(self.draws), self.temperature)


@dataclass(frozen=True)
class BestOfSubset(_ByReward):
    """The best of n candidates drawn from the prompt's, without replacement: a smaller best-of-n.

    Args:
        n: of how many, at least 1; all of them where a prompt has fewer.
        reward, seed: as for `SoftBestOfN`.

    Raises:
        InputError: an n that is no whole number of at least 1.
    """

    n: int = ALL

    grids = {"n": (ALL, 1, 2, 4, 8, 16, 32, 64)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.n, 1, "n")

    def probabilities(self, scores: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        """See `best_of_subset`."""
        return best_of_subset(scores, min(self.n, len(scores)))


@dataclass(frozen=True)
class BestOfPoisson(_ByReward):
    """The best of `1 + Poisson(θ)` of the prompt's candidates (arXiv 2506.19248).

    Args:
        theta: θ, at least 0.
        reward, seed: as for `SoftBestOfN`.

    Raises:
        InputError: a θ that is negative or not finite.
    """

    theta: float = 16.0

    grids = {"theta": (ALL, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.theta, 0, "theta")

    def probabilities(self, scores: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        """See `best_of_poisson`."""
        return best_of_poisson(scores, self.theta)


@dataclass(frozen=True)
class TopShare(_ByReward):
    """Uniform among the top `⌈n / m⌉` of n candidates: E_M best-of-n (arXiv 2603.05739).

    Args:
        m: at least 1; 1 for any candidate.
        reward, seed: as for `SoftBestOfN`.

    Raises:
        InputError: an m below 1 or not finite.
    """

    m: float = 8.0

    grids = {"m": (ALL, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.m, 1, "m")

    def probabilities(self, scores: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        """See `top_share`."""
        return top_share(scores, self.m)


@dataclass(frozen=True)
class Pessimism(_ByReward):
    """Weights `relu((score − λ) / β)` of mean one: inference-time pessimism (Huang et al., arXiv 2503.21878).

    Args:
        beta: β, above 0, in units of the reward.
        reward: as for `SoftBestOfN`.
        seed: of the draw.

    Raises:
        InputError: a β that is not above 0 or not finite.
    """

    beta: float = 1.0

    grids = {"beta": (1e-6, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self.beta, "beta")

    def probabilities(self, scores: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
        """See `pessimism`."""
        return pessimism(scores, self.beta)


@dataclass(frozen=True)
class ExpectedPessimism(StochasticRule):
    """Inference-time pessimism by the weights that are expected under the posterior of each reward.

    An uncertain reward may be a large one, so that its weight is larger: below the spread of the rewards, the smaller β
    is, the more does it choose by the std.

    Args:
        beta: β, above 0, in units of the reward.
        seed: of the draw.

    Raises:
        InputError: a β that is not above 0 or not finite.
    """

    beta: float = 1.0
    seed: int = 0

    needs = frozenset({Need.VARIANCE})
    grids = {"beta": Pessimism.grids["beta"][::-1]}  # noqa: RUF012  (the largest is nearest to no choice at all)

    def __post_init__(self) -> None:
        positive(self.beta, "beta")
        whole(self.seed, 0, "seed")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `StochasticRule`."""
        assert known.variance is not None
        return pessimism(known.mean, self.beta, known.variance.sqrt())


def check_scores(name: str, rule: Any) -> None:
    """Raise InputError for what is no rule, and for one that draws: its probabilities are no rewards."""
    if not isinstance(rule, Rule):
        raise InputError(f"{name} must be a rule, not {shown(rule)}")
    if isinstance(rule, StochasticRule):
        raise InputError(f"{name} must be a rule that scores, not {type(rule).__name__}, which draws")
