"""Rewards with their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesrm_fast.model.passes import Passes, Progress, check_finite_variances, unit_cotangent
from bayesrm_fast.model.shared_backward import over_examples
from bayesrm_fast.plots import POSTERIOR, figure_in
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.probit import probit_probability
from bayesrm_fast.text.examples import Example, distinct

if TYPE_CHECKING:
    import pandas

MOST_NUMBERED = 40
"""Rows of a plot whose positions are written under them."""


@dataclass(frozen=True)
class RewardScores:
    """Rewards of N rows; float32 on the CPU (float64 for a float64 model).

    Attributes:
        mean: MAP rewards `[N]`.
        variance: posterior variances `[N]`, in squared units of the reward.
        truncated: which rows `max_length` cut, `[N]`, bool.
        tokens: that were read of each row, after it was cut, `[N]`, int64.
        baseline: mean reward of what each row is compared with `[N]`; mean and variance are then those of the
            difference to it. None where they are the reward's own.
    """

    mean: Tensor
    variance: Tensor
    truncated: Tensor
    tokens: Tensor
    baseline: Tensor | None = None

    @property
    def std(self) -> Tensor:
        """Posterior standard deviations `[N]`, in units of the reward."""
        return self.variance.sqrt()

    def columns(self) -> dict[str, Tensor]:
        """What a table of the scores shows."""
        columns = {"mean": self.mean, "variance": self.variance, "std": self.std, "truncated": self.truncated}
        return columns if self.baseline is None else columns | {"baseline": self.baseline}

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each score; needs pandas."""
        import pandas

        return pandas.DataFrame({name: column.numpy() for name, column in self.columns().items()})

    def plot(self, path: str | Path) -> None:
        """Draw the rows from the lowest mean to the highest, each with one std to either side, into a file.

        Raises:
            InputError: there is no matplotlib, or the file cannot be written.
        """
        order = self.mean.argsort(stable=True)
        mean, std = self.mean[order].double().numpy(), self.std[order].double().numpy()
        rank = range(len(mean))
        with figure_in(path, 8.4, 4.4) as figure:
            axis = figure.subplots()
            axis.vlines(rank, mean - std, mean + std, color=POSTERIOR, alpha=0.35, lw=2)
            axis.plot(rank, mean, "o", color=POSTERIOR, ms=4)
            axis.set(xlabel=f"{self._row_name}s, lowest mean first", ylabel=self._quantity, title="mean ± std")
            numbered = len(rank) <= MOST_NUMBERED
            axis.set_xticks(rank if numbered else [], map(str, order.tolist()) if numbered else [])
            axis.spines[["top", "right"]].set_visible(False)

    @property
    def _row_name(self) -> str:
        return "row"

    @property
    def _quantity(self) -> str:
        return "reward" if self.baseline is None else "difference of the reward to its baseline"


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

    @property
    def _row_name(self) -> str:
        return "pair"

    @property
    def _quantity(self) -> str:
        return "reward of chosen less rejected"


def truncated_and_tokens(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N,)
    """Which examples `max_length` cut, bool; and the tokens that were read of each, int64."""
    return (
        torch.tensor([example.is_truncated for example in examples], dtype=torch.bool, device="cpu"),
        torch.tensor([example.tokens for example in examples], dtype=torch.int64, device="cpu"),
    )


def score_examples(
    passes: Passes, examples: Sequence[Example], posterior: Posterior, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:  # shapes: (N,), (N,)
    """Mean and variance of each example: a row's reward, or the difference of a pair's two rewards.

    Raises:
        InputError: a reward or a variance that is NaN or infinite, by its example.
    """
    first, where = distinct(examples)
    unique = [examples[i] for i in first]
    means: list[Tensor] = []
    variances: list[Tensor] = []
    order: list[int] = []
    for batch in over_examples(passes, unique, unit_cotangent, posterior.variance_consumer, progress):
        order += batch.positions
        means.append(batch.rewards.cpu())
        variances.append(batch.consumer.variance.cpu().expand(len(batch.positions)))
    back = torch.tensor(order, dtype=torch.int64, device="cpu").argsort()[where]
    mean, variance = torch.cat(means)[back], torch.cat(variances)[back]
    check_finite_variances(variance, examples)
    return mean, variance
