"""A tapped model run over many segments, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bayesrm_fast.batching import TokenBatch, collate, plan_batches
from bayesrm_fast.classifier import Classifier
from bayesrm_fast.errors import InputError
from bayesrm_fast.room import Room, is_out_of_memory, release_memory, tokens_that_fit
from bayesrm_fast.sites import Site
from bayesrm_fast.taps import Consumer, TappedModel
from bayesrm_fast.text import TokenizedText

Progress = Callable[[int, int], None]
"""Called with the number of segments done and their total after every batch."""

C = TypeVar("C", bound=Consumer)
R = TypeVar("R")

Segment = tuple[TokenizedText, ...]
"""One row, or a pair's two rows, chosen first."""


def drawn(segments: Sequence[Segment], count: int) -> list[Segment]:
    """At most `count` of the segments, drawn by lot; the same ones every time."""
    lot = torch.randperm(len(segments), generator=torch.Generator().manual_seed(0))[:count].tolist()
    return [segments[i] for i in lot]


class StartAgain(Exception):
    """A batch did not fit in memory in the middle of what cannot be taken back; the room has been made smaller."""


@dataclass(frozen=True)
class Passes:
    """How a model is run over segments.

    Attributes:
        tapped: the model.
        pad_token_id: None where neither model nor tokenizer has one.
        vocab_size: number of token ids.
        room: how many tokens a batch may have; shrinks where memory runs out.
        device: where the model's inputs go.
    """

    tapped: TappedModel
    pad_token_id: int | None
    vocab_size: int
    room: Room
    device: torch.device

    @property
    def classifier(self) -> Classifier:
        """The model without its taps."""
        return self.tapped.classifier

    def over(
        self,
        segments: Sequence[Segment],
        cotangent: Callable[[Tensor], Tensor],
        consumer_for: Callable[[int], C],
        progress: Progress | None = None,
    ) -> Iterator[tuple[list[int], Tensor, C]]:
        """One forward and backward pass over every segment.

        A batch that does not fit in memory is run again in parts, with new consumers.

        Args:
            segments: all of one size, one row or two.
            cotangent: from a batch's rewards `[B]` to their cotangents `[B]`.
            consumer_for: from a batch's number of segments to the consumer of the batch.
            progress: told after every batch.

        Yields:
            For each batch: positions in `segments`, rewards `[N, rows of a segment]`, and the batch's consumer.

        Raises:
            InputError: a reward that is NaN or infinite.
        """

        def run(positions: list[int]) -> tuple[list[int], Tensor, C]:
            consumer = consumer_for(len(positions))
            return positions, self._run(segments, positions, cotangent, consumer), consumer

        yield from self.in_batches(segments, run, progress, has_backward=True)

    def gather(
        self,
        segments: Sequence[Segment],
        cotangent: Callable[[Tensor], Tensor],
        consumer: Consumer,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:  # shape of each: (N, rows of a segment)
        """The same with one consumer for all batches; yields each batch's rewards.

        Raises:
            InputError: a reward that is NaN or infinite.
            StartAgain: a batch did not fit in memory, and the consumer may have seen a part of it. The next try has
                smaller ones.
        """
        done = 0
        for positions in plan_batches(segments, self.room.batch_tokens):
            try:
                rewards = self._run(segments, positions, cotangent, consumer)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.room.shrink(error, len(positions), _padded(segments, positions), has_backward=True)
                raise StartAgain from error
            yield rewards
            done += len(positions)
            if progress is not None:
                progress(done, len(segments))

    def _run(
        self,
        segments: Sequence[Segment],
        positions: Sequence[int],
        cotangent: Callable[[Tensor], Tensor],
        consumer: Consumer,
    ) -> Tensor:
        batch = self.collate([segments[i] for i in positions])
        rewards = self.tapped.run(batch, cotangent, consumer, checkpoints=self.room.checkpoints)
        rewards = rewards.view(len(positions), -1)
        check_finite(rewards, positions)
        return rewards

    def in_batches(
        self,
        segments: Sequence[Segment],
        run: Callable[[list[int]], R],
        progress: Progress | None,
        *,
        has_backward: bool,
        before: int = 0,
    ) -> Iterator[R]:
        """`run` for the positions of every batch; a batch that does not fit in memory is planned again, smaller.

        Args:
            segments: to be planned by their lengths.
            run: what to do with the positions of a batch.
            progress: told after every batch.
            has_backward: whether gradient checkpointing could help.
            before: tokens that every row has in memory before its own.
        """
        waiting = list(reversed(plan_batches(segments, self.room.batch_tokens, before)))
        done = 0
        while waiting:
            positions = waiting.pop()
            results: list[R] = []
            try:
                results.append(run(positions))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.room.shrink(error, len(positions), _padded(segments, positions, before), has_backward)
            if not results:  # here, because the exception's frames hold what the batch has allocated
                release_memory(self.device)
                left = sorted(i for batch in [*waiting, positions] for i in batch)
                replanned = plan_batches([segments[i] for i in left], self.room.batch_tokens, before)
                waiting = [[left[i] for i in batch] for batch in reversed(replanned)]
                continue
            yield results[0]
            done += len(positions)
            if progress is not None:
                progress(done, len(segments))

    def collate(self, segments: Sequence[Segment]) -> TokenBatch:
        """A batch on the model's device."""
        return collate(segments, self.pad_token_id, self.vocab_size, self.device)

    def shared_inputs(self, segment: Segment) -> dict[str, str]:
        """`TappedModel.shared_inputs` of one segment."""
        return self.tapped.shared_inputs(self.collate([segment]))


def _padded(segments: Sequence[Segment], positions: Sequence[int], before: int = 0) -> int:
    """Tokens of a batch, padding included."""
    rows = [row for i in positions for row in segments[i]]
    return len(rows) * (before + max(len(row.input_ids) for row in rows))


class _Nothing:
    gradients_alone = True

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        pass


def measured_room(
    tapped: TappedModel, max_length: int, pad_token_id: int | None, vocab_size: int, device: torch.device
) -> Room:
    """The token budget of a GPU, from two trial batches of random rows."""
    length = min(max_length, 256)

    def peak_bytes(tokens: int) -> int:
        ids = torch.randint(1, vocab_size, (max(tokens // length, 1), length)).tolist()
        rows = [(TokenizedText(row, None, False),) for row in ids]
        batch = collate(rows, pad_token_id, vocab_size, device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        tapped.run(batch, row_cotangent, _Nothing())
        return torch.cuda.max_memory_allocated(device) - before

    release_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    return Room(tokens_that_fit(peak_bytes, free, 2 * length))


def check_finite(rewards: Tensor, positions: Sequence[int]) -> None:  # shape: (N, rows of a segment)
    """Raise InputError where a reward is NaN or infinite, by its position."""
    finite = rewards.isfinite().all(1)
    if not finite.all():
        first = positions[int((~finite).nonzero()[0])]
        raise InputError(f"the model's reward of row {first + 1} is NaN or infinite")


def row_cotangent(rewards: Tensor) -> Tensor:
    """Cotangents under which every row's segment is its own Jacobian."""
    return torch.ones_like(rewards)


def pair_cotangent(rewards: Tensor) -> Tensor:
    """Cotangents under which a pair's segment is `J_chosen − J_rejected`."""
    signs = torch.ones_like(rewards)
    signs[1::2] = -1
    return signs


def likelihood_cotangent(rewards: Tensor) -> Tensor:
    """Pair cotangents times `√Λ`, `Λ = σ(Δ)(1 − σ(Δ))`, under which `Σ j jᵀ` is the GGN of the Bradley–Terry loss."""
    difference = rewards[0::2] - rewards[1::2]
    curvature = torch.sigmoid(difference) * torch.sigmoid(-difference)
    return pair_cotangent(rewards) * curvature.sqrt().repeat_interleave(2)
