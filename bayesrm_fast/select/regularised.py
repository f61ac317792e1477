"""Rules that keep a choice near what the policy usually says."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.select.checks import at_least
from bayesrm_fast.select.rules import KnownCandidates, Need, PenalisedReward, Rule
from bayesrm_fast.select.stochastic import check_scores


@dataclass(frozen=True)
class MeanSimilarity(Rule):
    """Mean similarity to all candidates, itself among them: minimum Bayes risk, without any reward."""

    needs = frozenset({Need.SIMILARITIES})

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.similarities is not None
        return known.similarities.mean(1)


@dataclass(frozen=True)
class LogProbability(Rule):
    """Log-probability of the response under the policy, in nats, summed over its tokens."""

    needs = frozenset({Need.LOG_PROBABILITIES})

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        assert known.log_probabilities is not None
        return known.log_probabilities


@dataclass(frozen=True)
class Regularised(Rule):
    """`reward + β·proximity`: regularised best-of-n (Jinnai et al., arXiv 2404.01054).

    With `LogProbability()` it is their RBoN-KL, with `MeanSimilarity()` their RBoN-WD, which is also MBR-BoN.

    Args:
        proximity: the rule that says how near a candidate is.
        beta: β, at least 0: of the reward's units for one of the proximity's.
        reward: the rule to regularise; by default the mean less one std.
        standardised: whether both are brought to mean 0 and std 1 over the prompt's candidates before they are added,
            so that one β suits prompts of any spread.

    Raises:
        InputError: a β that is negative or not finite, or rules that draw.
    """

    proximity: Rule = field(default_factory=MeanSimilarity)
    beta: float = 1.0
    reward: Rule = field(default_factory=PenalisedReward)
    standardised: bool = False

    grids = {"beta": (0.0, *(10.0**i for i in range(-4, 0)), 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        at_least(self.beta, 0, "beta")
        if not isinstance(self.standardised, bool):
            raise InputError(f"standardised must be true or false, not {shown(self.standardised)}")
        for name in ("proximity", "reward"):
            check_scores(name, getattr(self, name))

    @property
    def needs(self) -> frozenset[Need]:
        """Those of both."""
        return self.reward.needs | self.proximity.needs

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `Rule`."""
        reward, proximity = self.reward.scores(known), self.proximity.scores(known)
        if self.standardised:
            reward, proximity = standardised(reward), standardised(proximity)
        return reward + self.beta * proximity


def standardised(values: Tensor) -> Tensor:  # shapes: (n,) -> (n,)
    """Less their mean, in units of their std; zeros where all are equal."""
    centred = values.double() - values.double().mean()
    std = centred.square().mean().sqrt()
    # Equal values may differ from their mean by its rounding.
    rounding = torch.finfo(values.dtype).eps * values.double().abs().amax()
    return (centred / std if std > rounding else torch.zeros_like(centred)).to(values)
