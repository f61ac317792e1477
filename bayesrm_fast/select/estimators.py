"""What best-of-n is worth, estimated without bias from more than n samples."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


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


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Of values that were drawn independently; the error of fewer than two is infinite."""
    held = torch.tensor(values, dtype=torch.float64, device="cpu")
    if len(held) < 2:
        return float(held.mean()), math.inf
    return float(held.mean()), float(held.std() / math.sqrt(len(held)))
