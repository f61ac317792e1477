"""Whitened gradients of rewards, whose inner products are the rewards' covariances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.passes import Passes, Progress, rewards_in, unit_cotangent
from bayesrm_fast.model.shared_backward import over_examples
from bayesrm_fast.model.token_budget import free_bytes
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.sketch import WIDTH, feature_sketch
from bayesrm_fast.text.examples import TokenizedRow

Outside = Literal["auto", "exact", "sketch"]

SHARE_FOR_FEATURES = 0.5
"""Of the host's free memory: what an exact covariance may hold."""

PAIRS_AT_ONCE = 64
"""Whose differences of features are made at a time."""


@dataclass(frozen=True)
class WhitenedGradients:
    """`Σ^½ J` of n rewards, or of the n scalars of several rows, in parts on the CPU.

    Attributes:
        mean: the rewards `[n]`.
        exact: parts that are as they are, `[n, …]` each.
        sketched: count sketch of all others `[n, m]`; None where there are none.
        squared_norms: of what was sketched `[n]`, float64.
    """

    mean: Tensor
    exact: list[Tensor]
    sketched: Tensor | None
    squared_norms: Tensor

    def split(self, size: int) -> "list[WhitenedGradients]":
        """Those of every `size` scalars one after another."""
        parts = [part.split(size) for part in self.exact]
        pieces = zip(self.mean.split(size), self.squared_norms.split(size), strict=True)
        sketches = None if self.sketched is None else self.sketched.split(size)
        return [
            WhitenedGradients(mean, [part[i] for part in parts], None if sketches is None else sketches[i], norms)
            for i, (mean, norms) in enumerate(pieces)
        ]

    def covariance(self) -> tuple[Tensor, float | None]:  # shape: (n, n), float64
        """Of the rewards, with an exact diagonal; and the root mean square of the sketch's relative error, if any.

        Each exact part's products are in its own dtype, float32 but for ggn's coordinates; their sum is in float64.
        """
        total = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64, device="cpu")
        for part in self.exact:
            total += part @ part.T
        if self.sketched is None:
            return total, None
        rows = self.sketched.double()
        ratio, error = _ratio_and_error(self.squared_norms, rows.square().sum(1))
        rows *= ratio.sqrt()[:, None]
        return total + rows @ rows.T, error


class DifferenceCovariance:
    """Covariances of differences of rewards, a column at a time: the whole matrix is never there.

    A sketch is linear, so that the difference of two sketches is the sketch of the difference, and errs by a part of
    the difference alone. The variances are known exactly, and the columns are scaled to them.

    Args:
        features: of n rewards.
        first, second: positions of the rewards of each of M differences `[M]`.
        variance: of the differences `[M]`, float64; 0 leaves a difference without covariances.

    Attributes:
        sketch_error: root mean square of the sketch's relative error in the variances; None where nothing is sketched.
    """

    def __init__(self, features: WhitenedGradients, first: Tensor, second: Tensor, variance: Tensor) -> None:
        self._parts = [*features.exact, *([] if features.sketched is None else [features.sketched])]
        self._first, self._second = first, second
        found = torch.zeros_like(variance)
        for part in self._parts:
            for at in torch.arange(len(first), dtype=torch.int64, device="cpu").split(PAIRS_AT_ONCE):
                found[at] += (part[first[at]] - part[second[at]]).double().square().sum(1)
        ratio, error = _ratio_and_error(variance, found)
        self._scale = ratio.sqrt()
        self.sketch_error = None if features.sketched is None else error

    def column(self, i: int) -> Tensor:  # shape: (M,), float64
        """Covariances of difference i with all."""
        products = torch.zeros(len(self._parts[0]), dtype=torch.float64, device="cpu")
        for part in self._parts:
            products += part @ (part[self._first[i]] - part[self._second[i]])
        return (products[self._first] - products[self._second]) * self._scale * self._scale[i]


def _ratio_and_error(exact: Tensor, sketched: Tensor) -> tuple[Tensor, float]:  # shapes: (n,), (n,) -> (n,)
    """What squared norms are to be multiplied by, and the root mean square of their relative error."""
    ratio = exact / sketched.clamp(min=torch.finfo(exact.dtype).tiny)
    return ratio, float((1 / ratio - 1)[exact > 0].square().mean().sqrt())


def whitened_gradients(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    posterior: Posterior,
    outside: Outside = "auto",
    progress: Progress | None = None,
) -> WhitenedGradients:
    """The same of rows with one scalar each, their rewards; raises InputError where a readout gives several."""
    found = gradients_of_scalars(passes, rows, posterior, outside, progress)
    rewards_in(found.mean.view(len(rows), -1))
    return found


def resolved_outside(outside: Outside, scalars: int, passes: Passes, posterior: Posterior) -> Outside:
    """How to keep so many gradients: what is asked for, or what "auto" means; raises InputError for anything else."""
    if outside not in get_args(Outside):
        raise InputError(f"outside must be one of {', '.join(get_args(Outside))}, not {outside!r}")
    if outside != "auto":
        return outside
    numbers = scalars * posterior.parameters * passes.tapped.gradient_dtype.itemsize
    return "exact" if numbers <= SHARE_FOR_FEATURES * free_bytes(torch.device("cpu")) else "sketch"


def gradients_of_scalars(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    posterior: Posterior,
    outside: Outside = "auto",
    progress: Progress | None = None,
) -> WhitenedGradients:
    """Whitened gradients of the S scalars of each row, row after row.

    Their part in the posterior's bases is a few numbers each; the part outside is as many as the posterior has weights,
    kept as they are or sketched. Where a sketch is narrower than the part in the bases, that is sketched too.

    Args:
        passes: the model.
        rows: each read at as many tokens as the others.
        posterior: on the device of the passes.
        outside: "exact", "sketch", or "auto": exact where as many gradients as there are scalars take no more than
            `SHARE_FOR_FEATURES` of the host's free memory.
        progress: told the rows done and their total.

    Raises:
        InputError: an unknown `outside`, or a reward that is NaN or infinite, by its row.
    """
    outside = resolved_outside(outside, sum(len(row.read_at or (0,)) for row in rows), passes, posterior)
    order: list[int] = []
    means: list[Tensor] = []
    kept: list[dict[str, Tensor]] = []
    sketches: list[Tensor] = []
    squared_norms: list[Tensor] = []
    for batch in over_examples(passes, rows, unit_cotangent, posterior.feature_consumer, progress):
        for column, consumer in enumerate(batch.consumers):
            order += [position * len(batch.consumers) + column for position in batch.positions]
            means.append(batch.scalars[:, column].cpu())
            few, many = consumer.features()
            inside = {f"{name}/inside": features for name, features in few.items()}
            if outside == "sketch" and sum(features.shape[1] for features in inside.values()) > WIDTH:
                many |= {name: features.to(passes.tapped.gradient_dtype) for name, features in inside.items()}
                inside = {}
            if outside == "sketch" and many:
                sketched, norms = feature_sketch(many)
                sketches.append(sketched.cpu())
                squared_norms.append(norms.cpu())
            kept.append({name: features.cpu() for name, features in (inside | many).items()})
    back = torch.tensor(order, dtype=torch.int64, device="cpu").argsort()
    return WhitenedGradients(
        torch.cat(means)[back],
        list(_joined(kept, back)),
        torch.cat(sketches)[back] if sketches else None,
        torch.cat(squared_norms)[back] if sketches else torch.zeros(len(order), dtype=torch.float64, device="cpu"),
    )


def _joined(batches: list[dict[str, Tensor]], back: Tensor) -> Iterator[Tensor]:  # shape of each: (n, …)
    """The parts one by one, taken out of their batches, since they are large."""
    for name in list(batches[0]):
        yield torch.cat([batch.pop(name) for batch in batches])[back]
