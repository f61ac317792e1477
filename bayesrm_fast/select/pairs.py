"""Which pairs say most about the reward function when a labeller judges them: the mathematics.

All of it is in units of the logit: `z = Δ / T`, the difference of a pair's two rewards over the temperature, with the
label's probability `p(y) = σ(z)` and the joint posterior `z ~ N(m, C)`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bayesrm_fast.posterior.probit import label_entropy
from bayesrm_fast.select.rules import first_best

WIDE = 4.0
"""Standard deviation of z from which it is integrated over the logistic function's width, and not over its own."""


def label_information(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (n,), (n,) -> (n,), (n,)
    """What a label is expected to say about the reward function, and with which weight.

    The label depends on the function through z alone, so that the mutual information of label and function is
    `H(E σ(z)) − E H(σ(z))` (Lindley, *On a measure of the information provided by an experiment*, 1956; Houlsby et al.,
    *Bayesian active learning for classification and preference learning*, 2011: BALD). By the trapezoid rule on a grid
    of 97 points, over z's own density where that is narrow and over the logistic function where it is wide; either errs
    by less than 1e-10.

    Args:
        mean, variance: of z, float64.

    Returns:
        The information in nats, from 0 to log 2, which grows with the variance; and the expected Fisher information
        about z, `E[σ(z)(1 − σ(z))]`.
    """
    grid = torch.linspace(-1, 1, 97, dtype=torch.float64, device="cpu")
    mean = mean.abs()[:, None]  # to the last digit the same whichever response comes first
    std = variance.clamp(min=0).sqrt()[:, None]
    own = 8 * grid  # in standard deviations of z
    weight = torch.exp(-own.square() / 2)
    weight /= weight.sum()
    narrow = torch.sigmoid(mean + std * own)
    noise = 32 * grid  # the label is yes where z is above a logistic variable
    wide = torch.sigmoid(noise)
    logistic = wide * (1 - wide)
    logistic /= logistic.sum()
    spread = std.clamp(min=WIDE)
    above = torch.special.ndtr((mean + noise) / spread)
    density = torch.exp(-((noise - mean) / spread).square() / 2) / (spread * math.sqrt(2 * math.pi))
    is_wide = std[:, 0] > WIDE
    probability = torch.where(is_wide, above @ logistic, narrow @ weight).clamp(max=1)
    given_z = torch.where(
        is_wide, density @ label_entropy(wide) * (noise[1] - noise[0]), label_entropy(narrow) @ weight
    )
    fisher = torch.where(is_wide, density @ logistic, (narrow * (1 - narrow)) @ weight)
    information = (label_entropy(probability) - given_z).clamp(min=0)
    return torch.where(variance > 0, information, 0.0), fisher


def greedy_batch(
    mean: Tensor, variance: Tensor, column: Callable[[int], Tensor], count: int
) -> tuple[list[int], list[float]]:
    """The pairs that say most one after another, each given that those before it are judged.

    What a label will be is not known, but about how much it will say is: as much as a measurement of z with the
    precision `Λ = E[σ(z)(1 − σ(z))]`, the expected Fisher information. So the covariance becomes
    `C − c cᵀ Λ / (1 + Λ v)`, c the chosen pair's column and v its variance, whatever the label; and the means stay,
    as they are expected to. These are the steps of a pivoted Cholesky factorisation, in O(n) memory for each.

    Args:
        mean, variance: of n values z, float64. A pair without variance is chosen last.
        column: gives the covariances of pair i with all `[n]`, float64.
        count: how many, at most n.

    Returns:
        Positions in the order of choice, the lower one of equals first; and the information of each, in nats, at the
        time of its choice.
    """
    chosen: list[int] = []
    told: list[float] = []
    steps = torch.empty(count, len(mean), dtype=torch.float64, device="cpu")
    left = variance.clone()
    for step in range(count):
        information, fisher = label_information(mean, left)
        score = torch.where(variance > 0, information, -1.0)
        score[chosen] = -math.inf
        i = first_best(score)
        chosen.append(i)
        told.append(float(information[i]))
        covariance = column(i) - steps[:step, i] @ steps[:step]
        steps[step] = covariance * (fisher[i] / (1 + fisher[i] * left[i])).sqrt()
        left = (left - steps[step].square()).clamp(min=0)
    return chosen, told
