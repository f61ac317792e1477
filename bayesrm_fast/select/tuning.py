"""How much of a relative std to subtract, chosen by judged responses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.posterior.base import PenaltyChoice
from bayesrm_fast.select.estimators import expected_best_of_n, mean_and_standard_error, sizes_up_to

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""k to choose from."""


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt's candidates with what they are worth.

    Attributes:
        mean, std: of the rewards' differences to their mean `[n]`.
        gold: `[n]`.
    """

    mean: Tensor
    std: Tensor
    gold: Tensor

    def gold_at(self, k: float) -> float:
        """Mean over n of the expected gold of best-of-n by `mean − k·std`."""
        scores = self.mean.double() - k * self.std.double()
        sizes = sizes_up_to(len(scores))[1:]  # of one candidate every rule picks that one
        return sum(expected_best_of_n(scores, self.gold, n) for n in sizes) / len(sizes)


def tuned_by_gold(prompts: Sequence[JudgedPrompt]) -> PenaltyChoice:
    """The k of `WEIGHTS` with the most gold, where its gain over k = 0 is beyond one standard error; 0 otherwise.

    The error is that of the best of several: where no penalty helps, one of them passes by luck in about a third of the
    cases, with a gain that is as small as the error.

    Raises:
        InputError: no prompt whose candidates' gold differs.
    """
    told = [one for one in prompts if len(one.gold) > 1 and float(one.gold.max()) > float(one.gold.min())]
    if not told:
        raise InputError("there is nothing to tune by: no prompt has responses of different gold")
    gold = [[one.gold_at(k) for k in WEIGHTS] for one in told]
    curve = [(k, sum(row[i] for row in gold) / len(gold)) for i, k in enumerate(WEIGHTS)]
    best = max(range(len(WEIGHTS)), key=lambda i: (curve[i][1], -i))
    gain, error = mean_and_standard_error([row[best] - row[0] for row in gold])
    if not gain > error:
        best, gain = 0, 0.0
    error = math.nan if math.isinf(error) else error
    return PenaltyChoice(WEIGHTS[best], "responses", len(told), gain, error, curve)


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
