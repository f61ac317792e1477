"""A reward's difference to the mean of others, and its uncertainty: what a choice among a prompt's candidates risks.

A Bradley–Terry reward has a free constant for each prompt, whose variance is in that of the reward itself and says
nothing about a choice (docs/maths.md, section 11).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bayesrm_fast.model.passes import (
    KeptGradients,
    Passes,
    Progress,
    check_finite_variances,
    unit_cotangent,
)
from bayesrm_fast.model.shared_backward import over_examples
from bayesrm_fast.model.tap_pass import feed_gradients
from bayesrm_fast.model.token_budget import free_bytes, is_out_of_memory, release_memory
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.variances import RewardScores, truncated_and_tokens
from bayesrm_fast.sites import Consumer, Site
from bayesrm_fast.text.examples import TokenizedRow, distinct

C = TypeVar("C", bound=Consumer)

SHARE_FOR_GRADIENTS = 0.25
"""Of the free memory: what gradients may take that wait for their baseline."""

COPIES_OF_A_SITE = 4
"""Of the largest site's gradients, beside those that wait, while their differences are taken."""

WINDOW_ROWS = 1024
"""Rows of several comparisons that wait together: enough to fill batches of like length."""


@dataclass(frozen=True)
class Comparison:
    """Rows whose rewards are compared with one baseline.

    Attributes:
        rows: positions among all rows.
        baseline: positions of the rows whose mean reward is subtracted, each as often as it counts; nothing is where
            there are none.
    """

    rows: list[int]
    baseline: list[int]


def positions_of_equals(keys: Sequence[str]) -> list[list[int]]:
    """Positions of equal keys together, in the order in which the keys first appear."""
    found: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key, []).append(position)
    return list(found.values())


def within_prompts(prompts: Sequence[Sequence[int]]) -> list[Comparison]:
    """Positions of each prompt's rows, compared with their mean; warns of prompts with a single one."""
    alone = sum(len(own) == 1 for own in prompts)
    if alone:
        warnings.warn(
            f"{alone} prompt(s) with a single response: there is nothing to compare it with, and its difference is 0",
            stacklevel=4,
        )
    return [Comparison(list(own), list(own)) for own in prompts]


@dataclass(frozen=True)
class Differences:
    """Rewards of the compared rows less their baselines, in the order of the comparisons and of their rows, on the CPU.

    Attributes:
        mean: `[N]`.
        variance: `(J_i − J̄)ᵀ Σ (J_i − J̄)` `[N]`.
        baseline: mean reward of each row's baseline `[N]`.
    """

    mean: Tensor
    variance: Tensor
    baseline: Tensor

    def at(self, positions: Tensor) -> "Differences":
        """Some of them, in this order."""
        return Differences(self.mean[positions], self.variance[positions], self.baseline[positions])


@dataclass(frozen=True)
class DifferenceBatch(Generic[C]):
    """What some differences gave.

    Attributes:
        positions: of the N differences among all, in the order of the comparisons and of their rows.
        mean: of the rewards' differences `[N]`, on the CPU.
        baseline: mean reward of each one's baseline `[N]`, on the CPU.
        consumer: fed their gradients, a segment for each.
    """

    positions: Tensor
    mean: Tensor
    baseline: Tensor
    consumer: C


def score_differences(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    comparisons: Sequence[Comparison],
    posterior: Posterior,
    progress: Progress | None = None,
) -> Differences:
    """Means and variances of differences to a baseline, exact for every structure; arguments as `over_differences`.

    Raises:
        InputError: a reward that is NaN or infinite, by its row.
    """
    batches = list(over_differences(passes, rows, comparisons, posterior.variance_consumer, progress))
    found = Differences(
        torch.cat([batch.mean for batch in batches]),
        torch.cat([batch.consumer.variance.cpu().expand(len(batch.mean)) for batch in batches]),
        torch.cat([batch.baseline for batch in batches]),
    )
    found = found.at(torch.cat([batch.positions for batch in batches]).argsort())
    check_finite_variances(found.variance, [rows[i] for one in comparisons for i in one.rows])
    return found


def compared_scores(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    comparisons: Sequence[Comparison],
    posterior: Posterior,
    progress: Progress | None = None,
) -> RewardScores:
    """`score_differences` of the first N rows, each of which is compared once, in their order."""
    order = [i for one in comparisons for i in one.rows]
    back = torch.tensor(order, dtype=torch.int64, device="cpu").argsort()
    found = score_differences(passes, rows, comparisons, posterior, progress).at(back)
    return RewardScores(found.mean, found.variance, *truncated_and_tokens(rows[: len(order)]), found.baseline)


def over_differences(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    comparisons: Sequence[Comparison],
    make_consumer: Callable[[], C],
    progress: Progress | None = None,
) -> Iterator[DifferenceBatch[C]]:
    """Differences to a baseline, their gradients going to consumers.

    One forward and backward pass over the distinct rows. Their gradients are kept until those of their baseline are
    there, for some comparisons at a time; then their differences go to a consumer. A comparison that does not fit in
    memory by itself takes two passes, of which the first keeps the mean gradient alone.

    Args:
        passes: the model.
        rows: of all comparisons.
        comparisons: at least one.
        make_consumer: gives the consumer of a batch of differences.
        progress: told the differences done and their total.

    Raises:
        InputError: a reward that is NaN or infinite, by its row.
    """
    sizes = [site.r * site.d for site in passes.tapped.sites]
    weights = sum(sizes) + COPIES_OF_A_SITE * max(sizes, default=0)
    a_gradient = max(weights * passes.tapped.gradient_dtype.itemsize, 1)
    most = max(int(SHARE_FOR_GRADIENTS * free_bytes(passes.device)) // a_gradient, 1)
    total, before, done = sum(len(one.rows) for one in comparisons), 0, 0
    for window in _windows(comparisons, min(most, WINDOW_ROWS)):
        fits = len({i for one in window for i in (*one.rows, *one.baseline)}) <= most
        kept = _if_it_fits(passes, rows, window, make_consumer) if fits else None
        batches: Iterable[DifferenceBatch[C]]
        batches = [kept] if kept is not None else _each_by_two_passes(passes, rows, window, make_consumer)
        for batch in batches:
            yield replace(batch, positions=batch.positions + before)
            done += len(batch.mean)
            if progress is not None:
                progress(done, total)
        before += sum(len(one.rows) for one in window)


def _windows(comparisons: Sequence[Comparison], most: int) -> Iterator[list[Comparison]]:
    """Comparisons in their order, as many at a time as have no more than `most` rows together, nor more differences."""
    window: list[Comparison] = []
    held: set[int] = set()
    differences = 0
    for one in comparisons:
        own = {*one.rows, *one.baseline}
        if window and max(len(held | own), differences + len(one.rows)) > most:
            yield window
            window, held, differences = [], set(), 0
        window.append(one)
        held |= own
        differences += len(one.rows)
    yield window


def _if_it_fits(
    passes: Passes, rows: Sequence[TokenizedRow], window: Sequence[Comparison], make_consumer: Callable[[], C]
) -> DifferenceBatch[C] | None:
    """By kept gradients; None where they turn out not to fit beside the batches."""
    try:
        return _by_kept_gradients(passes, rows, window, make_consumer())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release_memory(passes.device)  # here, because the exception's frames hold the gradients
    return None


def _by_kept_gradients(
    passes: Passes, rows: Sequence[TokenizedRow], window: Sequence[Comparison], consumer: C
) -> DifferenceBatch[C]:
    positions = sorted({i for one in window for i in (*one.rows, *one.baseline)})
    first, where = distinct([rows[i] for i in positions])
    unique = [rows[positions[i]] for i in first]
    place = dict(zip(positions, where, strict=True))
    order: list[int] = []
    rewards: list[Tensor] = []
    kept: list[dict[Site, Tensor]] = []
    for batch in over_examples(passes, unique, unit_cotangent, KeptGradients):
        order += batch.positions
        rewards.append(batch.rewards)
        kept.append(batch.consumer.by_site)
    back = torch.tensor(order, dtype=torch.int64, device="cpu").argsort().tolist()
    compared, owner = _entries([[back[place[i]] for i in one.rows] for one in window])
    origin, origin_owner = _entries([[back[place[i]] for i in one.baseline] for one in window])
    counts = torch.bincount(origin_owner, minlength=len(window)).clamp(min=1)
    has_origin = torch.tensor([bool(one.baseline) for one in window], dtype=torch.bool, device="cpu")
    origins = [back[place[one.baseline[0]]] if one.baseline else 0 for one in window]
    first_origin = torch.tensor(origins, dtype=torch.int64, device="cpu")

    def mean_of(values: Tensor) -> Tensor:  # (U, …) -> (comparisons, …)
        # As differences to each comparison's first row: the mean of equal rows is that row, to the last digit.
        at, owners = origin.to(values.device), origin_owner.to(values.device)
        anchors = values[first_origin.to(values.device)] * has_origin.to(values).view(-1, *[1] * (values.dim() - 1))
        total = values.new_zeros(len(window), *values.shape[1:])
        total.index_add_(0, owners, values[at] - anchors[owners])
        return anchors + total / counts.to(values).view(-1, *[1] * (values.dim() - 1))

    for site in list(kept[0]):
        gradients = torch.cat([batch.pop(site) for batch in kept])  # in the order of the batches
        at = gradients.device
        feed_gradients(consumer, site, gradients[compared.to(at)] - mean_of(gradients)[owner.to(at)])
    reward = torch.cat(rewards).cpu()
    baseline = mean_of(reward.double())[owner]
    mean = reward.double()[compared] - baseline
    found = torch.arange(len(compared), dtype=torch.int64, device="cpu")
    return DifferenceBatch(found, mean.to(reward), baseline.to(reward), consumer)


def _entries(positions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """All positions in one, and the number of the comparison that each belongs to."""
    owners = [number for number, own in enumerate(positions) for _ in own]
    flat = [i for own in positions for i in own]
    entries, numbers = torch.tensor([flat, owners], dtype=torch.int64, device="cpu")
    return entries, numbers


def _each_by_two_passes(
    passes: Passes, rows: Sequence[TokenizedRow], window: Sequence[Comparison], make_consumer: Callable[[], C]
) -> Iterator[DifferenceBatch[C]]:
    before = 0
    for one in window:
        for batch in _by_two_passes(passes, rows, one, make_consumer):
            yield replace(batch, positions=batch.positions + before)
        before += len(one.rows)


def _by_two_passes(
    passes: Passes, rows: Sequence[TokenizedRow], one: Comparison, make_consumer: Callable[[], C]
) -> Iterator[DifferenceBatch[C]]:
    mean_gradient, baseline = _MeanGradient(), torch.zeros((), dtype=torch.float64, device="cpu")
    if one.baseline:
        scalars, mean_gradient = passes.gather([rows[i] for i in one.baseline], unit_cotangent, _MeanGradient)
        baseline = scalars.double().mean()
    compared = [rows[i] for i in one.rows]
    for batch in over_examples(passes, compared, unit_cotangent, lambda: _Shifted(make_consumer(), mean_gradient)):
        reward = batch.rewards.cpu()
        mean = (reward.double() - baseline).to(reward)
        at = torch.tensor(batch.positions, dtype=torch.int64, device="cpu")
        yield DifferenceBatch(at, mean, baseline.to(reward).expand(len(mean)), batch.consumer.inner)


class _MeanGradient:
    """Adds up gradients `[r, d]` over all rows of all batches."""

    gradients_alone = True

    def __init__(self) -> None:
        self.total: dict[Site, Tensor] = {}
        self.rows: dict[Site, int] = {}

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        whole = torch.stack([offsets[0], offsets[-1]])  # all rows of a batch as one segment
        gradient = segment_outer(p, q, whole)[0]
        self.total[site] = self.total[site] + gradient if site in self.total else gradient
        self.rows[site] = self.rows.get(site, 0) + len(offsets) - 1

    def of(self, site: Site) -> Tensor | float:  # shape: (r, d)
        return self.total[site] / self.rows[site] if site in self.total else 0.0


class _Shifted(Generic[C]):
    """Feeds a consumer with gradients less a mean one."""

    gradients_alone = True

    def __init__(self, inner: C, mean: _MeanGradient) -> None:
        self.inner, self.mean = inner, mean

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        feed_gradients(self.inner, site, segment_outer(p, q, offsets) - self.mean.of(site))
