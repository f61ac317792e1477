"""Which candidate to pick: rules that say what they need to know of a prompt's candidates."""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.joint import DRAWS, JointRewards
from bayesrm_fast.select.checks import at_least, whole


class Need(StrEnum):
    """What a rule needs of the candidates beside their means, by the name that `KnownCandidates` has it under."""

    VARIANCE = "variance"
    JOINT = "joint"
    MEMBERS = "members"
    LOG_PROBABILITIES = "log_probabilities"
    SIMILARITIES = "similarities"


FROM_OUTSIDE = (Need.LOG_PROBABILITIES, Need.SIMILARITIES)
"""What no reward model can know: it comes with the candidates."""


@dataclass(frozen=True)
class KnownCandidates:
    """What is known of n candidates of one prompt; None for what was not asked for.

    Attributes:
        mean: MAP rewards `[n]`, of an ensemble the mean over its members.
        variance: posterior variances `[n]`, of an ensemble its mixture's.
        joint: the joint posterior of the rewards.
        members: MAP rewards of an ensemble's members `[M, n]`.
        log_probabilities: of the responses under the policy that wrote them `[n]`; from outside.
        similarities: of the responses `[n, n]`; from outside.
    """

    mean: Tensor
    variance: Tensor | None = None
    joint: JointRewards | None = None
    members: Tensor | None = None
    log_probabilities: Tensor | None = None
    similarities: Tensor | None = None

    def at(self, positions: Tensor) -> "KnownCandidates":  # shape: (m,)
        """What is known of some of them, as if they were all."""

        def taken(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[..., positions]

        return KnownCandidates(
            self.mean[positions],
            taken(self.variance),
            None if self.joint is None else self.joint.at(positions),
            taken(self.members),
            taken(self.log_probabilities),
            None if self.similarities is None else self.similarities[positions][:, positions],
        )


class Rule(ABC):
    """From what is known of a prompt's candidates to their scores; the largest is chosen, the first of equals.

    Attributes:
        needs: what it reads of `KnownCandidates` beside the means.
        grids: for each parameter that judged responses may tune the values to choose from. The first of them is what
            gains are told over: where there is such a value, it chooses as if the rule were not there.
    """

    grids: ClassVar[Mapping[str, Sequence[float]]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """See the class; of most rules an attribute of theirs."""
        return frozenset()

    @abstractmethod
    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """Score every candidate; what `needs` names is there."""

    def ceilings(self, mean: Tensor, floor: Tensor) -> Tensor | None:  # shapes: (n,), (n,) -> (n,)
        """What the scores cannot be above, from means and lower bounds of variances; None where nothing is known.

        A rule that has them reads means and variances alone and scores each candidate by itself, so that a candidate
        can be passed over without its variance.
        """
        return None


class StochasticRule(Rule):
    """A rule that draws: its scores are the probabilities of being chosen, and sum to one."""

    seed: int

    def drawn(self, probabilities: Tensor, key: str) -> int:  # shape: (n,)
        """The candidate of a draw that seed and key decide, wherever in a file and in which batch it is made."""
        total = probabilities.double().cumsum(0)
        # Adding up to a little less than one must not choose what has no probability.
        at = torch.searchsorted(total, random.Random(f"{self.seed}\0{key}").random() * float(total[-1]), right=True)
        return min(int(at), int(probabilities.nonzero().max()))


@dataclass(frozen=True)
class MeanReward(Rule):
    """The mean alone: the MAP choice."""

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        return known.mean


@dataclass(frozen=True)
class PenalisedReward(Rule):
    """`mean − k·std`, a lower confidence bound, or `mean − k·variance` (Yang et al., arXiv 2402.13210, section 3).

    Args:
        penalty: "std" or "variance".
        k: weight of the penalty.

    Raises:
        InputError: an unknown penalty, or a k that is negative or not finite.
    """

    penalty: str = "std"
    k: float = 1.0

    needs = frozenset({Need.VARIANCE})
    grids = {"k": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        if self.penalty not in ("std", "variance"):
            raise InputError(f"penalty must be std or variance, not {self.penalty!r}")
        at_least(self.k, 0, "k")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.variance is not None
        return self.ceilings(known.mean, known.variance)

    def ceilings(self, mean: Tensor, floor: Tensor) -> Tensor:
        """See `Rule`; a score falls as its variance grows."""
        return mean - self.k * (floor.sqrt() if self.penalty == "std" else floor)


@dataclass(frozen=True)
class EntropicReward(Rule):
    """The entropic risk `−(1/b)·log E exp(−b R)` of a Gaussian reward: `mean − b·variance / 2`, exactly.

    arXiv 2603.08145 and 2606.09073.

    Args:
        b: aversion to risk, in units of one over the reward; 0 for the mean.

    Raises:
        InputError: a b that is negative or not finite.
    """

    b: float = 1.0

    needs = frozenset({Need.VARIANCE})
    grids = {"b": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        at_least(self.b, 0, "b")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.variance is not None
        return self.ceilings(known.mean, known.variance)

    def ceilings(self, mean: Tensor, floor: Tensor) -> Tensor:
        """See `Rule`."""
        return mean - self.b / 2 * floor


@dataclass(frozen=True)
class WorstCase(Rule):
    """The least of an ensemble's rewards (Coste et al., arXiv 2310.02743, section 3)."""

    needs = frozenset({Need.MEMBERS})

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.members is not None
        return known.members.amin(0)


@dataclass(frozen=True)
class UncertaintyWeighted(Rule):
    """The mean less k times the variance between an ensemble's members (Coste et al., arXiv 2310.02743, section 3).

    Args:
        k: weight of the variance; 0.5 in Coste et al. for best-of-n.

    Raises:
        InputError: a k that is negative or not finite.
    """

    k: float = 0.5

    needs = frozenset({Need.MEMBERS})
    grids = {"k": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        at_least(self.k, 0, "k")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.members is not None
        return known.mean - self.k * known.members.var(0, correction=0)


@dataclass(frozen=True)
class MostProbablyBest(Rule):
    """The probability of having the largest reward, by draws of the joint posterior.

    Args:
        draws, seed: as for `JointRewards.probability_of_being_best`.

    Raises:
        InputError: no whole number of draws of at least 1, or no whole seed.
    """

    draws: int = DRAWS
    seed: int = 0

    needs = frozenset({Need.JOINT})

    def __post_init__(self) -> None:
        whole(self.draws, 1, "draws")
        whole(self.seed, 0, "seed")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.joint is not None
        return known.joint.probability_of_being_best(self.draws, self.seed)


@dataclass(frozen=True)
class LeastRegret(Rule):
    """The negative of what a choice is expected to lose. Its order is the mean's (docs/maths.md, section 11).

    Args:
        draws, seed: as for `JointRewards.expected_regret`.

    Raises:
        InputError: no whole number of draws of at least 1, or no whole seed.
    """

    draws: int = DRAWS
    seed: int = 0

    needs = frozenset({Need.JOINT})

    def __post_init__(self) -> None:
        whole(self.draws, 1, "draws")
        whole(self.seed, 0, "seed")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.joint is not None
        return -known.joint.expected_regret(self.draws, self.seed)


@dataclass(frozen=True)
class ThompsonSampling(StochasticRule):
    """The best candidate of one draw of the joint posterior: each is chosen as often as it is the best.

    Args:
        seed: of the draw.
        draws: by which the probabilities are known.

    Raises:
        InputError: no whole number of draws of at least 1, or no whole seed.
    """

    seed: int = 0
    draws: int = DRAWS // 16

    needs = frozenset({Need.JOINT})

    def __post_init__(self) -> None:
        whole(self.draws, 1, "draws")
        whole(self.seed, 0, "seed")

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `StochasticRule`."""
        assert known.joint is not None
        return known.joint.probability_of_being_best(self.draws)


def parameters_of(rule: Rule) -> list[str]:
    """Names of its fields; none of a rule of a caller's own that is no dataclass."""
    return [field.name for field in fields(rule)] if is_dataclass(rule) else []


def first_best(scores: Tensor) -> int:  # shape: (n,)
    """Position of the largest score, the lowest one of equals; NaN counts as no score."""
    known = scores.nan_to_num(nan=float("-inf"))
    return int(torch.nonzero(known == known.max())[0])
