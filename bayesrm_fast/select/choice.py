"""Rules served: what each needs is computed, and no more of it than the choice takes."""

import itertools
import math
import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.passes import Passes, Progress
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.joint import JointRewards, joint_rewards
from bayesrm_fast.score.means import bounded_rewards, rewards_of
from bayesrm_fast.score.relative import score_differences, within_prompts
from bayesrm_fast.score.variances import score_examples, truncated_and_tokens
from bayesrm_fast.select.rules import FROM_OUTSIDE, KnownCandidates, Need, Rule, StochasticRule, first_best
from bayesrm_fast.select.search import LazySearch
from bayesrm_fast.text.examples import TokenizedRow, distinct
from bayesrm_fast.text.records import Candidates
from bayesrm_fast.text.texts import Text, key_of

CPU_WAVE = 1 / 8
"""Of a batch: what a lazy search asks for at a time on a CPU, which is as fast on few rows as on many."""


@dataclass(frozen=True)
class BestOfN:
    """The chosen candidate.

    Attributes:
        index: its position among the responses; the lower one of equals. Of a rule that draws, the drawn one.
        response: the response itself.
        scores: the rule's `[n]`; NaN where the variance was not needed to choose. Of a rule that draws, the
            probabilities of being drawn.
        mean: MAP rewards less their `baseline` `[n]`.
        variance: posterior variances of the same `[n]`, in squared units of the reward; NaN where it was not needed.
        truncated: which rows `max_length` cut, `[n]`.
        tokens: that were read of each row, after it was cut, `[n]`.
        variances_computed: how many candidates have their variance; equal ones take one computation.
        baseline: mean reward of the candidates, where mean and variance are those of the difference to it; None where
            they are the rewards' own.
    """

    index: int
    response: Text
    scores: Tensor
    mean: Tensor
    variance: Tensor
    truncated: Tensor
    tokens: Tensor
    variances_computed: int
    baseline: float | None = None


def chosen(rule: Rule, one: Candidates, known: KnownCandidates, truncated: Tensor, tokens: Tensor) -> BestOfN:
    """The best by what is known; for a rule that needs variances a candidate without one is known to lose.

    Raises:
        InputError: a rule that does not give one score for each candidate, or whose best is not finite.
    """
    variance = torch.full_like(known.mean, torch.nan) if known.variance is None else known.variance
    for place, reward in enumerate(known.mean.tolist()):
        if not math.isfinite(reward):
            raise InputError(f"{_name(one)}: the reward of response {place + 1} is {reward}")
    scores = rule.scores(known)
    if not isinstance(scores, Tensor):
        raise InputError(f"{type(rule).__name__} gave {type(scores).__name__}, not a tensor of scores")
    if scores.shape != known.mean.shape:
        raise InputError(f"{type(rule).__name__} gave scores {list(scores.shape)} for {len(known.mean)} candidates")
    if isinstance(rule, StochasticRule):
        index = rule.drawn(
            _checked_probabilities(rule, scores, one), "\0".join(map(key_of, (one.prompt, *one.responses)))
        )
    else:
        can_win = torch.where(variance.isnan(), torch.nan, scores) if Need.VARIANCE in rule.needs else scores
        index = first_best(can_win)
        if not math.isfinite(best := float(can_win[index])):
            raise InputError(f"{type(rule).__name__} gave no candidate of {_name(one)} a score: the best is {best}")
    computed = int((~variance.isnan()).sum())
    return BestOfN(index, one.responses[index], scores, known.mean, variance, truncated, tokens, computed)


def _checked_probabilities(rule: StochasticRule, scores: Tensor, one: Candidates) -> Tensor:  # shape: (n,)
    if not (scores.isfinite().all() and (scores >= 0).all() and float(scores.sum()) > 0):
        raise InputError(
            f"{type(rule).__name__} gave the candidates of {_name(one)} no probabilities: {scores.tolist()}"
        )
    return scores


def _name(one: Candidates) -> str:
    return one.where or "the prompt"


def choose_each(
    passes: Passes,
    candidates: Sequence[Candidates],
    rows: Sequence[TokenizedRow],
    posterior: Posterior,
    rule: Rule,
    *,
    relative: bool = True,
    exhaustive: bool = False,
    progress: Progress | None = None,
) -> list[BestOfN]:
    """The best candidate of every prompt.

    Relative variances take one backward pass over all candidates. Absolute ones are asked for lazily where the rule has
    ceilings. Of a rule that needs none, only the winners' are computed, and are the rewards' own.

    Args:
        passes: the model.
        candidates: of each prompt.
        rows: all candidates of the first prompt, then all of the second, and so on.
        posterior: on the device of the passes.
        rule: one that needs no ensemble.
        relative: whether mean and variance are those of the difference to the mean of the prompt's candidates.
        exhaustive: compute every variance, also where it is not needed to choose.
        progress: told the candidates whose means are known and their total.

    Raises:
        InputError: a rule that needs what is not there.
    """
    check_needs(rule, candidates)
    needs = rule.needs | ({Need.VARIANCE} if exhaustive else set())
    lazily = None if relative or exhaustive else rule
    found = know_each(passes, candidates, rows, posterior, needs, relative=relative, lazily=lazily, progress=progress)
    sets = _sets(candidates, rows)
    results = []
    for one, own, (known, baseline) in zip(candidates, sets, found, strict=True):
        results.append(replace(chosen(rule, one, known, *truncated_and_tokens(own)), baseline=baseline))
    return _with_winners_variances(passes, sets, posterior, results)


def know_each(
    passes: Passes,
    candidates: Sequence[Candidates],
    rows: Sequence[TokenizedRow],
    posterior: Posterior,
    needs: Set[Need],
    *,
    relative: bool = True,
    lazily: Rule | None = None,
    progress: Progress | None = None,
) -> list[tuple[KnownCandidates, float | None]]:
    """What is needed of every prompt's candidates, and the mean reward that it is relative to.

    Args:
        passes, candidates, rows, posterior, relative, progress: as for `choose_each`.
        needs: of what the candidates do not bring themselves.
        lazily: a rule whose choice is all that absolute variances are for: they are NaN where it needs none.
    """
    sets = _sets(candidates, rows)
    bounds = list(itertools.pairwise(itertools.accumulate((len(own) for own in sets), initial=0)))
    joints: list[JointRewards | None] = [None] * len(sets)
    variances: list[Tensor] | list[None] = [None] * len(sets)
    baselines: list[float] | list[None] = [None] * len(sets)
    if Need.JOINT in needs:
        found = [joint_rewards(passes, own, posterior) for own in sets]
        if relative:
            baselines = [float(joint.mean.double().mean()) for joint in found]
            found = [joint.relative() for joint in found]
        joints = list(found)
        means = [joint.mean for joint in found]
        variances = [joint.covariance.diagonal() for joint in found]
    elif Need.VARIANCE in needs and relative:
        comparisons = within_prompts([range(start, stop) for start, stop in bounds])
        differences = score_differences(passes, rows, comparisons, posterior, progress)
        means, variances = _by_sets(sets, differences.mean, differences.variance)
        baselines = [float(differences.baseline[start]) for start, _ in bounds]
    elif Need.VARIANCE in needs and lazily is not None and _has_ceilings(lazily):
        means, variances = _lazily(passes, sets, posterior, lazily, progress)
    elif Need.VARIANCE in needs:
        means, variances = _by_sets(sets, *score_examples(passes, rows, posterior, progress))
    else:
        (means,) = _by_sets(sets, rewards_of(passes, rows, progress))
    known = [
        KnownCandidates(
            mean,
            variance,
            joint,
            log_probabilities=_tensor(one.log_probabilities),
            similarities=_tensor(one.similarities),
        )
        for one, mean, variance, joint in zip(candidates, means, variances, joints, strict=True)
    ]
    return list(zip(known, baselines, strict=True))


def _sets(candidates: Sequence[Candidates], rows: Sequence[TokenizedRow]) -> list[Sequence[TokenizedRow]]:
    """Every prompt's own rows."""
    starts = itertools.accumulate((len(one.responses) for one in candidates), initial=0)
    return [rows[start:stop] for start, stop in itertools.pairwise(starts)]


def check_needs(rule: Rule, candidates: Sequence[Candidates]) -> None:
    """Raise InputError where a rule needs what one reward model and these candidates cannot give."""
    name = type(rule).__name__
    if Need.MEMBERS in rule.needs:
        raise InputError(f"{name} is a rule for the members of an ensemble: use RewardEnsemble")
    for need in FROM_OUTSIDE:
        absent = [one.where for one in candidates if getattr(one, need) is None]
        if need in rule.needs and absent:
            raise InputError(f"{name} needs {need}, which {absent[0]} does not have: {FROM_OUTSIDE[need]}")


def _lazily(
    passes: Passes, sets: Sequence[Sequence[TokenizedRow]], posterior: Posterior, rule: Rule, progress: Progress | None
) -> tuple[list[Tensor], list[Tensor]]:  # shapes of each: (n,), (n,)
    """Means of every prompt's candidates, and their variances, NaN where one was not needed."""
    rows = [row for own in sets for row in own]
    means, floors = _by_sets(sets, *bounded_rewards(passes, rows, posterior, progress))
    wave_tokens = passes.budget.batch_tokens
    if passes.device.type == "cpu":
        wave_tokens = int(CPU_WAVE * wave_tokens)
    # Equal candidates have one variance, and the first of them is the one that may win.
    firsts, wheres = zip(*(distinct(own) for own in sets), strict=True)
    search = LazySearch(
        rule,
        [mean[first] for mean, first in zip(means, firsts, strict=True)],
        [floor[first] for floor, first in zip(floors, firsts, strict=True)],
        [[len(own[i].input_ids) for i in first] for own, first in zip(sets, firsts, strict=True)],
        wave_tokens,
    )
    while wave := search.next_wave():
        asked = [sets[prompt][firsts[prompt][candidate]] for prompt, candidate in wave]
        search.learn(wave, score_examples(passes, asked, posterior)[1])
    return means, [variance[where] for variance, where in zip(search.variances, wheres, strict=True)]


def _with_winners_variances(
    passes: Passes, sets: Sequence[Sequence[TokenizedRow]], posterior: Posterior, found: list[BestOfN]
) -> list[BestOfN]:
    """The same choices; a variance is computed for those winners that have none."""
    bare = [number for number, best in enumerate(found) if best.variance[best.index].isnan()]
    if not bare:
        return found
    winners = [sets[number][found[number].index] for number in bare]
    for number, variance in zip(bare, score_examples(passes, winners, posterior)[1], strict=True):
        best = found[number]
        best.variance[best.index] = variance
        found[number] = replace(best, variances_computed=best.variances_computed + 1)
    return found


def _by_sets(sets: Sequence[Sequence[TokenizedRow]], *values: Tensor) -> tuple[list[Tensor], ...]:
    """Values of all rows, for each set its own."""
    counts = [len(own) for own in sets]
    return tuple(list(one.split(counts)) for one in values)


def _has_ceilings(rule: Rule) -> bool:
    nothing = torch.zeros(1, dtype=torch.float32, device="cpu")
    if set(rule.needs) == {Need.VARIANCE} and rule.ceilings(nothing, nothing) is not None:
        return True
    warnings.warn(f"{type(rule).__name__} has no ceilings, so every variance is computed", stacklevel=2)
    return False


def _tensor(values: Sequence[float] | Sequence[Sequence[float]] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float64, device="cpu")
