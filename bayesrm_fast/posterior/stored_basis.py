"""Directions over several sites, one site's part of them, in few bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesrm_fast.ops import ggn_project
from bayesrm_fast.posterior.linear_algebra import gram

LARGEST = 127
"""Of an int8, on both sides of zero."""


@dataclass(frozen=True)
class StoredBasis:
    """Rows `b_k` of one site, which the operations read as they are stored.

    Attributes:
        values: `[K, r, d]`, any floating dtype or int8.
        scale: by which a row of int8 is multiplied `[K]`, float64; None for floating values.
    """

    values: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor, dtype: torch.dtype) -> "StoredBasis":  # shape: (K, r, d)
        """Rounded to a dtype; to int8 in steps of a 127th of each row's largest number, which is NaN where one is."""
        if dtype != torch.int8:
            return cls(rows.to(dtype))
        largest = rows.flatten(1).abs().amax(1).double()
        scale = torch.where(largest == 0, 1.0, largest / LARGEST)
        return cls((rows / scale[:, None, None].to(rows.dtype)).round().clamp(-LARGEST, LARGEST).to(dtype), scale)

    @classmethod
    def from_tensors(cls, site: str, tensors: Mapping[str, Tensor]) -> "StoredBasis":
        """What `tensors` gave; raises KeyError where something is missing."""
        values = tensors[f"{site}/basis"]
        return cls(values, tensors[f"{site}/scale"] if values.dtype == torch.int8 else None)

    def tensors(self, site: str) -> dict[str, Tensor]:
        """Of a site, by the names that a file has."""
        stored = {f"{site}/basis": self.values}
        return stored if self.scale is None else stored | {f"{site}/scale": self.scale}

    def fault(self, shape: tuple[int, int, int]) -> str | None:
        """What is wrong with it beside this shape; None where nothing is."""
        if self.values.shape != shape:
            return f"is {list(self.values.shape)}, not {list(shape)}"
        if self.scale is not None and self.scale.shape != shape[:1]:
            return f"has scales {list(self.scale.shape)}, not {list(shape[:1])}"
        return None

    def products(
        self, p: Tensor, q: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor]:  # (T, r), (T, d), (N + 1,) -> (N, K), (N,)
        """`⟨G, b_k⟩` and `‖G‖²` of each segment's gradient, float64; see `ops.ggn_project`."""
        products, squared_norm = ggn_project(p, q, offsets, self.values)
        return (products if self.scale is None else products * self.scale), squared_norm

    def gram(self) -> Tensor:  # shape: (K, K)
        """`⟨b_j, b_k⟩`, float64."""
        products = gram([self.values])
        return products if self.scale is None else products * self.scale * self.scale[:, None]

    def combined(self, weights: Tensor) -> Tensor:  # (N, K) -> (N, r · d)
        """`Σ_k w_k b_k`, float64."""
        return (weights if self.scale is None else weights * self.scale) @ self.values.flatten(1).double()
