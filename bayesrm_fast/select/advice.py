"""What a prompt's candidates tell about a penalised choice among them before anybody has judged one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.posterior.base import PenaltyChoice
from bayesrm_fast.select.rules import first_best
from bayesrm_fast.select.tuning import WEIGHTS

LARGEST_K = WEIGHTS[-1]
"""Winners are told for k from 0 up to this."""

APART = 0.2
"""Mean similarity between two groups of texts below which they count as of several sources.

Found on samples of one policy (CodeGen-16B on HumanEval), alone and with a quarter or half of them replaced by answers
to AlpacaEval prompts. How often it is right, `python -m benchmarks.sources` measures; docs/maths.md, section 11, has
the rates. Sources that write alike are not told apart.
"""

SMALLEST_SHARE = 0.2
"""Of the texts: a smaller group is that of a policy's odd ones."""

FEWEST_TOKENS = 8
"""Different ones that a text must have: shorter texts share little with any other."""

FEWEST_TEXTS = 8
"""Different ones, long enough, among which groups are looked for."""

MOST_TEXTS = 256
"""Different ones among which groups are looked for, evenly taken: the time is cubic in it."""


@dataclass(frozen=True)
class WinnerFrom:
    """The candidate that wins by `mean − k·std` from some k on, until the next one does.

    Attributes:
        k: where it begins to win.
        index: its position among the responses.
    """

    k: float
    index: int


@dataclass(frozen=True)
class Advice:
    """What is known of a penalised choice among n candidates of one prompt; rewards are differences to their mean.

    Attributes:
        candidates: n.
        spread_of_means: standard deviation of the means over the candidates, in units of the reward.
        typical_std: root mean square of the posterior stds over the candidates, in units of the reward.
        winners: by `mean − k·std` as k grows from 0 to 8, in the order of k.
        similarity: mean cosine similarity of token sets between the two groups that the texts fall into best; NaN
            where they are too few or too short to tell, or where the smaller group is less than a fifth of them.
        group: positions of the smaller group's candidates where `similarity` is below 0.2, empty otherwise. Of more
            than 256 different texts those of 256 alone.
        std_ratio: typical std of that group over that of the other; NaN without a group.
        penalty: what `tune_penalty` has chosen; None before it.
    """

    candidates: int
    spread_of_means: float
    typical_std: float
    winners: list[WinnerFrom]
    similarity: float
    group: list[int]
    std_ratio: float
    penalty: PenaltyChoice | None = None

    @property
    def std_over_spread(self) -> float:
        """`typical_std / spread_of_means`: above 1 the means differ by less than is uncertain; NaN where all are equal.

        The variance over the candidates is what the choice sees, the posterior's is what it risks.
        """
        return self.typical_std / self.spread_of_means if self.spread_of_means > 0 else math.nan

    @property
    def warnings(self) -> list[str]:
        """Sentences about why the relative penalty says nothing, or the wrong thing, of this choice."""
        if self.candidates == 1:
            return ["There is one candidate, and nothing to choose."]
        if self.candidates == 2:
            return [
                "Two candidates are equally far from their mean: their stds are equal, and no k changes the choice."
            ]
        if not self.group:
            return []
        those = ", ".join(map(str, self.group[:8])) + (", …" if len(self.group) > 8 else "")
        return [
            f"The candidates seem to come from several sources: {len(self.group)} of them (responses {those}) share "
            f"few tokens with the others (similarity {self.similarity:.2f}) and have {self.std_ratio:.2f} times their "
            "std. What is typical of a mixture need not be right: take the absolute std (relative=False), the mean "
            "alone, or the candidates of one source."
        ]

    def columns(self) -> dict[str, Any]:
        """The numbers that depend on the candidates, and the warnings, as JSON takes them: None for NaN."""
        numbers = {
            "spread_of_means": self.spread_of_means,
            "typical_std": self.typical_std,
            "std_over_spread": self.std_over_spread,
            "similarity": self.similarity,
            "std_ratio": self.std_ratio,
        }
        return {
            **{name: None if math.isnan(value) else value for name, value in numbers.items()},
            "winners": [{"k": winner.k, "index": winner.index} for winner in self.winners],
            "group": self.group,
            "warnings": self.warnings,
        }

    def __str__(self) -> str:
        lines = []
        if self.candidates > 2:
            lines = [self._about_size(), self._about_winners()]
        return "\n".join([*lines, *self.warnings, self._about_tuning()])

    def _about_size(self) -> str:
        if math.isnan(self.std_over_spread):
            return f"All {self.candidates} candidates have the same reward."
        return (
            f"The mean rewards of {self.candidates} candidates spread by {self.spread_of_means:.3g}; the typical std "
            f"of their differences is {self.typical_std:.3g}, {self.std_over_spread:.2g} times that."
        )

    def _about_winners(self) -> str:
        first, *later = self.winners
        if not later:
            return f"Response {first.index} wins for every k from 0 to {LARGEST_K:g}."
        changes = ", ".join(f"from k = {winner.k:.2g} response {winner.index}" for winner in later)
        return f"By the mean alone response {first.index} wins; {changes}."

    def _about_tuning(self) -> str:
        tuned = self.penalty
        if tuned is None:
            return "Whether a penalty helps here is for judged prompts to tell: tune_penalty chooses k by them."
        by = f"On {tuned.prompts} prompts judged by {tuned.judged}"
        if tuned.k == 0:
            return f"{by} no penalty gained more than its standard error: k = 0, the mean alone."
        if math.isnan(tuned.gain):
            return f"{by} the best penalty is k = {tuned.k:g}."
        gained = f"{tuned.gain:.3f} ± {tuned.standard_error:.3f}"
        return f"{by} a penalty of k = {tuned.k:g} gained {gained} over the mean alone."


def advise(
    mean: Tensor,  # shape: (n,)
    std: Tensor,  # shape: (n,)
    tokens: Sequence[Sequence[int]],
    penalty: PenaltyChoice | None = None,
) -> Advice:
    """Advice on a choice among n candidates.

    Args:
        mean, std: of the rewards' differences to their mean.
        tokens: of each response alone.
        penalty: what was tuned, if anything was.
    """
    similarity, group = text_groups(tokens)
    inside = torch.zeros(len(mean), dtype=torch.bool, device="cpu")
    inside[group] = True
    variance = std.double().square()
    ratio = float((variance[inside].mean() / variance[~inside].mean()).sqrt()) if group else math.nan
    return Advice(
        len(mean),
        float(mean.double().std(correction=0)),
        float(variance.mean().sqrt()),
        winners_over_k(mean, std),
        similarity,
        group,
        ratio,
        penalty,
    )


def winners_over_k(mean: Tensor, std: Tensor) -> list[WinnerFrom]:  # shapes: (n,), (n,)
    """Who wins by `mean − k·std` as k grows from 0 to 8: the upper envelope of n lines, in float64.

    One that wins at a single k alone, where it ties with others, is left out; of candidates that are equal in both the
    first is taken.
    """
    mean, std = mean.double(), std.double()
    k, index = 0.0, _surest(mean == mean.max(), std)
    winners = []
    while k <= LARGEST_K:
        winners.append(WinnerFrom(k, index))
        crossing = (mean[index] - mean) / (std[index] - std)
        crossing[std >= std[index]] = math.inf
        k = max(float(crossing.min()), k)
        index = _surest(crossing == crossing.min(), std)
    return winners


def _surest(among: Tensor, std: Tensor) -> int:  # shapes: (n,), bool; (n,)
    """The one of these with the smallest std, the first of equals."""
    return first_best(torch.where(among, -std, -math.inf))


def text_groups(tokens: Sequence[Sequence[int]]) -> tuple[float, list[int]]:
    """Two groups of texts, and whether they are of several sources; the posterior is not asked.

    Texts are compared by the cosine similarity of their sets of tokens. They are divided along the first principal
    coordinate of the centred similarities, where the variance within both groups is least.

    Returns:
        The mean similarity between the groups, NaN where there are none to tell; positions of the smaller one where it
        is below `APART`, else nothing.
    """
    places: dict[frozenset[int], list[int]] = {}
    for position, text in enumerate(tokens):
        places.setdefault(frozenset(text), []).append(position)
    sets = [own for own in places if len(own) >= FEWEST_TOKENS]
    sets = sets[:: math.ceil(len(sets) / MOST_TEXTS) or 1]
    if len(sets) < FEWEST_TEXTS:
        return math.nan, []
    similarities = _cosine_similarities(sets)
    is_second = _divided(_first_coordinate(similarities))
    if int(is_second.sum()) * 2 > len(sets):
        is_second = ~is_second
    if int(is_second.sum()) < SMALLEST_SHARE * len(sets):
        return math.nan, []
    between = float(similarities[is_second][:, ~is_second].mean())
    smaller = [sets[i] for i in is_second.nonzero()[:, 0].tolist()]
    return between, sorted(i for own in smaller for i in places[own]) if between < APART else []


def _cosine_similarities(sets: Sequence[frozenset[int]]) -> Tensor:  # shape: (n, n)
    place = {token: i for i, token in enumerate(sorted(frozenset().union(*sets)))}
    held = torch.zeros(len(sets), len(place), dtype=torch.float32, device="cpu")
    for row, own in zip(held, sets, strict=True):
        row[[place[token] for token in own]] = 1.0
    unit = held / held.norm(dim=1, keepdim=True)
    similarities: Tensor = unit @ unit.T
    return similarities.double()


def _first_coordinate(similarities: Tensor) -> Tensor:  # shapes: (n, n) -> (n,)
    centred = similarities - similarities.mean(0)
    first: Tensor = torch.linalg.eigh(centred - centred.mean(1, keepdim=True)).eigenvectors[:, -1]
    return first


def _divided(values: Tensor) -> Tensor:  # shapes: (n,) -> (n,), bool
    """Which values are above the threshold that leaves the least variance within the two sides (Otsu, 1979)."""
    ordered = values.sort().values
    count = len(values)
    below = torch.arange(1, count, dtype=torch.int64, device="cpu")
    total = (ordered - ordered.mean()).cumsum(0)[:-1]
    between = total.square() * count / (below * (count - below))
    is_above: Tensor = values > ordered[int(between.argmax())]
    return is_above
