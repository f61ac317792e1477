"""What turns a model's output into the scalars that are scored."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.text.batches import TokenBatch


class Readout(Protocol):
    """From a model's output to S scalars for each row, S = 1 for a reward.

    A pass makes one backward pass for each of the S; taps and passes know no more of a readout than this.

    Attributes:
        reads_one_token: whether the scalars may be read at one token of each row, or at those that the batch says, so
            that it is worth trying whether the last layer can work there alone (`shortcut_trials`).
    """

    reads_one_token: bool

    def scalars(self, output: Any, batch: TokenBatch) -> Tensor:  # shape: (B, S), float32 or float64
        """Read what the model gave for a batch; autograd sees through."""
        ...


class PooledReadout:
    """The reward `output_weights · logits` of a sequence classifier, which reads its logits at one token itself.

    Args:
        output_weights: weight of each output in the reward, `[L]`.
    """

    reads_one_token = True

    def __init__(self, output_weights: Tensor) -> None:
        self.output_weights = output_weights

    def scalars(self, output: Any, batch: TokenBatch) -> Tensor:  # shape: (B, 1)
        """See `Readout`; `output.logits` is `[B, L]`.

        Raises:
            InputError: the model gave anything else.
        """
        rows, labels = batch.input_ids.shape[0], len(self.output_weights)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.shape != (rows, labels):
            if isinstance(output, Tensor):
                raise InputError(f"it gives a tensor {list(output.shape)}: pass readout=TensorReadout()")
            what = f" with logits {list(logits.shape)}" if isinstance(logits, Tensor) else " without logits"
            raise InputError(
                f"a sequence classifier gives logits [{rows}, {labels}], and it gives {type(output).__name__}{what}: "
                "load it with AutoModelForSequenceClassification, or pass a readout of its own"
            )
        return _weighted(logits, self.output_weights)[:, None]


class OutputsReadout:
    """Every output of a sequence classifier by itself.

    Args:
        outputs: how many there are, L.
    """

    reads_one_token = True

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def scalars(self, output: Any, batch: TokenBatch) -> Tensor:  # shape: (B, L)
        """See `Readout`; of what `PooledReadout` has weighed before."""
        logits: Tensor = output.logits
        return _at_least_float32(logits).view(batch.input_ids.shape[0], self.outputs)


class TokenReadout:
    """The log-odds `output_weights · logits` of a token classifier, at the S tokens of each row that are asked for.

    Args:
        output_weights: weight of each output in the log-odds, `[L]`: `(1,)`, or `(−1, 1)` where the second of two
            outputs is that of a correct step.

    Raises:
        InputError: weights that are no finite numbers.
    """

    reads_one_token = True

    def __init__(self, output_weights: Sequence[float] | Tensor) -> None:
        self.output_weights = _as_weights(output_weights)

    def scalars(self, output: Any, batch: TokenBatch) -> Tensor:  # shape: (B, S)
        """See `Readout`; `output.logits` is `[B, T, L]`, and `batch.read_at` `[B, S]`.

        Raises:
            InputError: rows that are not segments, or the model gave anything else.
        """
        if batch.read_at is None:
            raise InputError("it scores segments, not whole responses: call score_segments, or fit it on steps")
        (rows, length), labels = batch.input_ids.shape, len(self.output_weights)
        logits = getattr(output, "logits", None)
        shape = list(logits.shape) if isinstance(logits, Tensor) else []
        if not isinstance(logits, Tensor) or [*shape[::2], len(shape)] != [rows, labels, 3] or shape[1] < length:
            what = shape if isinstance(logits, Tensor) else "none"
            raise InputError(f"a token classifier gives logits [{rows}, {length}, {labels}], and it gives {what}")
        at = batch.read_at.to(logits.device)
        own = torch.arange(rows, dtype=torch.int64, device=logits.device)[:, None]
        return _weighted(logits[own, at], self.output_weights)


OnePassAggregate = Literal["mean", "last", "min", "log_product"]
"""One number for a row, of its tokens' scores; what is not linear in them is taken to first order."""


class AggregateReadout:
    """One number for each row, made of its log-odds z at S tokens.

    Args:
        scores: reads the z.
        by: "mean", "last" or "min" of the z, or "log_product", `Σ log σ(z / T)`.
        temperature: T.
    """

    reads_one_token = True

    def __init__(self, scores: TokenReadout, by: OnePassAggregate, temperature: float) -> None:
        self.scores, self.by, self.temperature = scores, by, temperature

    def scalars(self, output: Any, batch: TokenBatch) -> Tensor:  # shape: (B, 1)
        """See `TokenReadout`; through the least z alone autograd sees the minimum."""
        z = self.scores.scalars(output, batch)
        if self.by == "mean":
            return z.mean(1, keepdim=True)
        if self.by == "last":
            return z[:, -1:]
        if self.by == "min":
            return z.min(1, keepdim=True).values
        return nn.functional.logsigmoid(z / self.temperature).sum(1, keepdim=True)


class TensorReadout:
    """The reward of a model of one's own, which gives it as a tensor `[B]` or `[B, 1]`."""

    reads_one_token = True

    def scalars(self, output: Any, batch: TokenBatch) -> Tensor:  # shape: (B, 1)
        """See `Readout`.

        Raises:
            InputError: the model gave anything else.
        """
        rows = batch.input_ids.shape[0]
        if not isinstance(output, Tensor) or output.shape not in ((rows,), (rows, 1)):
            what = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the model must give one reward a row, a tensor [{rows}] or [{rows}, 1], not {what}")
        return _at_least_float32(output).view(rows, 1)


LOG_ODDS = (-1.0, 1.0)
"""Output weights of a token classifier with two outputs, of which the second is that of a correct step."""

CORRECT = frozenset({"+", "correct", "good", "no error", "ok", "pos", "positive", "right", "true", "valid", "yes"})
WRONG = frozenset({"-", "bad", "error", "false", "incorrect", "invalid", "neg", "negative", "no", "wrong"})
"""What configurations call the two outputs."""


def checked_log_odds(id2label: Mapping[int, str] | None) -> tuple[float, float]:
    """`LOG_ODDS`; raises InputError where a configuration calls the first of two outputs that of a correct step."""
    names = [str((id2label or {}).get(i, "")) for i in (0, 1)]
    first, second = (name.strip().lower() for name in names)
    if first in CORRECT or second in WRONG:
        raise InputError(
            f"the model's id2label calls its outputs {names[0]!r} and {names[1]!r}, and by default the second is that "
            "of a correct step: give output_weights, [1, -1] where it is the first, or name them otherwise"
        )
    return LOG_ODDS


def checked_output_weights(weights: Sequence[float] | Tensor | None, labels: int) -> Tensor:
    """Weights of a model's outputs in the reward, `[labels]`; raises InputError where they do not fit the model."""
    if weights is None:
        if labels != 1:
            raise InputError(f"the model has {labels} outputs: give output_weights, the weight of each in the reward")
        return torch.ones(1, dtype=torch.float32, device="cpu")
    checked = _as_weights(weights)
    if len(checked) != labels:
        raise InputError(f"output_weights must be {labels} finite numbers, one for each output of the model")
    return checked


def _as_weights(weights: Sequence[float] | Tensor) -> Tensor:  # shape: (L,), float32
    try:
        found = torch.as_tensor(weights, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"output_weights must be finite numbers, not {shown(weights)}") from error
    if found.dim() != 1 or not found.isfinite().all():
        raise InputError(f"output_weights must be finite numbers, one for each output, not {shown(weights)}")
    return found


def _weighted(logits: Tensor, weights: Tensor) -> Tensor:  # shapes: (…, L), (L,) -> (…)
    logits = _at_least_float32(logits)
    # A copy, because weights made under inference mode could not be kept for the backward pass.
    return logits @ weights.to(logits.device, logits.dtype, copy=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
