"""Inference-time pessimism: the candidates' distribution that trades reward for a χ² distance to the base.

Huang et al., arXiv 2503.21878: `argmax_π E_π[r] − (β/2) E_π[π / π_ref]` has the density
`π / π_ref = relu((r − λ) / β)`, λ such that its mean under the base is 1. No policy whose χ² distance to the base is
small can gain much from an error of the reward that is small in mean square, so that drawing more does no harm.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from bayesrm_fast.select.checks import at_least, finite_stds, finite_values, positive
from bayesrm_fast.select.excess import expected_excess, reservation_value


def pessimism(scores: Tensor, beta: float, std: Tensor | None = None) -> Tensor:  # shape: (n,) -> (n,)
    """Inference-time pessimism on a fixed pool: `P(i) = w_i / Σ w` (Huang et al., arXiv 2503.21878).

    `w_i = relu((r_i − λ) / β)` with `mean w = 1`, λ exact by sorting. With a posterior `r_i ~ N(μ_i, s_i²)` it is the
    mean of that, `w_i = (s_i / β) (φ(z_i) + z_i Φ(z_i))`, `z_i = (μ_i − λ) / s_i`, λ again such that `mean w = 1`.
    Without stds β → 0 is best-of-n with its ties shared. With them a larger s is a larger weight, and β → 0 takes the
    reward with the farthest upper tail. β → ∞ is uniform. Candidates of equal score and std share alike. What is
    added to all scores is added to λ.

    Args:
        scores: r, or μ.
        beta: β, in units of the scores; see `pessimism_beta`.
        std: s; None is 0 for all.

    Returns:
        Probabilities `[n]`, float64 on the CPU.

    Raises:
        InputError: scores or stds that are not finite, a negative std, or a β that is not a finite number above 0.
    """
    held = finite_values(scores, "scores")
    stds = torch.zeros_like(held) if std is None else finite_stds(std, len(held))
    # Over the largest score and in the larger of the two units, so that λ keeps its digits next to the scores.
    beta = positive(beta, "beta")
    unit = max(beta, float(stds.max()))
    relative, stds = (held - held.max()) / unit, stds / unit
    weights = expected_excess(relative, stds, reservation_value(relative, stds, beta / unit))
    return weights / weights.sum()


def pessimism_beta(variance: Tensor, coverage: float) -> float:  # shape: (n,)
    """The β for rewards whose error has the given variances: `√(mean variance / C)`.

    For every policy π, `regret(π) ≤ √(C ε²) + β C / 2 + ε² / (2β)`, with ε² the reward's mean squared error under the
    base and `C = E_π[π / π_ref]` the coverage of π. This β makes the bound least, at `2 √(C ε²)`: the order that Huang
    et al. (arXiv 2503.21878) show to be optimal. They leave ε² and C unknown and tune β; a calibrated
    posterior of the reward knows ε².

    Args:
        variance: of the rewards' differences to their prompt's mean: λ takes up what is common to all.
        coverage: C of the policy to compete with. Uniform on the best share 1/M of the base has C = M.

    Raises:
        InputError: variances that are not finite or all 0, or a coverage that is not a finite number of at least 1.
    """
    squared_error = float(finite_values(variance, "variance").mean())
    return math.sqrt(positive(squared_error, "the mean variance") / at_least(coverage, 1, "coverage"))


@dataclass(frozen=True)
class RejectionSampler:
    """Inference-time pessimism by fresh draws: each is accepted with probability `w / M`.

    The accepted draw has the density `relu((r − λ) / β)` to the base, of which the pool that λ is from is a sample. One
    in M draws is accepted, in the mean (Huang et al., arXiv 2503.21878).

    Attributes:
        threshold: λ.
        beta: β.
        ceiling: the largest reward that is expected, R_max. A draw above it counts as one at it.
    """

    threshold: float
    beta: float
    ceiling: float

    @classmethod
    def of_pool(cls, scores: Tensor, beta: float, ceiling: float | None = None) -> "RejectionSampler":  # shape: (n,)
        """λ from a pool of rewards, and R_max, if it is not given, the largest of them.

        Raises:
            InputError: scores that are not finite, a β that is not a finite number above 0, or a ceiling below a score.
        """
        held = finite_values(scores, "scores")
        threshold = reservation_value(held, torch.zeros_like(held), positive(beta, "beta"))
        top = float(held.max())
        return cls(threshold, beta, top if ceiling is None else at_least(ceiling, top, "ceiling"))

    @property
    def draws_per_acceptance(self) -> float:
        """`M = (R_max − λ) / β`, at least 1."""
        return (self.ceiling - self.threshold) / self.beta

    def acceptance(self, scores: Tensor) -> Tensor:  # shape: (n,) -> (n,)
        """`w / M` of fresh draws.

        Raises:
            InputError: scores that are not finite.
        """
        above = finite_values(scores, "scores") - self.threshold
        return (above / (self.ceiling - self.threshold)).clamp(0.0, 1.0)

    def first_accepted(self, scores: Tensor, generator: Generator) -> int | None:  # shape: (n,)
        """Position of the first fresh draw that is accepted; None where all are rejected.

        Args:
            scores: rewards of fresh draws, in the order in which they were drawn.
            generator: torch's, on the CPU.

        Raises:
            InputError: scores that are not finite.
        """
        acceptance = self.acceptance(scores)
        chance = torch.rand(len(acceptance), generator=generator, dtype=torch.float64, device="cpu")
        accepted = torch.nonzero(chance < acceptance)
        return int(accepted[0]) if len(accepted) else None
