"""Rows of rules that draw, with the mean and the exact relative posterior as their rewards; and of HedgeTune."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bayesrm_fast.select.estimators import expected_gold, sizes_up_to
from bayesrm_fast.select.hedged_rules import HedgedRuleKind, hedged
from bayesrm_fast.select.hedging import HedgingPool
from bayesrm_fast.select.pools import soft_best_of_draws
from bayesrm_fast.select.rules import KnownCandidates, MeanReward, Need, PenalisedReward, StochasticRule
from bayesrm_fast.select.stochastic import (
    BestOfPoisson,
    BestOfSubset,
    ExpectedPessimism,
    Pessimism,
    SoftBestOfN,
    TopShare,
)

Arrays = Mapping[str, np.ndarray]

SUBSETS = 8
"""Drawn of each size and task: over 59 tasks and five seeds their error is a tenth of that over tasks."""

REWARDS = {"mean": MeanReward(), "exact relative std, k = 1": PenalisedReward()}


@dataclass(frozen=True)
class SoftOfDraws(StochasticRule):
    """Soft best-of-n by draws of the joint posterior that were kept, which stand for an ensemble's members."""

    temperature: float

    needs = frozenset({Need.MEMBERS})
    grids = SoftBestOfN.grids

    def scores(self, known: KnownCandidates) -> Tensor:  # shape: (n,)
        """See `StochasticRule`."""
        assert known.members is not None
        return soft_best_of_draws(known.members, self.temperature)


DRAWN: dict[str, StochasticRule] = {
    f"{name}, {reward}": rule(reward=REWARDS[reward])
    for name, rule in (
        ("soft best-of-n", SoftBestOfN),
        ("best-of-Poisson", BestOfPoisson),
        ("top share", TopShare),
        ("pessimism", Pessimism),
    )
    for reward in REWARDS
} | {"pessimism, expected under the exact posterior": ExpectedPessimism()}

HEDGED: dict[str, HedgedRuleKind] = {
    f"HedgeTune, {name}, {reward}": rule(reward=REWARDS[reward])
    for name, rule in (("best-of-n", BestOfSubset), ("soft", SoftBestOfN), ("Poisson", BestOfPoisson))
    for reward in REWARDS
}


def choices_of(rule: StochasticRule) -> dict[str, StochasticRule]:
    """The rule at every value of its grid."""
    ((name, values),) = rule.grids.items()
    return {f"{name} = {value:g}": replace(rule, **{name: value}) for value in values}  # type: ignore[type-var]


def known_of(task: Arrays) -> KnownCandidates:
    """All samples of a task, the exact posterior's stds relative to them at its own λ by evidence."""
    draws = task["draws"][:, task["samples"]] if "draws" in task else None
    return KnownCandidates(
        torch.from_numpy(task["mean"][task["samples"]]),
        torch.from_numpy(task["exact/relative"][-1][task["samples"]] ** 2),
        members=None if draws is None else torch.from_numpy(draws),
    )


def drawn_curve(rule: StochasticRule, task: Arrays) -> np.ndarray:  # shape: (sizes,)
    """Expected gold of the rule's draw among n of the samples, at every size."""
    known, gold = known_of(task), torch.from_numpy(task["gold"]).double()
    values = [
        expected_gold(lambda some: rule.scores(known.at(some)), gold, n, subsets=SUBSETS, seed=n).value
        for n in sizes_up_to(len(gold))[1:]
    ]
    return np.array([float(gold.mean()), *values])


def hedged_by(rule: HedgedRuleKind, tasks: Sequence[Arrays]) -> tuple[str, StochasticRule]:
    """What HedgeTune makes of a rule on some tasks."""
    known = [known_of(task) for task in tasks]
    pools = [
        HedgingPool(rule.reward.scores(one), torch.from_numpy(task["gold"]).double())
        for one, task in zip(known, tasks, strict=True)
    ]
    found = hedged(rule, pools, 0.0)
    where = "interior" if found.found.is_interior else "an end"
    return f"{found.found.parameter:.4g} ({where})", found.rule
