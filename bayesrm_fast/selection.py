"""Which candidate to pick, and how few variances that needs."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.text import Text


@dataclass(frozen=True)
class Penalty:
    """A score from a reward's mean and variance.

    Attributes:
        score: from means `[n]` and variances `[n]` of one prompt's candidates to their scores `[n]`.
        ceiling: from means `[n]` and lower bounds of the variances `[n]`, perhaps zero, to upper bounds of the scores
            `[n]`. For a score that falls as the variance grows that is `score` itself; for any other that is never
            above the mean, the mean. Only where it is given can a candidate be passed over without its variance.
    """

    score: Callable[[Tensor, Tensor], Tensor]
    ceiling: Callable[[Tensor, Tensor], Tensor] | None = None


PENALTIES = ("none", "std", "variance")


@dataclass(frozen=True)
class BestOfN:
    """The chosen candidate.

    Attributes:
        index: its position among the responses; the lower one of equals.
        response: the response itself.
        scores: penalised rewards `[n]`; NaN where the variance was not needed to choose.
        mean: MAP rewards `[n]`.
        variance: posterior variances `[n]`, in squared units of the reward; NaN where it was not needed.
        truncated: which rows `max_length` cut, `[n]`.
        variances: how many variances were computed.
    """

    index: int
    response: Text
    scores: Tensor
    mean: Tensor
    variance: Tensor
    truncated: Tensor
    variances: int


def penalty_of(penalty: str | Penalty, k: float) -> Penalty:
    """`mean`, `mean − k·std` or `mean − k·variance` (Yang et al., arXiv 2402.13210, section 3), by name.

    Raises:
        InputError: an unknown penalty, or a k that is negative or not finite.
    """
    if isinstance(penalty, Penalty):
        return penalty
    if penalty not in PENALTIES:
        raise InputError(f"penalty must be one of {', '.join(PENALTIES)}, not {penalty!r}")
    if not 0 <= k < float("inf"):
        raise InputError(f"k must be a finite number of at least 0, not {k}")

    def score(mean: Tensor, variance: Tensor) -> Tensor:
        if penalty == "none":
            return mean
        return mean - k * (variance.sqrt() if penalty == "std" else variance)

    return Penalty(score, ceiling=score)


def penalised(mean: Tensor, variance: Tensor, penalty: str | Penalty, k: float) -> Tensor:  # shapes: (n,), (n,)
    """Scores `[n]` under a penalty."""
    return penalty_of(penalty, k).score(mean, variance)


def first_best(scores: Tensor) -> int:
    """Position of the largest score, the lowest one of equals; NaN counts as no score."""
    known = scores.nan_to_num(nan=float("-inf"))
    return int(torch.nonzero(known == known.max())[0])


@dataclass
class _Search:
    """One prompt's candidates, from the largest ceiling down, until none that is left can win."""

    mean: Tensor
    ceiling: Tensor
    taken: int = 0
    best: int = -1
    best_score: float = float("-inf")

    def __post_init__(self) -> None:
        self.variance = torch.full_like(self.mean, float("nan"))
        ceiling, order = torch.sort(self.ceiling, descending=True, stable=True)
        self.order: list[int] = order.tolist()
        self.ceilings: list[float] = ceiling.tolist()  # read one by one, which a tensor is slow at

    def next_open(self, ahead: int) -> int | None:
        """The candidate `ahead` places on, if it can still win."""
        at = self.taken + ahead
        if at >= len(self.order):
            return None
        candidate, ceiling = self.order[at], self.ceilings[at]
        can_win = ceiling > self.best_score or (ceiling == self.best_score and candidate < self.best)
        return candidate if can_win else None

    def learn(self, candidate: int, variance: Tensor, penalty: Penalty) -> None:
        self.variance[candidate] = variance
        self.taken += 1
        score = float(penalty.score(self.mean[candidate : candidate + 1], self.variance[candidate : candidate + 1]))
        if score > self.best_score or (score == self.best_score and candidate < self.best):
            self.best, self.best_score = candidate, score


def needed_variances(
    means: Sequence[Tensor],  # shape of each: (n,)
    ceilings: Sequence[Tensor],  # shape of each: (n,)
    tokens: Sequence[Sequence[int]],
    penalty: Penalty,
    variances: Callable[[list[tuple[int, int]]], Tensor],
    wave_tokens: int,
) -> list[Tensor]:  # shape of each: (n,)
    """The variances without which the best penalised candidate of each prompt cannot be told; NaN elsewhere.

    Candidates are taken from the largest ceiling down, and a prompt is done as soon as the next ceiling is below the
    best score found: the winner is the same as with all variances. Candidates of all prompts that are not done are
    computed together.

    Args:
        means: of each prompt's candidates.
        ceilings: what their scores cannot be above.
        tokens: lengths of the candidates, which fill a wave.
        penalty: gives the scores.
        variances: of `(prompt, candidate)` pairs.
        wave_tokens: where the open prompts' next candidates have fewer tokens, further ones are computed with them.
    """
    searches = [_Search(mean, ceiling) for mean, ceiling in zip(means, ceilings, strict=True)]
    while True:
        wave = _wave(searches, tokens, wave_tokens)
        if not wave:
            return [search.variance for search in searches]
        for (prompt, candidate), variance in zip(wave, variances(wave), strict=True):
            searches[prompt].learn(candidate, variance, penalty)


def _wave(searches: Sequence[_Search], tokens: Sequence[Sequence[int]], wave_tokens: int) -> list[tuple[int, int]]:
    """The next candidate of every open prompt; where they are few, also those after it, as long as they find room."""
    wave: list[tuple[int, int]] = []
    filled = 0
    for ahead in itertools.count():
        candidates = [(p, c) for p, search in enumerate(searches) if (c := search.next_open(ahead)) is not None]
        for prompt, candidate in candidates:
            if ahead > 0 and filled + tokens[prompt][candidate] > wave_tokens:
                return wave
            wave.append((prompt, candidate))
            filled += tokens[prompt][candidate]
        if not candidates:
            break
    return wave
