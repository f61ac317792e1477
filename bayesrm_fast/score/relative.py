"""A reward's difference to the mean of others, and its uncertainty: what a choice among a prompt's candidates risks.

A Bradley–Terry reward has a free constant for each prompt, whose variance is in that of the reward itself and says
nothing about a choice (docs/maths.md, section 11).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.model.passes import Passes, Progress, unit_cotangent
from bayesrm_fast.model.token_budget import free_bytes
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.base import Posterior, VarianceConsumer
from bayesrm_fast.sites import Site
from bayesrm_fast.text.examples import TokenizedRow, distinct

SHARE_FOR_GRADIENTS = 0.25
"""Of the free memory: what gradients may take that wait for their baseline."""


@dataclass(frozen=True)
class Comparison:
    """Rows whose rewards are compared with one baseline.

    Attributes:
        rows: positions among all rows.
        baseline: positions of the rows whose mean reward is subtracted, each as often as it counts.
    """

    rows: list[int]
    baseline: list[int]


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


def in_order(comparisons: Sequence[Comparison], found: Differences) -> Differences:
    """The same in the order of the rows, where every row is compared once."""
    back = torch.tensor([i for one in comparisons for i in one.rows]).argsort()
    return Differences(found.mean[back], found.variance[back], found.baseline[back])


def score_differences(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    comparisons: Sequence[Comparison],
    posterior: Posterior,
    progress: Progress | None = None,
) -> Differences:
    """Means and variances of differences to a baseline, exact for every structure.

    One forward and backward pass over the distinct rows. Their gradients are kept until those of their baseline are
    there, for as many comparisons at a time as fit in memory; then their differences go to the posterior's consumer. A
    comparison that does not fit by itself takes two passes, of which the first keeps the mean gradient alone.

    Args:
        passes: the model.
        rows: of all comparisons.
        comparisons: at least one.
        posterior: on the device of the passes.
        progress: told the comparisons' rows done and their total.

    Raises:
        InputError: a reward that is NaN or infinite, by its row.
    """
    a_gradient = posterior.parameters * passes.tapped.gradient_dtype.itemsize
    most = max(int(SHARE_FOR_GRADIENTS * free_bytes(passes.device)) // max(a_gradient, 1), 1)
    total, done = sum(len(one.rows) for one in comparisons), 0
    found: list[Differences] = []
    for window in _windows(comparisons, most):
        is_kept = len({i for one in window for i in (*one.rows, *one.baseline)}) <= most
        found.append((_by_kept_gradients if is_kept else _by_two_passes)(passes, rows, window, posterior))
        done += len(found[-1].mean)
        if progress is not None:
            progress(done, total)
    return Differences(
        torch.cat([one.mean for one in found]),
        torch.cat([one.variance for one in found]),
        torch.cat([one.baseline for one in found]),
    )


def _windows(comparisons: Sequence[Comparison], most: int) -> Iterator[list[Comparison]]:
    """Comparisons in their order, as many at a time as have no more than `most` rows together."""
    window: list[Comparison] = []
    held: set[int] = set()
    for one in comparisons:
        own = {*one.rows, *one.baseline}
        if window and len(held | own) > most:
            yield window
            window, held = [], set()
        window.append(one)
        held |= own
    yield window


class _Gradients:
    """Keeps the gradients of a batch's rows `[N, r, d]`."""

    gradients_alone = True

    def __init__(self) -> None:
        self.by_site: dict[Site, Tensor] = {}

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        self.by_site[site] = segment_outer(p, q, offsets)


def _by_kept_gradients(
    passes: Passes, rows: Sequence[TokenizedRow], window: Sequence[Comparison], posterior: Posterior
) -> Differences:
    positions = sorted({i for one in window for i in (*one.rows, *one.baseline)})
    first, where = distinct([rows[i] for i in positions])
    unique = [rows[positions[i]] for i in first]
    place = dict(zip(positions, where, strict=True))
    order: list[int] = []
    rewards: list[Tensor] = []
    kept: list[dict[Site, Tensor]] = []
    for batch in passes.over(unique, unit_cotangent, _Gradients):
        order += batch.positions
        rewards.append(batch.rewards)
        kept.append(batch.consumer.by_site)
    back = torch.tensor(order).argsort().tolist()
    compared, owner = _entries([[back[place[i]] for i in one.rows] for one in window])
    origin, origin_owner = _entries([[back[place[i]] for i in one.baseline] for one in window])
    counts = torch.bincount(origin_owner)

    def mean_of(values: Tensor) -> Tensor:  # (U, …) -> (comparisons, …)
        of_rows = values[origin.to(values.device)]
        total = values.new_zeros(len(window), *values.shape[1:])
        total.index_add_(0, origin_owner.to(values.device), of_rows)
        return total / counts.to(values).view(-1, *[1] * (values.dim() - 1))

    consumer = posterior.variance_consumer()
    for site in list(kept[0]):
        gradients = torch.cat([batch.pop(site) for batch in kept])  # in the order of the batches
        at = gradients.device
        _feed(consumer, site, gradients[compared.to(at)] - mean_of(gradients)[owner.to(at)])
    reward = torch.cat(rewards).cpu()
    baseline = mean_of(reward.double())[owner]
    mean = reward.double()[compared] - baseline
    return Differences(mean.to(reward), consumer.variance.cpu().expand(len(compared)), baseline.to(reward))


def _entries(positions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """All positions in one, and the number of the comparison that each belongs to."""
    owners = [number for number, own in enumerate(positions) for _ in own]
    return torch.tensor([i for own in positions for i in own]), torch.tensor(owners)


def _by_two_passes(
    passes: Passes, rows: Sequence[TokenizedRow], window: Sequence[Comparison], posterior: Posterior
) -> Differences:
    (one,) = window
    scalars, mean = passes.gather([rows[i] for i in one.baseline], unit_cotangent, _MeanGradient)
    first, where = distinct([rows[i] for i in one.rows])
    order: list[int] = []
    rewards: list[Tensor] = []
    variances: list[Tensor] = []
    for batch in passes.over(
        [rows[one.rows[i]] for i in first], unit_cotangent, lambda: _Shifted(posterior.variance_consumer(), mean)
    ):
        order += batch.positions
        rewards.append(batch.rewards.cpu())
        variances.append(batch.consumer.inner.variance.cpu())
    back = torch.tensor(order).argsort()[where]
    baseline = scalars.double().mean()
    reward = torch.cat(rewards)[back]
    return Differences(
        (reward.double() - baseline).to(reward), torch.cat(variances)[back], baseline.to(reward).expand(len(reward))
    )


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

    def of(self, site: Site) -> Tensor:  # shape: (r, d)
        return self.total[site] / self.rows[site]


class _Shifted:
    """Feeds a consumer with gradients less a mean one."""

    gradients_alone = True

    def __init__(self, inner: VarianceConsumer, mean: _MeanGradient) -> None:
        self.inner, self.mean = inner, mean

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        _feed(self.inner, site, segment_outer(p, q, offsets) - self.mean.of(site))


def _feed(consumer: VarianceConsumer, site: Site, gradients: Tensor) -> None:  # shape: (N, r, d)
    """Gradients as r tokens each, `G = Σ_k e_k G_kᵀ`: what a consumer takes."""
    count = gradients.shape[0]
    p = torch.eye(site.r, dtype=gradients.dtype, device=gradients.device).repeat(count, 1)
    offsets = torch.arange(0, (count + 1) * site.r, site.r, device=gradients.device)
    consumer.consume(site, p, gradients.reshape(-1, site.d), offsets)
