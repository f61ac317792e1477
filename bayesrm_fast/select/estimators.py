"""What best-of-n is worth, estimated without bias from more than n samples."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError


def expected_best_of_n(
    scores: Tensor,  # shape: (N,)
    gold: Tensor,  # shape: (N,)
    n: int,
) -> float:
    """Expected gold of the highest-scoring of n of N candidates drawn without replacement.

    Exact over all subsets: the candidate of rank i (1 the lowest) is the best of a random n-subset with probability
    `C(i − 1, n − 1) / C(N, n)`. Of equal scores the earlier candidate wins.
    """
    count = len(scores)
    # Last in a stable sort from the best down is the later one of equals, which loses.
    order = scores.double().argsort(descending=True, stable=True).flip(0)
    return float(_chances(count, n) @ gold.double()[order])


@cache
def _chances(count: int, n: int) -> Tensor:  # shape: (count,)
    """Of each rank to be the best of a random subset, float64."""
    chances = [math.comb(i, n - 1) / math.comb(count, n) for i in range(count)]
    return torch.tensor(chances, dtype=torch.float64, device="cpu")


def sizes_up_to(count: int) -> list[int]:
    """1, 2, 4, … and `count` itself."""
    return sorted({*(2**i for i in range(count.bit_length()) if 2**i <= count), count})


def best_of_n_kl(n: int) -> float:
    """Upper bound of the KL of best-of-n to the policy, in nats: `log n − (n − 1) / n`."""
    return math.log(n) - (n - 1) / n


def bonbon_beta(n: int) -> float:
    """β of the IPO loss whose optimum is best-of-n: `1 / (2 (n − 1) Σ_{k<n} 1/k)` (Gui et al., 2406.00832, section 4).

    IPO regresses the log-ratio of the preferred response less that of the other to `1 / (2β)`. Best-of-n has the
    log-ratio `log n + (n − 1) log U` to the base, U the reward's quantile. Of n draws, `E[log U_best] = −1/n` and
    `E[log U_worst] = −Σ_{k≤n} 1/k`; their difference gives `1 / (2β) = (n − 1) Σ_{k<n} 1/k`.

    Raises:
        InputError: an n that is not a whole number of at least 2.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise InputError(f"n must be a whole number of at least 2, not {n!r}")
    return 1 / (2 * (n - 1) * math.fsum(1 / k for k in range(1, n)))


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Of values that were drawn independently; the error of fewer than two is infinite."""
    held = torch.tensor(values, dtype=torch.float64, device="cpu")
    if len(held) < 2:
        return float(held.mean()), math.inf
    return float(held.mean()), float(held.std() / math.sqrt(len(held)))
