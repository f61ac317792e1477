"""A tapped model run over many segments, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bayesrm_fast.batching import collate, plan_batches
from bayesrm_fast.errors import InputError
from bayesrm_fast.taps import Consumer, TappedModel
from bayesrm_fast.text import TokenizedText

Progress = Callable[[int, int], None]
"""Called with the number of segments done and their total after every batch."""

C = TypeVar("C", bound=Consumer)

Segment = tuple[TokenizedText, ...]
"""One row, or a pair's two rows, chosen first."""


@dataclass(frozen=True)
class Passes:
    """How a model is run over segments.

    Attributes:
        tapped: the model.
        pad_token_id: None where neither model nor tokenizer has one.
        vocab_size: number of token ids.
        max_batch_tokens: tokens of a batch, padding included.
        device: where the model's inputs go.
    """

    tapped: TappedModel
    pad_token_id: int | None
    vocab_size: int
    max_batch_tokens: int
    device: torch.device

    def over(
        self,
        segments: Sequence[Segment],
        cotangent: Callable[[Tensor], Tensor],
        consumer_for: Callable[[int], C],
        progress: Progress | None = None,
    ) -> Iterator[tuple[list[int], Tensor, C]]:
        """One forward and backward pass over every segment.

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
        done = 0
        for positions in plan_batches(segments, self.max_batch_tokens):
            chosen = [segments[i] for i in positions]
            batch = collate(chosen, self.pad_token_id, self.vocab_size, self.device)
            consumer = consumer_for(len(chosen))
            rewards = self.tapped.run(batch, cotangent, consumer).view(len(chosen), -1)
            finite = rewards.isfinite().all(1)
            if not finite.all():
                first = positions[int((~finite).nonzero()[0])]
                raise InputError(f"the model's reward of row {first + 1} is NaN or infinite")
            done += len(chosen)
            if progress is not None:
                progress(done, len(segments))
            yield positions, rewards, consumer

    def shared_inputs(self, segment: Segment) -> dict[str, str]:
        """`TappedModel.shared_inputs` of one segment."""
        return self.tapped.shared_inputs(collate([segment], self.pad_token_id, self.vocab_size, self.device))


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
