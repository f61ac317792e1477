"""Rewards with their uncertainty."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesrm_fast.passes import Passes, Progress, Segment, pair_cotangent, row_cotangent
from bayesrm_fast.posterior import Posterior
from bayesrm_fast.prior import probit_probability
from bayesrm_fast.rewards import bounded_rewards, distinct
from bayesrm_fast.selection import BestOfN, Penalty, first_best, needed_variances
from bayesrm_fast.text import Candidates, TokenizedText

if TYPE_CHECKING:
    import pandas

CPU_WAVE = 1 / 8
"""Of a batch: what lazy best-of-n computes at a time on a CPU, which is as fast on few rows as on many."""


@dataclass(frozen=True)
class RewardScores:
    """Rewards of N rows; float32 on the CPU (float64 for a float64 model).

    Attributes:
        mean: MAP rewards `[N]`.
        variance: posterior variances `[N]`, in squared units of the reward.
        truncated: which rows `max_length` cut, `[N]`, bool.
    """

    mean: Tensor
    variance: Tensor
    truncated: Tensor

    @property
    def std(self) -> Tensor:
        """Posterior standard deviations `[N]`, in units of the reward."""
        return self.variance.sqrt()

    def columns(self) -> dict[str, Tensor]:
        """What a table of the scores shows."""
        return {"mean": self.mean, "variance": self.variance, "std": self.std, "truncated": self.truncated}

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each score; needs pandas."""
        import pandas

        return pandas.DataFrame({name: column.numpy() for name, column in self.columns().items()})


@dataclass(frozen=True)
class PairScores(RewardScores):
    """Differences of rewards, chosen minus rejected, of N pairs.

    Attributes:
        temperature: T of the probabilities, from `calibrate`.
    """

    temperature: float = 1.0

    @property
    def probability(self) -> Tensor:
        """Probability `[N]` that the first response is preferred, the variance taken into account."""
        return probit_probability(self.mean, self.variance, self.temperature)

    def columns(self) -> dict[str, Tensor]:
        """What a table of the scores shows."""
        return super().columns() | {"probability": self.probability}


def score_segments(
    passes: Passes, segments: Sequence[Segment], posterior: Posterior, progress: Progress | None
) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N,)
    """Mean and variance of each segment: a row's reward, or the difference of a pair's two rewards."""
    paired = len(segments[0]) == 2
    first, where = distinct(segments)
    means, variances, order = [], [], []
    unique = [segments[i] for i in first]
    for positions, rewards, consumer in passes.over(
        unique,
        pair_cotangent if paired else row_cotangent,
        posterior.variance_consumer,
        progress,
    ):
        order += positions
        means.append((rewards[:, 0] - rewards[:, 1] if paired else rewards[:, 0]).cpu())
        variances.append(consumer.variance.cpu())
    return _restore(torch.cat(means), order)[where], _restore(torch.cat(variances), order)[where]


def scores_to_choose_by(
    passes: Passes,
    rows: Sequence[TokenizedText],
    counts: Sequence[int],
    posterior: Posterior,
    penalty: Penalty,
    progress: Progress | None = None,
) -> list[tuple[Tensor, Tensor]]:  # shapes of each: (n,), (n,)
    """Means of every prompt's candidates, and those variances without which its best one cannot be told.

    Args:
        passes: the model.
        rows: all candidates of the first prompt, then all of the second, and so on.
        counts: number of candidates of each prompt.
        posterior: on the device of the passes.
        penalty: a penalty without a ceiling needs every variance.
        progress: told the candidates whose means are known and their total.

    Returns:
        For each prompt its means and variances, NaN where a variance was not needed.
    """
    starts = [0, *itertools.accumulate(counts)]
    if penalty.ceiling is None:
        mean, variance = score_segments(passes, [(row,) for row in rows], posterior, progress)
        return list(zip(mean.split(list(counts)), variance.split(list(counts)), strict=True))
    owners = [prompt for prompt, count in enumerate(counts) for _ in range(count)]
    mean, floor = bounded_rewards(passes, rows, owners, posterior, progress)

    def variances(wave: list[tuple[int, int]]) -> Tensor:
        return score_segments(passes, [(rows[starts[i] + j],) for i, j in wave], posterior, None)[1]

    means = mean.split(list(counts))
    ceilings = [penalty.ceiling(m, f) for m, f in zip(means, floor.split(list(counts)), strict=True)]
    lengths = [[len(row.input_ids) for row in rows[start:stop]] for start, stop in itertools.pairwise(starts)]
    wave = passes.room.batch_tokens
    if passes.device.type == "cpu":
        wave = int(CPU_WAVE * wave)
    return list(zip(means, needed_variances(means, ceilings, lengths, penalty, variances, wave), strict=True))


def choose_each(
    passes: Passes,
    candidates: Sequence[Candidates],
    rows: Sequence[TokenizedText],
    posterior: Posterior,
    penalty: Penalty,
    progress: Progress | None,
) -> list[BestOfN]:
    """The best candidate of every prompt; arguments as for `scores_to_choose_by`, with the rows' texts."""
    counts = [len(one.responses) for one in candidates]
    scored = scores_to_choose_by(passes, rows, counts, posterior, penalty, progress)
    cut = torch.tensor([row.truncated for row in rows]).split(counts)
    results = []
    for one, (mean, variance), truncated in zip(candidates, scored, cut, strict=True):
        scores = penalty.score(mean, variance)
        index = first_best(torch.where(variance.isnan(), torch.nan, scores))
        computed = int((~variance.isnan()).sum())
        results.append(BestOfN(index, one.responses[index], scores, mean, variance, truncated, computed))
    return results


def _restore(values: Tensor, order: Sequence[int]) -> Tensor:
    """Rows that were gathered in `order`, in the caller's order."""
    restored = torch.empty_like(values)
    restored[list(order)] = values
    return restored
