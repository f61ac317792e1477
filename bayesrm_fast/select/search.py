"""The fewest variances without which the best candidate of each prompt cannot be told."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.rules import KnownCandidates, Rule


class LazySearch:
    """Asks for variances of candidates from the largest ceiling down, until none that is left can win.

    A prompt is done as soon as the next ceiling is below the best score found: the winner is the same as with all
    variances. Candidates of all prompts that are not done are asked for together.

    Args:
        rule: one with ceilings.
        means: of each prompt's candidates `[n]`.
        floors: lower bounds of their variances `[n]`.
        tokens: lengths of the candidates, which fill a wave.
        wave_tokens: where the open prompts' next candidates have fewer tokens, further ones are asked for with them.
    """

    def __init__(
        self,
        rule: Rule,
        means: Sequence[Tensor],
        floors: Sequence[Tensor],
        tokens: Sequence[Sequence[int]],
        wave_tokens: int,
    ) -> None:
        self.tokens, self.wave_tokens = tokens, wave_tokens
        self._open = [_OpenPrompt(rule, mean, floor) for mean, floor in zip(means, floors, strict=True)]

    @property
    def variances(self) -> list[Tensor]:  # shape of each: (n,)
        """Those that have been learnt; NaN elsewhere."""
        return [prompt.variance for prompt in self._open]

    def next_wave(self) -> list[tuple[int, int]]:
        """`(prompt, candidate)` of the next candidate of every open prompt; none where every winner is known.

        Where they are few, also those after it, as long as they find room.
        """
        wave: list[tuple[int, int]] = []
        filled = 0
        for ahead in itertools.count():
            candidates = [(p, c) for p, prompt in enumerate(self._open) if (c := prompt.next_open(ahead)) is not None]
            for prompt, candidate in candidates:
                if ahead > 0 and filled + self.tokens[prompt][candidate] > self.wave_tokens:
                    return wave
                wave.append((prompt, candidate))
                filled += self.tokens[prompt][candidate]
            if not candidates:
                break
        return wave

    def learn(self, wave: Sequence[tuple[int, int]], variances: Tensor) -> None:  # shape: (len(wave),)
        """Take the variances of a wave."""
        for (prompt, candidate), variance in zip(wave, variances, strict=True):
            self._open[prompt].learn(candidate, variance)


@dataclass
class _OpenPrompt:
    """One prompt's candidates."""

    rule: Rule
    mean: Tensor
    floor: Tensor
    taken: int = 0
    best: int = -1
    best_score: float = float("-inf")

    def __post_init__(self) -> None:
        ceilings = self.rule.ceilings(self.mean, self.floor)
        if not isinstance(ceilings, torch.Tensor) or ceilings.shape != self.mean.shape:
            raise InputError(f"{type(self.rule).__name__} gave no ceiling for each of {len(self.mean)} candidates")
        ceilings = torch.where(ceilings.isnan(), float("inf"), ceilings)  # of which nothing is known
        self.variance = torch.full_like(self.mean, float("nan"))
        ceiling, order = torch.sort(ceilings, descending=True, stable=True)
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

    def learn(self, candidate: int, variance: Tensor) -> None:
        self.variance[candidate] = variance
        self.taken += 1
        one = slice(candidate, candidate + 1)
        score = float(self.rule.scores(KnownCandidates(self.mean[one], self.variance[one])))
        if score > self.best_score or (score == self.best_score and candidate < self.best):
            self.best, self.best_score = candidate, score
