"""How far the probabilities of held-out pairs can be believed, and the λ and temperature under which they can."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.options import Precision, check_precision
from bayesrm_fast.fit.prior import (
    GRID,
    HELD_OUT_NLL,
    by_evidence,
    by_margins,
    margins_and_norms,
    variance_curve,
    warn_of_an_end,
)
from bayesrm_fast.fit.ranks import ALONE, Ranks
from bayesrm_fast.fit.reliability import Reliability, reliability
from bayesrm_fast.model.passes import Passes, Progress
from bayesrm_fast.plots import POSTERIOR, figure_in
from bayesrm_fast.posterior.base import Posterior, PriorChoice
from bayesrm_fast.posterior.probit import probit_probability
from bayesrm_fast.text.examples import LabelledExample, group_numbers

TEMPERATURES = tuple(2.0 ** (exponent / 8) for exponent in range(-24, 25))
"""T from 1/8 to 8, eight values an octave."""

FOLDS = 2


@dataclass(frozen=True)
class Calibration:
    """Reliability of held-out pairs before and after λ and a temperature were chosen.

    Attributes:
        pairs: how many there are.
        before: with the λ and the temperature that the model had.
        after: each half of the pairs with what the other half chose, so that no pair chooses for itself.
        prior_precision: λ that the model has now, chosen by all pairs.
        temperature: likewise.
    """

    pairs: int
    before: Reliability
    after: Reliability
    prior_precision: float
    temperature: float

    def plot(self, path: str | Path) -> None:
        """Draw a reliability diagram into a file.

        Raises:
            InputError: there is no matplotlib, or the file cannot be written.
        """
        with figure_in(path, 8.4, 4.4) as figure:
            for axis, title, one in zip(
                figure.subplots(1, 2, sharey=True), ("before", "after"), (self.before, self.after), strict=True
            ):
                filled = [b for b in one.bins if b.count]
                axis.plot([0.5, 1], [0.5, 1], color="black", lw=0.8)
                axis.bar(
                    [b.low for b in filled],
                    [b.accuracy for b in filled],
                    [b.high - b.low for b in filled],
                    align="edge",
                    color=POSTERIOR,
                    alpha=0.35,
                    edgecolor="white",
                )
                axis.plot([b.confidence for b in filled], [b.accuracy for b in filled], "o", color=POSTERIOR, ms=5)
                for b in filled:
                    axis.annotate(str(b.count), ((b.low + b.high) / 2, 0.02), ha="center", fontsize=8, color="#444444")
                axis.set(
                    title=f"{title}: NLL {one.nll:.3f}, Brier {one.brier:.3f}, ECE {one.ece:.3f}",
                    xlabel="probability of the predicted side",
                    xlim=(0.5, 1),
                    ylim=(0, 1.03),
                )
            figure.axes[0].set_ylabel("share that is right (pairs of a bin below)")


def calibrate(
    difference: Tensor,  # shape: (M,)
    variance: Tensor,  # shape: (L, M)
    precisions: Sequence[float],
    before: Tensor,  # shape: (M,)
    groups: Sequence[int] | None = None,
) -> Calibration:
    """Choose λ and a temperature by the NLL of held-out pairs, the chosen response first; warns of an end of a grid.

    Args:
        difference: of the rewards.
        variance: of the differences at each λ.
        precisions: L values of λ to choose from.
        before: the probabilities as they were.
        groups: a number for each pair, from 0 on; those of one number are not independent, and stay in one half.
            Default: each by itself.

    Raises:
        InputError: fewer than two pairs, or groups.
    """
    if len(difference) < FOLDS:
        raise InputError("a calibration needs at least two pairs")
    group = torch.tensor(range(len(difference)) if groups is None else groups, dtype=torch.int64, device="cpu")
    count = int(group.max()) + 1
    if count < FOLDS:
        raise InputError("a calibration needs steps of at least two responses")
    difference, variance = difference.double(), variance.double()
    # By lot, because pairs may come in an order that means something.
    generator = torch.Generator().manual_seed(0)
    fold = (torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu") % FOLDS)[group]
    # (L, temperatures, M) would be large; the mean over a fold is all that is needed of it.
    nll = torch.stack(
        [
            torch.stack(
                [
                    -probit_probability(difference, row, t).clamp(min=torch.finfo(torch.float64).tiny).log()
                    for t in TEMPERATURES
                ]
            )
            @ torch.nn.functional.one_hot(fold, FOLDS).double()
            for row in variance
        ]
    )  # shape: (L, temperatures, FOLDS)

    def best(total: Tensor) -> tuple[int, float]:  # shape: (L, temperatures)
        at = int(total.argmin())
        return at // len(TEMPERATURES), TEMPERATURES[at % len(TEMPERATURES)]

    after = torch.empty_like(difference)
    for i in range(FOLDS):
        row, temperature = best(nll.sum(2) - nll[:, :, i])
        held = fold == i
        after[held] = probit_probability(difference[held], variance[row, held], temperature)
    row, temperature = best(nll.sum(2))
    warn_of_an_end("temperature", temperature, TEMPERATURES)
    warn_of_an_end("prior precision", precisions[row], precisions)
    return Calibration(len(difference), reliability(before), reliability(after), precisions[row], temperature)


def calibrate_posterior(
    passes: Passes,
    pairs: Sequence[LabelledExample],
    posterior: Posterior,
    prior_precision: Precision,
    progress: Progress | None,
    ranks: Ranks = ALONE,
) -> Calibration:
    """Choose λ and a temperature by held-out pairs and give them to the posterior.

    Args:
        passes: the model.
        pairs: tokenized, the chosen response first.
        posterior: on the device of the passes.
        prior_precision: "validation" chooses λ by the pairs; "evidence", "margins" or a number gives it.
        progress: told the pairs done and their total.
        ranks: that calibrate together, all with the same posterior, and choose alike.

    Raises:
        InputError: fewer than two pairs, or an unknown `prior_precision`.
    """
    check_precision(prior_precision)
    given = None
    if prior_precision == "margins":
        given = by_margins(*margins_and_norms(passes, pairs, ranks))
    elif prior_precision == "evidence":
        given = by_evidence(posterior)
    elif not isinstance(prior_precision, str):
        given = PriorChoice(float(prior_precision))
    choices = list(GRID) if given is None else [given.precision]
    precisions = [*choices, posterior.prior_precision]
    difference, variance = variance_curve(passes, pairs, posterior, precisions, progress, ranks)
    before = probit_probability(difference, variance[-1], posterior.temperature)
    found = calibrate(difference, variance[:-1], choices, before, group_numbers(pairs))
    given, found = ranks.object_from_first((given, found))
    posterior.prior = given or PriorChoice(found.prior_precision, "calibration", HELD_OUT_NLL)
    posterior.temperature = found.temperature
    return found
