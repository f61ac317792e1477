"""A rule's parameters, chosen by judged responses."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior.base import PenaltyChoice
from bayesrm_fast.select.estimators import expected_best_of_n, expected_gold, mean_and_standard_error, sizes_up_to
from bayesrm_fast.select.rules import KnownCandidates, MeanReward, PenalisedReward, Rule, StochasticRule, parameters_of
from bayesrm_fast.text.layouts import as_messages, without_spacing
from bayesrm_fast.text.records import Candidates
from bayesrm_fast.text.texts import as_list, is_list, key_of

WEIGHTS = PenalisedReward.grids["k"]
"""k to choose from."""

FOLDS = 5
"""Of the prompts: what a choice is worth is measured on those that it was not made by."""

SUBSETS = 32
"""Drawn of each size, for the gold of a rule that draws."""


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt's candidates with what they are worth.

    Attributes:
        known: of the n candidates.
        gold: `[n]`.
        digest: of the prompt's text, by which it is known again; rows of one prompt count as one prompt together.
    """

    known: KnownCandidates
    gold: Tensor
    digest: str

    def curve(self, rule: Rule) -> list[float]:
        """Expected gold of best-of-n at n = 2, 4, … and all.

        Of a rule that scores, exact over all subsets, by scores among all candidates. Of one that draws, over `SUBSETS`
        seeded subsets of each size, in each of which it draws by what it would know of them alone.
        """
        sizes = sizes_up_to(len(self.gold))[1:]  # of one candidate every rule picks that one
        if not isinstance(rule, StochasticRule):
            scores = rule.scores(self.known)
            return [expected_best_of_n(scores, self.gold, n) for n in sizes]
        return [
            expected_gold(lambda some: rule.scores(self.known.at(some)), self.gold, n, subsets=SUBSETS, seed=n).value
            for n in sizes
        ]

    def mean_gold(self, rule: Rule) -> float:
        """Over the sizes of `curve`."""
        curve = self.curve(rule)
        return sum(curve) / len(curve)


@dataclass(frozen=True)
class TunedRule:
    """A rule with the parameters that judged prompts chose, and what they are worth.

    Attributes:
        rule: to choose by.
        parameters: the chosen values by name; a nested rule's as `reward.k`.
        prompts: how many prompts there were whose candidates' gold differs.
        gain: what the choosing added to the gold of the choice by the rule without effect (the first values of its
            grids), over prompts and n, each measured on a fold of the prompts by what the other folds chose.
        standard_error: of that over prompts; NaN of fewer prompts than two.
        indifferent: of each parameter the least and the largest value, the others as chosen, at which gold is not below
            the chosen one's by more than one standard error of the difference.
        curve: every combination of the grids with its mean gold, on all prompts.
        digests: of the prompts, which `report` refuses.
    """

    rule: Rule
    parameters: Mapping[str, float]
    prompts: int
    gain: float
    standard_error: float
    indifferent: Mapping[str, tuple[float, float]]
    curve: Sequence[tuple[Mapping[str, float], float]] = field(repr=False)
    digests: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class RuleReport:
    """What a rule is worth on judged prompts.

    Attributes:
        sizes: n, those that every prompt has.
        gold: mean gold of the choice among n candidates, over prompts.
        gold_by_mean: the same of the choice by the mean alone.
        gain: of the rule over the mean, at the largest n of each prompt.
        standard_error: of the gain over prompts; NaN of a single prompt.
        prompts: how many.
    """

    sizes: Sequence[int]
    gold: Sequence[float]
    gold_by_mean: Sequence[float]
    gain: float
    standard_error: float
    prompts: int


def digest_of(one: Candidates) -> str:
    """By which a prompt is known again, in whatever spacing, as a string or as the one message of a user."""
    asked, _ = as_messages(one.prompt, "")
    return hashlib.sha256(key_of([without_spacing(message) for message in asked]).encode()).hexdigest()


def grid_of(rule: Rule, parameters: Sequence[str] | Mapping[str, Sequence[float]] | None) -> dict[str, Sequence[float]]:
    """Values to choose from by the parameter's name.

    Args:
        rule: whose.
        parameters: names, of a nested rule's parameter as `reward.k`; or names with values, the first of which is that
            of no effect; None for all of the rule's own.

    Raises:
        InputError: nothing to tune, an unknown parameter, or one without values that are numbers.
    """
    if parameters is None:
        parameters = list(rule.grids)
    if not isinstance(parameters, Mapping) and not is_list(parameters):
        raise InputError(f"parameters must be a list of names, or values by name, not {parameters!r}")
    if not parameters:
        raise InputError(f"{type(rule).__name__} has no parameter to tune")
    if not isinstance(parameters, Mapping):
        parameters = {str(name): _grid(rule, str(name)) for name in parameters}
    grid = {str(name): as_list(values) for name, values in parameters.items()}
    for name, values in grid.items():
        if not is_list(values) or not all(isinstance(value, Real) for value in values):
            raise InputError(f"the values to choose {name} from must be a list of numbers, not {values!r}")
        if not values:
            raise InputError(f"there are no values to choose {name} from")
        for value in values:
            changed(rule, {name: value})
    return grid


def changed(rule: Rule, values: Mapping[str, float]) -> Rule:
    """The rule with other values of its parameters, or of those of the rules that it is made of.

    Raises:
        InputError: an unknown parameter, or a value that it cannot take.
    """
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = getattr(rule, first, None)
        if first not in parameters_of(rule) or (rest and not isinstance(inner, Rule)):
            raise InputError(f"{type(rule).__name__} has no parameter {name!r}")
        rule = replace(rule, **{first: changed(inner, {rest: value}) if rest else value})  # type: ignore[type-var, arg-type]
    return rule


def tuned(rule: Rule, grid: Mapping[str, Sequence[float]], prompts: Sequence[JudgedPrompt]) -> TunedRule:
    """The values of a grid with the most gold, where their gain over no effect is beyond one standard error.

    The error is that of the best of several: where no value helps, one of them passes by luck in about a third of the
    cases of seven values, with a gain that is as small as the error. So what the choosing gains is told by folds.

    Args:
        rule: its parameters outside of the grid stay.
        grid: values by name; the first of each are those of no effect.
        prompts: those whose candidates' gold does not differ say nothing.

    Raises:
        InputError: no prompt whose candidates' gold differs.
    """
    told = [one for one in prompts if len(one.gold) > 1 and float(one.gold.max()) > float(one.gold.min())]
    if not told:
        raise InputError("there is nothing to tune by: no prompt has responses of different gold")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    rules = [changed(rule, point) for point in points]
    gold = _by_prompt([[one.mean_gold(candidate) for candidate in rules] for one in told], told)
    best = _best(gold)
    gain, error = gain_by_folds(gold)
    return TunedRule(
        rules[best],
        points[best],
        len(gold),
        gain,
        error,
        {name: _indifferent(gold, points, best, name) for name in grid},
        list(zip(points, gold.mean(0).tolist(), strict=True)),
        frozenset(one.digest for one in prompts),
    )


def report(rule: Rule, prompts: Sequence[JudgedPrompt]) -> RuleReport:
    """Gold of best-of-n by a rule, beside the mean's."""
    curves = [(one.curve(rule), one.curve(MeanReward())) for one in prompts]
    sizes = sizes_up_to(min(len(one.gold) for one in prompts))[1:]
    gains = _by_prompt([[own[-1] - other[-1]] for own, other in curves], prompts)[:, 0].tolist()
    gain, error = mean_and_standard_error(gains)
    gold, by_mean = (
        _by_prompt([curve[: len(sizes)] for curve in one], prompts).mean(0).tolist()
        for one in zip(*curves, strict=True)
    )
    return RuleReport(sizes, gold, by_mean, gain, math.nan if math.isinf(error) else error, len(gains))


def _by_prompt(values: Sequence[Sequence[float]], rows: Sequence[JudgedPrompt]) -> Tensor:  # shape: (prompts, points)
    """Means over the rows of each prompt: what they share makes them no independent samples of prompts."""
    numbers = {digest: number for number, digest in enumerate(dict.fromkeys(row.digest for row in rows))}
    owners = torch.tensor([numbers[row.digest] for row in rows], dtype=torch.int64, device="cpu")
    held = torch.tensor(values, dtype=torch.float64, device="cpu")
    total = held.new_zeros(len(numbers), held.shape[1]).index_add_(0, owners, held)
    return total / owners.bincount()[:, None]


def _grid(rule: Rule, name: str) -> Sequence[float]:
    first, _, rest = name.partition(".")
    inner = getattr(rule, first, None)
    if rest and isinstance(inner, Rule):
        return _grid(inner, rest)
    if rest or first not in rule.grids:
        known = ", ".join(rule.grids) or "none"
        raise InputError(f"{type(rule).__name__} has no values to choose {name} from (it has {known}): give them")
    return rule.grids[first]


def _best(gold: Tensor) -> int:  # shape: (prompts, points)
    """Of the points; the first, unless another's gain over it is beyond one standard error."""
    best = int(gold.mean(0).argmax())
    gain, error = mean_and_standard_error((gold[:, best] - gold[:, 0]).tolist())
    return best if gain > error else 0


def gain_by_folds(gold: Tensor) -> tuple[float, float]:  # shape: (prompts, points)
    """Mean and standard error of what the other folds of the prompts choose over the first point."""
    folds = torch.arange(len(gold), dtype=torch.int64, device="cpu") % FOLDS
    gains: list[float] = []
    for fold in range(FOLDS):
        own = folds == fold
        if own.any() and not own.all():
            gains += (gold[own][:, _best(gold[~own])] - gold[own][:, 0]).tolist()
    if not gains:
        return 0.0, math.nan
    gain, error = mean_and_standard_error(gains)
    return gain, math.nan if math.isinf(error) else error


def _indifferent(gold: Tensor, points: Sequence[Mapping[str, float]], best: int, name: str) -> tuple[float, float]:
    values = []
    for at, point in enumerate(points):
        if all(point[other] == points[best][other] for other in point if other != name):
            loss, error = mean_and_standard_error((gold[:, best] - gold[:, at]).tolist())
            if at == best or loss <= error:
                values.append(point[name])
    return min(values), max(values)


def tuned_by_gold(prompts: Sequence[JudgedPrompt]) -> PenaltyChoice:
    """The k of `WEIGHTS` for the std, as `tuned` chooses it.

    Raises:
        InputError: no prompt whose candidates' gold differs.
    """
    found = tuned(PenalisedReward(), {"k": WEIGHTS}, prompts)
    curve = [(point["k"], gold) for point, gold in found.curve]
    return PenaltyChoice(found.parameters["k"], "responses", found.prompts, found.gain, found.standard_error, curve)


def tuned_by_pairs(
    mean: Tensor,  # shape: (M,), of the chosen response's difference less the rejected one's
    std: Tensor,  # shape: (M,), of their stds
    prompts: int,
) -> PenaltyChoice:
    """The k of `WEIGHTS` under which `p(chosen) = σ(a (Δμ − k Δs))`, a the best for it, has the smallest NLL.

    0 where that is not beyond one standard error of the difference to k = 0. Pairs say little about the tail that a
    large n draws from.
    """
    nll = torch.stack([_negative_log_likelihoods(mean.double() - k * std.double()) for k in WEIGHTS])
    best = int(nll.mean(1).argmin())
    gain, error = mean_and_standard_error((nll[0] - nll[best]).tolist())
    k = WEIGHTS[best] if gain > error else 0.0
    return PenaltyChoice(k, "pairs", prompts, math.nan, math.nan)


def _negative_log_likelihoods(difference: Tensor) -> Tensor:  # shape: (M,)
    """`−log σ(a d)` of each pair at the a ≥ 0 that makes their mean least, which is convex in a."""
    low, high = 0.0, 1e6 / float(difference.abs().mean().clamp(min=torch.finfo(difference.dtype).tiny))
    for _ in range(100):
        middle = (low + high) / 2
        slope = -(difference * torch.sigmoid(-middle * difference)).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    likelihoods: Tensor = -torch.nn.functional.logsigmoid(low * difference)
    return likelihoods
