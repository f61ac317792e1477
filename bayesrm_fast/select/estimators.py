"""What best-of-n is worth, and how far it is from the base: formulas, and estimates from more than n samples."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite_values, whole
from bayesrm_fast.select.pools import best_of_subset


def expected_best_of_n(
    scores: Tensor,  # shape: (N,)
    gold: Tensor,  # shape: (N,)
    n: int,
) -> float:
    """Expected gold of the highest-scoring of n of N candidates drawn without replacement; see `best_of_subset`.

    Without bias for the gold of best-of-n where the candidates are independent draws.

    Raises:
        InputError: values that are not finite, or an n that is not a whole number from 1 to N.
    """
    return float(best_of_subset(scores, n) @ _gold(gold, len(scores)))


@dataclass(frozen=True)
class Estimate:
    """A mean and the standard error that drawing subsets gave it; 0 where all were taken."""

    value: float
    standard_error: float


def expected_gold(
    probabilities: Callable[[Tensor], Tensor],  # shape: (n,) -> (n,)
    gold: Tensor,  # shape: (N,)
    n: int,
    *,
    subsets: int = 512,
    seed: int = 0,
) -> Estimate:
    """Expected gold of a stochastic rule that is given n of N candidates, drawn without replacement.

    Without bias for the gold of the rule on n candidates where the N are independent draws. Exact over all subsets
    where there are no more than `subsets`, otherwise a mean over as many that are drawn. For best-of-n itself,
    `expected_best_of_n` is exact for any number.

    Args:
        probabilities: from the positions of the n candidates `[n]` (int64, rising) to the rule's probabilities of them.
        gold: of all N.
        n: size of a subset.
        subsets: how many are drawn.
        seed: of the draws.

    Raises:
        InputError: gold that is not finite, an n or subsets out of range, or probabilities that are not `[n]`.
    """
    held = _gold(gold, len(gold))
    whole(n, 1, "n", most=len(held))
    whole(subsets, 2, "subsets")
    total = math.comb(len(held), n)
    drawn = itertools.combinations(range(len(held)), n) if total <= subsets else _subsets(len(held), n, subsets, seed)
    values = []
    for subset in drawn:
        positions = torch.tensor(subset, dtype=torch.int64, device="cpu")
        chances = finite_values(probabilities(positions), "probabilities")
        if len(chances) != n:
            raise InputError(f"probabilities must be [{n}], one for each candidate of the subset, not [{len(chances)}]")
        values.append(float(chances @ held[positions]))
    mean, error = mean_and_standard_error(values)
    return Estimate(mean, 0.0 if total <= subsets else error)


def _subsets(count: int, n: int, subsets: int, seed: int) -> list[list[int]]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = [torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")[:n] for _ in range(subsets)]
    return [one.sort().values.tolist() for one in drawn]


@dataclass(frozen=True)
class BestSize:
    """The n at which best-of-n has the most gold.

    Attributes:
        n: the smallest of equals.
        gold: its estimate, the mean over prompts.
        standard_error: of that over prompts; infinite for one prompt.
        curve: `(n, gold, standard error)` for every size.
    """

    n: int
    gold: float
    standard_error: float
    curve: tuple[tuple[int, float, float], ...]


def best_n(prompts: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int] | None = None) -> BestSize:
    """The n with the largest mean over prompts of `expected_best_of_n`.

    The largest of several estimates is too high by luck: its gold is to be reported on other prompts.

    Args:
        prompts: scores and gold of each one's candidates, `([N], [N])`; N may differ.
        sizes: n to choose from; `sizes_up_to` the smallest N where they are not given.

    Raises:
        InputError: no prompt, values that are not finite, or a size that a prompt has too few candidates for.
    """
    if not prompts:
        raise InputError("the best n needs at least one prompt")
    sizes = sizes_up_to(min(len(scores) for scores, _ in prompts)) if sizes is None else sorted(set(sizes))
    curve = []
    for n in sizes:
        golds = [expected_best_of_n(scores, gold, n) for scores, gold in prompts]
        curve.append((n, *mean_and_standard_error(golds)))
    if not curve:
        raise InputError("the best n needs at least one size to choose from")
    return BestSize(*max(curve, key=lambda point: (point[1], -point[0])), tuple(curve))


def sizes_up_to(count: int) -> list[int]:
    """1, 2, 4, … and `count` itself."""
    return sorted({*(2**i for i in range(count.bit_length()) if 2**i <= count), count})


def best_of_n_win_rate(n: float) -> float:
    """Probability that best-of-n has a higher reward than a draw from the base: `n / (n + 1)`, ties being rare.

    Raises:
        InputError: an n that is not a finite number of at least 1.
    """
    n = at_least(n, 1, "n")
    return n / (n + 1)


def best_of_n_kl(n: float) -> float:
    """Upper bound of the KL of best-of-n to the policy, in nats: `log n − (n − 1) / n`.

    Reached where no response has a probability that counts; see `discrete_best_of_n_kl` (Beirami et al., arXiv
    2401.01879).

    Raises:
        InputError: an n that is not a finite number of at least 1.
    """
    n = at_least(n, 1, "n")
    return math.log(n) - (n - 1) / n


def discrete_best_of_n_kl(base: Tensor, scores: Tensor, n: int) -> float:  # shapes: (K,), (K,)
    """KL of best-of-n to a base of K distinct responses, in nats: at most `log n − (n − 1) / n`.

    The largest of n draws is at a score of at most r with probability `F(r)ⁿ`, F the base's. So a score that has the
    probability p, with q below it, has `(q + p)ⁿ − qⁿ`, which responses of equal score share as the base does.

    Args:
        base: probabilities of the responses.
        scores: their rewards.
        n: draws.

    Raises:
        InputError: probabilities that are not above 0 or do not sum to 1, scores that are not finite or as many, or an
            n that is not a whole number of at least 1.
    """
    chances = finite_values(base, "base")
    held = finite_values(scores, "scores")
    whole(n, 1, "n")
    if len(held) != len(chances):
        raise InputError(f"scores must have a value for each of {len(chances)} responses, not {len(held)}")
    if float(chances.min()) <= 0 or abs(float(chances.sum()) - 1) > 1e-6:
        raise InputError("base must be probabilities above 0 that sum to 1")
    levels, level = held.unique(return_inverse=True)
    mass = torch.zeros(len(levels), dtype=torch.float64, device="cpu").index_add_(0, level, chances / chances.sum())
    cumulative = mass.cumsum(0)
    below = cumulative - mass
    # (q + p)ⁿ − qⁿ by its ratio, which keeps the digits of a p next to a large q
    chosen = cumulative**n * -torch.expm1(n * (torch.log(below) - torch.log(cumulative)))
    return float(torch.xlogy(chosen, chosen / mass).sum())


def bonbon_beta(n: int) -> float:
    """β of the IPO loss whose optimum is best-of-n: `1 / (2 (n − 1) Σ_{k<n} 1/k)` (Gui et al., 2406.00832, section 4).

    IPO regresses the log-ratio of the preferred response less that of the other to `1 / (2β)`. Best-of-n has the
    log-ratio `log n + (n − 1) log U` to the base, U the reward's quantile. Of n draws, `E[log U_best] = −1/n` and
    `E[log U_worst] = −Σ_{k≤n} 1/k`; their difference gives `1 / (2β) = (n − 1) Σ_{k<n} 1/k`.

    Raises:
        InputError: an n that is not a whole number of at least 2.
    """
    whole(n, 2, "n")
    return 1 / (2 * (n - 1) * math.fsum(1 / k for k in range(1, n)))


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Of values that were drawn independently; the error of fewer than two is infinite."""
    held = torch.tensor(values, dtype=torch.float64, device="cpu")
    if len(held) < 2:
        return float(held.mean()), math.inf
    return float(held.mean()), float(held.std() / math.sqrt(len(held)))


def _gold(gold: Tensor, count: int) -> Tensor:
    held = finite_values(gold, "gold")
    if len(held) != count:
        raise InputError(f"gold must have a value for each of {count} candidates, not {len(held)}")
    return held
