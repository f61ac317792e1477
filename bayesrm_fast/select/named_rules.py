"""Rules by name, and as objects of JSON: for the command line, for servers and for records."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from bayesrm_fast.errors import InputError, named, shortened, shown
from bayesrm_fast.schema import parsed
from bayesrm_fast.select.checks import at_least
from bayesrm_fast.select.regularised import LogProbability, MeanSimilarity, Regularised
from bayesrm_fast.select.rules import (
    EntropicReward,
    LeastRegret,
    MeanReward,
    MostProbablyBest,
    PenalisedReward,
    Rule,
    ThompsonSampling,
    UncertaintyWeighted,
    WorstCase,
    parameters_of,
)
from bayesrm_fast.select.stochastic import (
    BestOfPoisson,
    BestOfSubset,
    ExpectedPessimism,
    JointSoftBestOfN,
    Pessimism,
    SoftBestOfN,
    TopShare,
)
from bayesrm_fast.text.texts import described

RULES: dict[str, Callable[..., Rule]] = {
    "mean": MeanReward,
    "std": partial(PenalisedReward, "std"),
    "variance": partial(PenalisedReward, "variance"),
    "entropic": EntropicReward,
    "worst": WorstCase,
    "uncertainty": UncertaintyWeighted,
    "most_probably_best": MostProbablyBest,
    "least_regret": LeastRegret,
    "thompson": ThompsonSampling,
    "soft": SoftBestOfN,
    "joint_soft": JointSoftBestOfN,
    "subset": BestOfSubset,
    "poisson": BestOfPoisson,
    "top": TopShare,
    "pessimism": Pessimism,
    "expected_pessimism": ExpectedPessimism,
    "mbr": MeanSimilarity,
    "log_probability": LogProbability,
    "regularised": Regularised,
    "rbon_wd": partial(Regularised, MeanSimilarity()),
    "rbon_kl": partial(Regularised, LogProbability()),
}
"""What a rule is made by, for every name."""


def rule_of(rule: str | Mapping[str, Any] | Rule, k: float | None = None) -> Rule:
    """A rule by its name in `RULES` or by its description; a rule itself as it is.

    Args:
        rule: a name, for a rule's own parameters; an object of JSON, as text or as a mapping, with the name as `rule`
            and its parameters, among which further rules may be; or a `Rule`.
        k: for a name: weight of the penalty of the rule, or of the `reward` that it goes by. Default: the rule's own.

    Raises:
        InputError: an unknown rule or parameter, a parameter that the rule cannot take, or a k that it does not read.
    """
    is_named = isinstance(rule, str) and not rule.lstrip().startswith("{")
    if k is not None and not is_named and isinstance(rule, str | Mapping | Rule):
        raise InputError("k goes with a rule's name: a description or a Rule has its own weights")
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str) and not is_named:
        rule = parsed(rule, "the rule")
    if isinstance(rule, Mapping):
        try:
            return _described(rule)
        except RecursionError as error:
            raise InputError("the rule is nested too deeply") from error
    made = _maker(rule)()
    if k is None:
        return made
    at_least(k, 0, "k")
    weighted = _weighted(made, k)
    if weighted is None:
        raise InputError(f"rule {rule} has no weight k")
    return weighted


def description_of(rule: Rule) -> dict[str, Any]:
    """What `rule_of` makes an equal rule of, in JSON's types.

    Raises:
        InputError: a rule that has no name.
    """
    # One value has one description, by which a resumed run is known, whether it was given as 1 or as 1.0.
    floats: set[str] = {field.name for field in fields(rule) if field.type is float} if is_dataclass(rule) else set()
    own = {name: getattr(rule, name) for name in parameters_of(rule)}
    own |= {name: float(own[name]) for name in floats}
    if isinstance(rule, PenalisedReward):
        name = own.pop("penalty")
    elif type(rule) in _NAMES:
        name = _NAMES[type(rule)]
    else:
        raise InputError(f"{type(rule).__name__} has no name, so it cannot be described: give one of {_all_names()}")
    return {"rule": name} | {key: description_of(v) if isinstance(v, Rule) else v for key, v in own.items()}


def weighs_the_std(rule: Any) -> bool:
    """Whether the k of a named rule is a weight of the std, or of nothing."""
    if not isinstance(rule, str) or rule not in RULES:
        return False
    made = RULES[rule]()
    reward = getattr(made, "reward", made)
    return isinstance(reward, MeanReward) or (isinstance(reward, PenalisedReward) and reward.penalty == "std")


_NAMES = {make: name for name, make in RULES.items() if isinstance(make, type)} | {PenalisedReward: "std"}


def _all_names() -> str:
    return ", ".join(RULES)


def _maker(name: Any) -> Callable[..., Rule]:
    if not isinstance(name, str) or name not in RULES:
        given = shown(name) if isinstance(name, str) else described(name)
        raise InputError(f"rule must be one of {_all_names()}, a description or a Rule, not {given}")
    return RULES[name]


def _weighted(rule: Rule, k: float) -> Rule | None:
    """The same with another weight of its penalty, or of its reward's; None where neither has one."""
    parts = parameters_of(rule)
    if "k" in parts:
        return replace(rule, k=k)  # type: ignore[type-var]
    if "reward" in parts:
        return replace(rule, reward=_weighted(rule.reward, k))  # type: ignore[type-var, attr-defined]
    return None


def _described(given: Mapping[str, Any]) -> Rule:
    if "rule" not in given:
        raise InputError(f"a rule must name itself as 'rule': one of {_all_names()}")
    name = given["rule"]
    make = _maker(name)
    parameters = {key: _described(v) if isinstance(v, Mapping) else v for key, v in given.items() if key != "rule"}
    takes = parameters_of(make())[len(make.args) if isinstance(make, partial) else 0 :]
    unknown = [shortened(str(key)) for key in parameters if key not in takes]
    if unknown:
        raise InputError(f"rule {name} takes {', '.join(takes) or 'no parameters'}, not {named(unknown)}")
    return make(**parameters)
