"""With which probability a stochastic rule picks each candidate of a fixed pool.

Every function maps scores `[n]` to probabilities `[n]` that sum to 1, float64 on the CPU. They do not change when a
constant is added to all scores, and follow a permutation of candidates with distinct scores. Of equal scores, rules
that read scores as values (`soft_best_of_n`) share alike, and rules that read their order alone prefer the lower index,
as `first_best` does.
"""

import math

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite_values, positive, whole


def soft_best_of_n(scores: Tensor, temperature: float) -> Tensor:  # shape: (n,) -> (n,)
    """Soft best-of-n: `P(i) ∝ exp(r_i / λ)` (Verdun et al., arXiv 2505.03156).

    λ → 0 is best-of-n with its ties shared, λ → ∞ is uniform. Equal scores share alike.

    Args:
        scores: r.
        temperature: λ, in units of the scores.

    Raises:
        InputError: scores that are not finite, or a temperature that is not a finite number above 0.
    """
    return _softmax(finite_values(scores, "scores"), positive(temperature, "temperature"))


def soft_best_of_draws(draws: Tensor, temperature: float) -> Tensor:  # shape: (S, n) -> (n,)
    """Soft best-of-n under a posterior: the mean over joint draws of the rewards of `soft_best_of_n`.

    λ → 0 is the probability of being the best, with ties of a draw shared.

    Args:
        draws: S draws of n rewards.
        temperature: λ, in units of the rewards.

    Raises:
        InputError: draws that are not finite, or a temperature that is not a finite number above 0.
    """
    if not isinstance(draws, Tensor) or draws.ndim != 2 or 0 in draws.shape:
        raise InputError("draws must be a tensor [S, n] of at least one draw of at least one candidate's reward")
    held = finite_values(draws.reshape(-1), "draws").reshape(draws.shape)
    return _softmax(held, positive(temperature, "temperature")).mean(0)


def best_of_subset(scores: Tensor, n: int) -> Tensor:  # shape: (N,) -> (N,)
    """Best-of-n from a pool of N: a uniform n-subset, drawn without replacement, and its highest score.

    The candidate of rank i (1 the lowest) has probability `C(i − 1, n − 1) / C(N, n)`. Of equal scores the lower index
    wins.

    Args:
        scores: of the pool.
        n: size of the subset.

    Raises:
        InputError: scores that are not finite, or an n that is not a whole number from 1 to N.
    """
    held = finite_values(scores, "scores")
    whole(n, 1, "n", most=len(held))
    return _by_rank(held, _best_of_subset_by_rank(len(held), n))


def best_of_poisson(scores: Tensor, theta: float) -> Tensor:  # shape: (N,) -> (N,)
    """Best-of-Poisson from a pool of N: best-of-n with `n = 1 + Poisson(θ)` (Khalaf et al., arXiv 2506.19248).

    Exact for draws without replacement; where n would pass N it is N. Of equal scores the lower index wins.

    Args:
        scores: of the pool.
        theta: θ, the mean number of draws after the first.

    Raises:
        InputError: scores that are not finite, or a θ that is not a finite number of at least 0.
    """
    held = finite_values(scores, "scores")
    theta = at_least(theta, 0, "theta")
    count = len(held)
    further = torch.arange(count, dtype=torch.float64, device="cpu")
    rate = torch.tensor(theta, dtype=torch.float64, device="cpu")
    sizes = (torch.xlogy(further, rate) - rate - torch.lgamma(further + 1)).exp()
    # P(Poisson(θ) ≥ N − 1): all that N has to serve
    sizes[-1] = torch.special.gammainc(further[-1], rate) if count > 1 else 1.0
    by_rank = torch.zeros(count, dtype=torch.float64, device="cpu")
    for n in (torch.nonzero(sizes).flatten() + 1).tolist():
        by_rank += sizes[n - 1] * _best_of_subset_by_rank(count, n)
    return _by_rank(held, by_rank / by_rank.sum())


def top_share(scores: Tensor, m: float) -> Tensor:  # shape: (N,) -> (N,)
    """E_M best-of-n: uniform among the `⌈N / M⌉` highest scores (Sriraman and Block, arXiv 2603.05739).

    No candidate is more than M times as likely as under the base, whatever N: that bound is what makes it safe to draw
    many. M = 1 is the base. Of equal scores at the border the lower index is in.

    Args:
        scores: of the pool.
        m: M; 1 / M is the share of the pool that is kept.

    Raises:
        InputError: scores that are not finite, or an M that is not a finite number of at least 1.
    """
    held = finite_values(scores, "scores")
    kept = math.ceil(len(held) / at_least(m, 1, "m"))
    by_rank = torch.zeros(len(held), dtype=torch.float64, device="cpu")
    by_rank[-kept:] = 1 / kept
    return _by_rank(held, by_rank)


def worst_to_best(scores: Tensor) -> Tensor:  # shape: (n,) -> (n,)
    """Positions from the lowest score to the highest; of equals the lower index is the higher."""
    return scores.argsort(descending=True, stable=True).flip(0)


def _softmax(scores: Tensor, temperature: float) -> Tensor:
    # The difference to the largest is divided, which overflows to −∞ at worst.
    return ((scores - scores.amax(-1, keepdim=True)) / temperature).softmax(-1)


def _by_rank(scores: Tensor, probabilities: Tensor) -> Tensor:
    """To each candidate what its rank has, the lowest rank's first."""
    return torch.empty_like(scores).scatter_(0, worst_to_best(scores), probabilities)


def _best_of_subset_by_rank(count: int, n: int) -> Tensor:  # shape: (count,)
    """`C(i − 1, n − 1) / C(count, n)` for i = 1, …: n / count at the top, below by the ratios of neighbours.

    Products of ratios between 0 and 1, so that no binomial overflows.
    """
    rank = torch.arange(count, 1, -1, dtype=torch.float64, device="cpu")
    ratios = ((rank - n) / (rank - 1)).clamp(min=0.0)
    top = torch.full((1,), n / count, dtype=torch.float64, device="cpu")
    return torch.cat([top, ratios]).cumprod(0).flip(0)
