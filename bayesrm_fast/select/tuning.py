"""A rule's parameters, chosen by judged responses."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior.base import PenaltyChoice
from bayesrm_fast.select.estimators import expected_best_of_n, mean_and_standard_error, sizes_up_to
from bayesrm_fast.select.rules import KnownCandidates, MeanReward, PenalisedReward, Rule, StochasticRule
from bayesrm_fast.text.records import Candidates
from bayesrm_fast.text.texts import key_of

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
        digest: of the prompt's text, by which it is known again.
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
        return [self._drawn_gold(rule, n) for n in sizes]

    def mean_gold(self, rule: Rule) -> float:
        """Over the sizes of `curve`."""
        curve = self.curve(rule)
        return sum(curve) / len(curve)

    def _drawn_gold(self, rule: StochasticRule, n: int) -> float:
        count, gold = len(self.gold), self.gold.double()
        if n == count:
            return float(rule.scores(self.known).double() @ gold)
        generator = torch.Generator().manual_seed(n)
        total = 0.0
        for _ in range(SUBSETS):
            some = torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")[:n].sort().values
            total += float(rule.scores(self.known.at(some)).double() @ gold[some])
        return total / SUBSETS


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
    """By which a prompt is known again."""
    return hashlib.sha256(key_of(one.prompt).encode("utf-8", "surrogatepass")).hexdigest()


def grid_of(rule: Rule, parameters: Sequence[str] | Mapping[str, Sequence[float]] | None) -> dict[str, Sequence[float]]:
    """Values to choose from by the parameter's name.

    Args:
        rule: whose.
        parameters: names, of a nested rule's parameter as `reward.k`; or names with values, the first of which is that
            of no effect; None for all of the rule's own.

    Raises:
        InputError: nothing to tune, an unknown parameter, or one without values.
    """
    if parameters is None:
        parameters = list(rule.grids)
    if not parameters:
        raise InputError(f"{type(rule).__name__} has no parameter to tune")
    if not isinstance(parameters, Mapping):
        parameters = {name: _grid(rule, name) for name in parameters}
    for name, values in parameters.items():
        if not values:
            raise InputError(f"there are no values to choose {name} from")
        for value in values:
            changed(rule, {name: value})
    return dict(parameters)


def changed(rule: Rule, values: Mapping[str, float]) -> Rule:
    """The rule with other values of its parameters, or of those of the rules that it is made of.

    Raises:
        InputError: an unknown parameter, or a value that it cannot take.
    """
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = getattr(rule, first, None)
        if first not in {one.name for one in fields(rule)} or (rest and not isinstance(inner, Rule)):  # type: ignore[arg-type]
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
    gold = torch.tensor(
        [[one.mean_gold(candidate) for candidate in rules] for one in told], dtype=torch.float64, device="cpu"
    )
    best = _best(gold)
    gain, error = gain_by_folds(gold, [one.digest for one in told])
    return TunedRule(
        rules[best],
        points[best],
        len(told),
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
    shared = [(own[: len(sizes)], other[: len(sizes)]) for own, other in curves]
    gain, error = mean_and_standard_error([own[-1] - other[-1] for own, other in curves])
    gold, by_mean = (
        torch.tensor(one, dtype=torch.float64, device="cpu").mean(0).tolist() for one in zip(*shared, strict=True)
    )
    return RuleReport(sizes, gold, by_mean, gain, math.nan if math.isinf(error) else error, len(prompts))


def _grid(rule: Rule, name: str) -> Sequence[float]:
    first, _, rest = str(name).partition(".")
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


def gain_by_folds(gold: Tensor, digests: Sequence[str]) -> tuple[float, float]:  # shape: (prompts, points)
    """Mean and standard error of what the other folds choose over the first point; a prompt's rows are in one fold."""
    numbers = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
    folds = torch.tensor([numbers[one] % FOLDS for one in digests], dtype=torch.int64, device="cpu")
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
