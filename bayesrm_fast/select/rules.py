"""Which candidate to pick: rules that say what they need to know of a prompt's candidates."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.joint import JointRewards


class Need(StrEnum):
    """What a rule needs of the candidates beside their means, by the name that `KnownCandidates` has it under."""

    VARIANCE = "variance"
    JOINT = "joint"
    MEMBERS = "members"
    LOG_PROBABILITIES = "log_probabilities"
    SIMILARITIES = "similarities"


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


class Rule(ABC):
    """From what is known of a prompt's candidates to their scores; the largest is chosen, the first of equals.

    Attributes:
        needs: what it reads of `KnownCandidates` beside the means.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """Score every candidate; what `needs` names is there."""

    def ceilings(self, mean: Tensor, floor: Tensor) -> Tensor | None:  # shapes: (n,), (n,) -> (n,)
        """What the scores cannot be above, from means and lower bounds of variances; None where nothing is known.

        A rule that has them reads means and variances alone and scores each candidate by itself, so that a candidate
        can be passed over without its variance.
        """
        return None


class MeanReward(Rule):
    """The mean alone: the MAP choice."""

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        return known.mean


class PenalisedReward(Rule):
    """`mean − k·std` or `mean − k·variance` (Yang et al., arXiv 2402.13210, section 3).

    Args:
        penalty: "std" or "variance".
        k: weight of the penalty.

    Raises:
        InputError: an unknown penalty, or a k that is negative or not finite.
    """

    needs = frozenset({Need.VARIANCE})

    def __init__(self, penalty: str = "std", k: float = 1.0) -> None:
        if penalty not in ("std", "variance"):
            raise InputError(f"penalty must be std or variance, not {penalty!r}")
        self.penalty, self.k = penalty, _weight(k)

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.variance is not None
        return self.ceilings(known.mean, known.variance)

    def ceilings(self, mean: Tensor, floor: Tensor) -> Tensor:
        """See `Rule`; a score falls as its variance grows."""
        return mean - self.k * (floor.sqrt() if self.penalty == "std" else floor)


class WorstCase(Rule):
    """The least of an ensemble's rewards (Coste et al., arXiv 2310.02743, section 3)."""

    needs = frozenset({Need.MEMBERS})

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.members is not None
        return known.members.amin(0)


class UncertaintyWeighted(Rule):
    """The mean less k times the variance between an ensemble's members (Coste et al., arXiv 2310.02743, section 3).

    Args:
        k: weight of the variance; 0.5 in Coste et al. for best-of-n.

    Raises:
        InputError: a k that is negative or not finite.
    """

    needs = frozenset({Need.MEMBERS})

    def __init__(self, k: float = 0.5) -> None:
        self.k = _weight(k)

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.members is not None
        return known.mean - self.k * known.members.var(0, correction=0)


RULES = ("mean", "std", "variance", "worst", "uncertainty")
"""Names that `rule_of` knows; the last two are for ensembles."""


def rule_of(rule: str | Rule, k: float) -> Rule:
    """A rule by its name in `RULES`, `k` being the weight of its penalty; a rule itself as it is.

    Raises:
        InputError: an unknown rule, or a k that is negative or not finite.
    """
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise InputError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
    _weight(k)
    if rule == "mean":
        return MeanReward()
    if rule == "worst":
        return WorstCase()
    return UncertaintyWeighted(k) if rule == "uncertainty" else PenalisedReward(rule, k)


def _weight(k: float) -> float:
    try:
        is_weight = bool(0 <= k < float("inf"))
    except (TypeError, ValueError, RuntimeError):  # text; an array or a tensor of several
        is_weight = False
    if not is_weight:
        raise InputError(f"k must be a finite number of at least 0, not {k!r}")
    return k


def first_best(scores: Tensor) -> int:
    """Position of the largest score, the lowest one of equals; NaN counts as no score."""
    known = scores.nan_to_num(nan=float("-inf"))
    return int(torch.nonzero(known == known.max())[0])
