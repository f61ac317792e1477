"""A tapped model run over many examples, batch by batch, smaller ones where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.shortcut_trials import RowFrame, random_rows
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.model.token_budget import TokenBudget, is_out_of_memory, release_memory, tokens_that_fit
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.sites import Consumer, Site
from bayesrm_fast.text.batches import Collator, plan_batches
from bayesrm_fast.text.examples import Example

Progress = Callable[[int, int], None]
"""Called with the number of examples done and their total after every batch."""

C = TypeVar("C", bound=Consumer)
E = TypeVar("E", bound=Example)
R = TypeVar("R")


@dataclass(frozen=True)
class BatchResult(Generic[C]):
    """What one batch of a pass gave.

    Attributes:
        positions: of its N examples among all.
        scalars: `[N, S]`.
        consumers: of each of the S backward passes.
    """

    positions: list[int]
    scalars: Tensor
    consumers: list[C]

    @property
    def rewards(self) -> Tensor:  # shape: (N,)
        """The scalars, where a row has one; raises InputError where it has several."""
        return rewards_in(self.scalars)

    @property
    def consumer(self) -> C:
        """Of the backward pass, where there is one."""
        (consumer,) = self.consumers
        return consumer


@dataclass(frozen=True)
class Passes:
    """How a model is run over examples.

    Attributes:
        tapped: the model.
        collate: makes its batches.
        budget: how many tokens a batch may have; shrinks where memory runs out.
    """

    tapped: TappedModel
    collate: Collator
    budget: TokenBudget

    @property
    def forward(self) -> Forward:
        """The model without its taps."""
        return self.tapped.forward

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.collate.device

    def over(
        self,
        examples: Sequence[Example],
        cotangent: Callable[[Tensor], Tensor],
        make_consumer: Callable[[], C],
        progress: Progress | None = None,
    ) -> Iterator[BatchResult[C]]:
        """One forward and backward pass over every example, with consumers for each batch.

        A batch that does not fit in memory is run again in parts, with new consumers.

        Args:
            examples: all of one kind, rows or pairs.
            cotangent: from a batch's scalars `[N]` to their cotangents `[N]`.
            make_consumer: gives the consumer of a backward pass over a batch.
            progress: told after every batch.

        Raises:
            InputError: a reward that is NaN or infinite, by its example.
        """
        done = 0
        for positions, (scalars, consumers) in self.in_batches(
            examples, lambda positions: self.run(examples, positions, cotangent, make_consumer), has_backward=True
        ):
            yield BatchResult(positions, scalars, consumers)
            done += len(positions)
            if progress is not None:
                progress(done, len(examples))

    def gather(
        self,
        examples: Sequence[Example],
        cotangent: Callable[[Tensor], Tensor],
        make_consumer: Callable[[], C],
        progress: Progress | None = None,
    ) -> tuple[Tensor, C]:  # shape: (N, S)
        """The same with one consumer for all batches and all of the S backward passes.

        Where a batch does not fit in memory the consumer may have seen a part of it: the pass starts again with
        smaller batches and a new consumer, and `progress` from the beginning.

        Returns:
            The scalars of all examples, on the CPU; and the consumer.

        Raises:
            InputError: a reward that is NaN or infinite, by its example.
        """

        while True:
            consumer = make_consumer()
            scalars = self._gathered(examples, cotangent, consumer, progress)
            if scalars is not None:
                return scalars, consumer
            del consumer  # its sums are as much as the next one's
            release_memory(self.device)

    def _gathered(
        self,
        examples: Sequence[Example],
        cotangent: Callable[[Tensor], Tensor],
        consumer: Consumer,
        progress: Progress | None,
    ) -> Tensor | None:  # shape: (N, S)
        """The scalars; None where a batch did not fit, and the next try has smaller ones."""
        found: dict[int, Tensor] = {}
        for positions in self._planned(examples):
            try:
                scalars, _ = self.run(examples, positions, cotangent, lambda: consumer)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.budget.shrink(error, len(positions), _padded(examples, positions), has_backward=True)
                return None
            found.update(zip(positions, scalars.cpu(), strict=True))
            if progress is not None:
                progress(len(found), len(examples))
        if not examples:
            return torch.zeros(0, 1, dtype=torch.float32, device="cpu")
        return torch.stack([found[i] for i in range(len(examples))])

    def run(
        self,
        examples: Sequence[Example],
        positions: Sequence[int],
        cotangent: Callable[[Tensor], Tensor],
        make_consumer: Callable[[], C],
    ) -> tuple[Tensor, list[C]]:  # shape: (N, S)
        """`TappedModel.run` of some examples as one batch.

        Raises:
            InputError: a reward that is NaN or infinite, by its example.
        """
        chosen = [examples[i] for i in positions]
        scalars, consumers = self.tapped.run(
            self.collate(chosen), of_finite(cotangent, chosen), make_consumer, checkpoints=self.budget.checkpoints
        )
        check_finite(scalars, chosen)
        return scalars, consumers

    def in_batches(
        self, examples: Sequence[Example], run: Callable[[list[int]], R], *, has_backward: bool, before: int = 0
    ) -> Iterator[tuple[list[int], R]]:
        """The positions of every batch, and what `run` gives for them; a batch that does not fit is planned again.

        Args:
            examples: to be planned by their lengths.
            run: what to do with the positions of a batch; called again, for fewer, where memory runs out.
            has_backward: whether gradient checkpointing could help.
            before: tokens that every row has in memory before its own.
        """
        waiting = list(reversed(self._planned(examples, before)))
        while waiting:
            positions = waiting.pop()
            results: list[R] = []
            try:
                results.append(run(positions))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.budget.shrink(error, len(positions), _padded(examples, positions, before), has_backward)
            if not results:  # here, because the exception's frames hold what the batch has allocated
                release_memory(self.device)
                left = sorted(i for batch in [*waiting, positions] for i in batch)
                replanned = self._planned([examples[i] for i in left], before)
                waiting = [[left[i] for i in batch] for batch in reversed(replanned)]
                continue
            yield positions, results[0]

    def _planned(self, examples: Sequence[Example], before: int = 0) -> list[list[int]]:
        """`plan_batches` of rows that are read at as many tokens."""
        by_reads: dict[int, list[int]] = {}
        for i, example in enumerate(examples):
            by_reads.setdefault(example.reads, []).append(i)
        return [
            [own[i] for i in batch]
            for own in by_reads.values()
            for batch in plan_batches([examples[i] for i in own], self.budget.batch_tokens, before)
        ]

    def shared_inputs(self, example: Example) -> dict[str, str]:
        """`TappedModel.shared_inputs` of one example."""
        return self.tapped.shared_inputs(self.collate([example]))


def _padded(examples: Sequence[Example], positions: Sequence[int], before: int = 0) -> int:
    """Tokens of a batch, padding included."""
    rows = sum(len(examples[i].signs) for i in positions)
    return rows * (before + max(examples[i].length for i in positions))


def drawn(examples: Sequence[E], count: int) -> list[E]:
    """At most `count` of the examples, drawn by lot; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    lot = torch.randperm(len(examples), generator=generator, dtype=torch.int64, device="cpu")
    return [examples[i] for i in lot[:count].tolist()]


class _Nothing:
    gradients_alone = True

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        pass


class KeptGradients:
    """Consumer that keeps a batch's gradients by site.

    Attributes:
        by_site: `[N, r, d]` of each.
    """

    gradients_alone = True

    def __init__(self) -> None:
        self.by_site: dict[Site, Tensor] = {}

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Keep one site's."""
        self.by_site[site] = segment_outer(p, q, offsets)


def measured_budget(
    tapped: TappedModel, max_length: int, collate: Collator, frame: RowFrame, checkpoints: bool = False
) -> TokenBudget:
    """The token budget of a model on one or several GPUs, from two trial batches of random rows for each of them.

    Args:
        tapped: the model.
        max_length: of its rows.
        collate: for the device of its inputs.
        frame: of its rows.
        checkpoints: whether its layers are run again in the backward pass.
    """
    devices = {weight.device for weight in tapped.forward.model.parameters() if weight.is_cuda} | {collate.device}
    length = min(max_length, 256)
    fitting = [_tokens_on(device, tapped, length, collate, frame, checkpoints) for device in devices]
    return TokenBudget(min(fitting), checkpoints)


def _tokens_on(
    device: torch.device, tapped: TappedModel, length: int, collate: Collator, frame: RowFrame, checkpoints: bool
) -> int:
    def peak_bytes(tokens: int) -> int:
        batch = collate(random_rows(frame, [length] * max(tokens // length, 1), collate))
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        tapped.run(batch, unit_cotangent, _Nothing, checkpoints=checkpoints)
        return torch.cuda.max_memory_allocated(device) - before

    release_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    return tokens_that_fit(peak_bytes, free, 2 * length)


def check_finite(scalars: Tensor, examples: Sequence[Example]) -> None:  # shape: (N, S)
    """Raise InputError where a reward is NaN or infinite, by its example."""
    finite = scalars.isfinite().all(1)
    if not finite.all():
        first = examples[int((~finite).nonzero()[0])]
        raise InputError(f"{first.where}: the model's reward is NaN or infinite")


def check_finite_variances(variances: Tensor, examples: Sequence[Example]) -> None:  # shape: (N,)
    """Raise InputError where a variance is NaN or infinite, by its example."""
    finite = variances.isfinite()
    if not finite.all():
        first = examples[int((~finite).nonzero()[0])]
        raise InputError(
            f"{first.where}: the variance is NaN or infinite: the prior precision is too small for gradients of this "
            "size, or the head's weights are too large"
        )


def of_finite(cotangent: Callable[[Tensor], Tensor], examples: Sequence[Example]) -> Callable[[Tensor], Tensor]:
    """The same of scalars that are finite: NaN gradients would say something else, or overflow in float16."""

    def checked(scalars: Tensor) -> Tensor:  # shape: (N,)
        check_finite(scalars[:, None], examples)
        return cotangent(scalars)

    return checked


def rewards_in(scalars: Tensor) -> Tensor:  # (N, S) -> (N,)
    """Scalars as rewards; raises InputError where a readout gives several for each row."""
    if scalars.shape[1] != 1:
        raise InputError(f"a reward is one scalar for each row, and this model's readout gives {scalars.shape[1]}")
    return scalars[:, 0]


def unit_cotangent(scalars: Tensor) -> Tensor:
    """Under which an example's segment is the Jacobian of its reward, or of its difference of rewards."""
    return torch.ones_like(scalars)


def label_logits(scalars: Tensor, examples: Sequence[Example]) -> Tensor:  # shapes: (N,) -> (N,)
    """Scalars of which `log σ` is the log-likelihood of the examples' labels: Δ of a pair, ±z of a step."""
    signs = [example.label_sign for example in examples]
    return scalars * torch.tensor(signs, dtype=scalars.dtype, device=scalars.device)


def likelihood_cotangent(differences: Tensor) -> Tensor:
    """`√Λ`, `Λ = σ(Δ)(1 − σ(Δ))`, under which `Σ j jᵀ` is the GGN of the Bradley–Terry loss.

    And with a step's log-odds z for Δ, of the Bernoulli loss of its label: neither depends on the label.
    """
    return (torch.sigmoid(differences) * torch.sigmoid(-differences)).sqrt()
