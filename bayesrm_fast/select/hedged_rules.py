"""Rules that hedge, with the parameter at which the expected gold is largest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.hedging import HedgedParameter, HedgingPool, LawFamily, hedge, value_of
from bayesrm_fast.select.laws import BestOfNLaw, BestOfPoissonLaw, SoftBestOfNLaw
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.select.stochastic import BestOfPoisson, BestOfSubset, SoftBestOfN

HEDGING_DRAWS = 1024
"""Of the rewards of a prompt's candidates, where they are hedged by what they might be."""

FAMILIES: dict[type, tuple[LawFamily, str]] = {
    BestOfSubset: (BestOfNLaw, "n"),
    SoftBestOfN: (SoftBestOfNLaw, "temperature"),
    BestOfPoisson: (BestOfPoissonLaw, "theta"),
}
"""Law and parameter of the rules that hedge."""

HedgedRuleKind = BestOfSubset | SoftBestOfN | BestOfPoisson


@dataclass(frozen=True)
class HedgedRule:
    """A rule that chooses as hard as is worth it.

    Attributes:
        rule: to choose by; an n is rounded to the better whole number beside it.
        found: the parameter, whether it is inside of the curve, and the curve.
    """

    rule: HedgedRuleKind
    found: HedgedParameter


def checked_hedging(rule: Rule) -> HedgedRuleKind:
    """The rule; raises InputError where it does not hedge."""
    if not isinstance(rule, HedgedRuleKind):
        raise InputError(f"{type(rule).__name__} has no strength to hedge by: use subset, soft or poisson")
    return rule


def hedged(rule: HedgedRuleKind, pools: Sequence[HedgingPool], aversion: float) -> HedgedRule:
    """The rule at the parameter that `hedge` finds; raises what it does."""
    law, name = FAMILIES[type(rule)]
    found = hedge(law, pools, aversion)
    value: Any = found.parameter
    if isinstance(rule, BestOfSubset):
        value = max(int(value), 1)
        if found.is_interior:
            value = max((value, value + 1), key=lambda n: value_of(law(n), pools, aversion)[0])
    return HedgedRule(replace(rule, **{name: value}), found)
