"""A pool of pairs that nobody has judged, and the batch of them that a labeller should judge next."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.passes import Passes, Progress
from bayesrm_fast.model.reward_model import RewardModel
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.probit import probit_probability
from bayesrm_fast.score.features import DifferenceCovariance, Outside, whitened_gradients
from bayesrm_fast.score.relative import Comparison, score_differences
from bayesrm_fast.select.pairs import greedy_batch, label_information
from bayesrm_fast.text.examples import TokenizedRow
from bayesrm_fast.text.prefetching import prefetched
from bayesrm_fast.text.records import Candidates, PreferencePair

Strategy = Literal["information", "uncertainty", "random"]

SHORTLIST = 2048
"""Pairs that are looked at together, at least."""

SHORTLIST_OF_A_CHOICE = 4
"""The same for each pair that is asked for, so that a large batch has something to choose among."""

EXACT = 2**26
"""Numbers of float32 gradients, 256 MB, that are kept as they are; more are sketched. Whatever memory is free, so that
a batch is the same one on every machine."""

CHUNK = 1024
"""Pairs of the pool that are scored at a time."""

ROWS_TOKENIZED = 64
"""Rows of the pool that are tokenized at a time."""


@dataclass(frozen=True)
class SelectionPlan:
    """What a selection is asked for; checked when it is made.

    Attributes:
        count: pairs to select.
        strategy: "information", "uncertainty" or "random".
        seed: of "random".
        shortlist: pairs of the largest information that are looked at together; None for the default.

    Raises:
        InputError: no whole count of at least 1, an unknown strategy, a seed that is no whole number, or a shortlist
            shorter than the count.
    """

    count: int
    strategy: Strategy = "information"
    seed: int = 0
    shortlist: int | None = None

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise InputError(f"count must be a whole number of at least 1, not {self.count!r}")
        if self.strategy not in get_args(Strategy):
            raise InputError(f"strategy must be one of {', '.join(get_args(Strategy))}, not {self.strategy!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number of at least 0, not {self.seed!r}")
        if self.shortlist is not None and (type(self.shortlist) is not int or self.shortlist < self.count):
            raise InputError(
                f"shortlist must be a whole number of at least the count, {self.count}, not {self.shortlist!r}"
            )

    @property
    def kept(self) -> int:
        """How many pairs of the pool are kept until all are seen."""
        if self.strategy != "information":
            return self.count
        return self.shortlist or max(SHORTLIST, SHORTLIST_OF_A_CHOICE * self.count)

    def check_pool(self, pairs: int) -> None:
        """Raise InputError where a pool has fewer pairs than are asked for."""
        if pairs < self.count:
            raise InputError(f"count is {self.count}, and the pool has {pairs} pair(s)")


@dataclass(frozen=True)
class SelectedPair:
    """A pair for a labeller.

    Attributes:
        row: position of its row in the pool, from 0.
        first, second: positions of its two responses in the row: 0 and 1 are `chosen` and `rejected` of a pair.
        information: what its label is expected to say about the reward function, in nats; with the strategy
            "information" given the labels of those before it.
        probability: that the first response is preferred.
        std: posterior standard deviation of the difference of the two rewards.
    """

    row: int
    first: int
    second: int
    information: float
    probability: float
    std: float


@dataclass(frozen=True)
class SelectedPairs:
    """A batch of pairs for a labeller.

    Attributes:
        pairs: in the order of choice.
        left_out: the largest information of a pair that was not on the shortlist; 0 where all were, or there was none.
            Every pair of the batch with at least as much would have been chosen from the whole pool as well.
        sketch_error: root mean square of the relative error of the variances, had they been taken from the sketch that
            gives the covariances; None where those are exact or were not needed.
    """

    pairs: list[SelectedPair]
    left_out: float
    sketch_error: float | None


@dataclass(frozen=True)
class _PoolPair:
    """A pair of the pool; the attributes of `SelectedPair`, and its two rows."""

    row: int
    first: int
    second: int
    rows: tuple[TokenizedRow, TokenizedRow]

    @property
    def is_equal(self) -> bool:
        """To the model, after a cut too."""
        return self.rows[0] == self.rows[1]


class _Shortlist:
    """The pairs of the largest priorities of those seen, in that order, the first one of equals before the others.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.pairs: list[_PoolPair] = []
        self.numbers = torch.empty(3, 0, dtype=torch.float64, device="cpu")  # priority, mean and variance of each
        self.left_out = 0.0

    def add(self, pairs: Sequence[_PoolPair], priority: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Take some more, and let go of those that are too many; a pair of equal responses goes first."""
        is_equal = torch.tensor([pair.is_equal for pair in pairs], dtype=torch.bool, device="cpu")
        numbers = torch.stack([torch.where(is_equal, -1.0, priority), mean, variance])
        self.pairs += pairs
        self.numbers = torch.cat([self.numbers, numbers], 1)
        order = self.numbers[0].argsort(descending=True, stable=True)
        if len(order) > self.most:
            self.left_out = max(self.left_out, float(self.numbers[0, order[self.most]]))
        order = order[: self.most]
        self.pairs, self.numbers = [self.pairs[i] for i in order.tolist()], self.numbers[:, order]


def select_pairs(
    model: RewardModel,
    passes: Passes,
    posterior: Posterior,
    records: Iterable[PreferencePair | Candidates],
    pool: int,
    plan: SelectionPlan,
    progress: Progress | None = None,
) -> SelectedPairs:
    """The batch of a pool, whose rows are read once and not kept.

    Every pair is scored by itself, and those with the largest information are kept; among them the batch is chosen, one
    after another, each given those before it (`greedy_batch`). A pair of equal responses is chosen last.

    Args:
        model: that tokenizes.
        passes: of the same model.
        posterior: on the device of the passes.
        records: the pool.
        pool: how many pairs they hold.
        plan: what is asked for.
        progress: told the pairs done and their total.

    Raises:
        InputError: a pool with fewer pairs than are asked for, text that cannot be written as a row, or a reward or
            variance that is NaN or infinite, by its row.
    """
    plan.check_pool(pool)
    tell: Progress = progress or (lambda done, total: None)
    kept = _Shortlist(plan.kept)
    if plan.strategy == "random":
        lot = torch.Generator().manual_seed(plan.seed)
        for chunk in _chunks(_pairs(model, records)):
            priority = torch.rand(len(chunk), generator=lot, dtype=torch.float64, device="cpu")
            kept.add(chunk, priority, priority, priority)
        mean, variance = _scored(passes, kept.pairs, posterior, progress)
        return _each_by_itself(kept.pairs, mean, variance, posterior.temperature)
    is_joint = plan.strategy == "information"
    seen, total = 0, pool + is_joint * min(plan.kept, pool)
    for chunk in prefetched(_chunks(_pairs(model, records))):
        mean, variance = _scored(passes, chunk, posterior)
        kept.add(chunk, _information(mean, variance, posterior.temperature) if is_joint else variance, mean, variance)
        seen += len(chunk)
        tell(seen, total)
    if is_joint:
        return _jointly(
            passes, posterior, kept, plan.count, lambda done, of: tell(seen + (total - seen) * done // of, total)
        )
    return _each_by_itself(kept.pairs, kept.numbers[1], kept.numbers[2], posterior.temperature)


def _pairs(model: RewardModel, records: Iterable[PreferencePair | Candidates]) -> Iterator[_PoolPair]:
    """Every two responses of a row, in their order."""
    waiting = iter(records)
    number = 0
    while some := list(itertools.islice(waiting, ROWS_TOKENIZED)):
        for rows in _tokenized(model, some):
            for (i, first), (j, second) in itertools.combinations(enumerate(rows), 2):
                yield _PoolPair(number, i, j, (first, second))
            number += 1


def _tokenized(model: RewardModel, records: Sequence[PreferencePair | Candidates]) -> list[list[TokenizedRow]]:
    """The responses of rows of one kind."""
    if isinstance(records[0], PreferencePair):
        pairs = [one for one in records if isinstance(one, PreferencePair)]
        return [list(pair.rows) for pair in model.encoder.encode_pairs(pairs)]
    sets = [one for one in records if isinstance(one, Candidates)]
    rows = iter(model.tokenize_candidates(sets))
    return [list(itertools.islice(rows, len(one.responses))) for one in sets]


def _chunks(pairs: Iterable[_PoolPair]) -> Iterator[list[_PoolPair]]:
    waiting = iter(pairs)
    while chunk := list(itertools.islice(waiting, CHUNK)):
        yield chunk


def _distinct_rows(pairs: Sequence[_PoolPair]) -> tuple[list[TokenizedRow], list[tuple[int, int]]]:
    """The rows of some pairs, one that several pairs share once, and where those of each pair are."""
    places: dict[int, int] = {}
    rows: list[TokenizedRow] = []
    for row in (row for pair in pairs for row in pair.rows):
        if id(row) not in places:
            places[id(row)] = len(rows)
            rows.append(row)
    return rows, [(places[id(pair.rows[0])], places[id(pair.rows[1])]) for pair in pairs]


def _scored(
    passes: Passes, pairs: Sequence[_PoolPair], posterior: Posterior, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:  # shapes: (M,), (M,)
    """Means and variances of the pairs' differences, float64; those of equal responses are exactly 0."""
    rows, where = _distinct_rows(pairs)
    found = score_differences(passes, rows, [Comparison([a], [b]) for a, b in where], posterior, progress)
    return found.mean.double(), found.variance.double()


def _information(mean: Tensor, variance: Tensor, temperature: float) -> Tensor:
    return label_information(mean / temperature, variance / temperature**2)[0]


def _jointly(passes: Passes, posterior: Posterior, kept: _Shortlist, count: int, progress: Progress) -> SelectedPairs:
    rows, where = _distinct_rows(kept.pairs)
    first, second = torch.tensor(where, dtype=torch.int64, device="cpu").T
    outside: Outside = "exact" if len(rows) * posterior.parameters <= EXACT else "sketch"
    features = whitened_gradients(passes, rows, posterior, outside, progress)
    _, mean, variance = kept.numbers
    covariance = DifferenceCovariance(features, first, second, variance)
    temperature = posterior.temperature
    order, information = greedy_batch(
        mean / temperature, variance / temperature**2, lambda i: covariance.column(i) / temperature**2, count
    )
    pairs = [kept.pairs[i] for i in order]
    selected = _selected(pairs, mean[order], variance[order], temperature, information)
    return SelectedPairs(selected, kept.left_out, covariance.sketch_error)


def _each_by_itself(pairs: Sequence[_PoolPair], mean: Tensor, variance: Tensor, temperature: float) -> SelectedPairs:
    information = _information(mean, variance, temperature).tolist()
    return SelectedPairs(_selected(pairs, mean, variance, temperature, information), 0.0, None)


def _selected(
    pairs: Sequence[_PoolPair], mean: Tensor, variance: Tensor, temperature: float, information: Sequence[float]
) -> list[SelectedPair]:
    probability = probit_probability(mean, variance, temperature).tolist()
    told = zip(pairs, information, probability, variance.sqrt().tolist(), strict=True)
    return [SelectedPair(pair.row, pair.first, pair.second, *numbers) for pair, *numbers in told]
