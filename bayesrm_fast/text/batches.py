"""Token-budget batches in length order, and rows padded into tensors."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.examples import Example, TokenizedRow


@dataclass(frozen=True)
class TokenBatch:
    """Rows padded to one length; as many consecutive ones as there are `signs` make an example."""

    input_ids: Tensor  # shape: (B, T), int64
    attention_mask: Tensor  # shape: (B, T), int64, 1 on real tokens
    token_type_ids: Tensor | None  # shape: (B, T), int64
    pad_token_id: int
    signs: tuple[float, ...]
    read_at: Tensor | None = None  # shape: (B, S), int64; None for models that find the token themselves

    def model_inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a transformers forward."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else inputs | {"token_type_ids": self.token_type_ids}


class HasRows(Protocol):
    """What is planned as a whole: an example, or several."""

    @property
    def rows(self) -> Sized:
        """Rows of a batch that it takes."""

    @property
    def length(self) -> int:
        """Tokens of its longest row."""

    @property
    def tokens(self) -> int:
        """Of all its rows."""


MOST_PADDING = 1 / 64
"""Share of a batch's tokens that may be padding, once the batch is large enough to be worth a call of its own."""

SMALLEST_BATCH = 1 / 8
"""Of the token budget: below it a batch takes the next row whatever padding that brings."""


def plan_batches(examples: Sequence[HasRows], max_tokens: int, before: int = 0) -> list[list[int]]:
    """Group examples so that a batch holds at most `max_tokens` tokens, padding included, and little of it is padding.

    Examples of like length share a batch. One longer than the budget gets a batch of its own. The plan depends
    on the lengths alone.

    Args:
        examples: to be grouped.
        max_tokens: of a batch.
        before: tokens that count for every row before its own: those of a beginning that it only attends to.

    Returns:
        Positions in `examples`, each exactly once, batch by batch; the longest come first, so that a run which does
        not fit in memory fails at its start.
    """
    lengths = [example.length for example in examples]
    plan: list[list[int]] = []
    real = rows = 0
    for position in sorted(range(len(examples)), key=lambda i: (-lengths[i], i)):
        longest = lengths[plan[-1][0]] if plan else 0
        own, own_rows = examples[position].tokens, len(examples[position].rows)
        tokens = (rows + own_rows) * longest
        is_small = tokens <= SMALLEST_BATCH * max_tokens
        held = tokens + (rows + own_rows) * before
        if plan and held <= max_tokens and (is_small or real + own >= (1 - MOST_PADDING) * tokens):
            plan[-1].append(position)
            real, rows = real + own, rows + own_rows
        else:
            plan.append([position])
            real, rows = own, own_rows
    return plan


@dataclass(frozen=True)
class Collator:
    """Pads examples into one batch, on the right.

    The side is not the tokenizer's to choose: a decoder's causal mask makes right padding exact at every position,
    and an encoder is scored at its first token.

    Attributes:
        pad_token_id: None where neither model nor tokenizer has one. The padding is then an id that no row of the batch
            contains, so that a model which finds a row's last real token by comparing ids finds it.
        vocab_size: number of token ids.
        device: where the batches go.
    """

    pad_token_id: int | None
    vocab_size: int
    device: torch.device

    def __call__(self, examples: Sequence[Example]) -> TokenBatch:
        """A batch of examples of one kind.

        Raises:
            InputError: a token without an embedding, by its row; or there is no padding token and the batch contains
                the whole vocabulary.
        """
        rows = [row for example in examples for row in example.rows]
        for row in rows:
            if max(row.input_ids) >= self.vocab_size:
                raise InputError(
                    f"{row.where}: the tokenizer gives token {max(row.input_ids)}, and the model has "
                    f"{self.vocab_size} embeddings"
                )
        longest = max(len(row.input_ids) for row in rows)
        fill = self.pad_token_id
        if fill is None:
            present = {token for row in rows for token in row.input_ids}
            fill = next((i for i in range(self.vocab_size) if i not in present), None)
            if fill is None:
                raise InputError("neither model nor tokenizer has a padding token; set tokenizer.pad_token")

        def padded(values: list[list[int]], fill: int) -> Tensor:
            rows = [v + [fill] * (longest - len(v)) for v in values]
            return torch.tensor(rows, dtype=torch.int64, device=self.device)

        has_types = rows[0].token_type_ids is not None
        return TokenBatch(
            input_ids=padded([row.input_ids for row in rows], fill),
            attention_mask=padded([[1] * len(row.input_ids) for row in rows], 0),
            token_type_ids=padded([row.token_type_ids or [] for row in rows], 0) if has_types else None,
            pad_token_id=fill,
            signs=examples[0].signs,
            read_at=self._read_at(rows),
        )

    def _read_at(self, rows: Sequence[TokenizedRow]) -> Tensor | None:  # shape: (B, S)
        found = [row.read_at for row in rows if row.read_at is not None]
        return torch.tensor(found, dtype=torch.int64, device=self.device) if found else None
