"""`kron_variance` and `ggn_project` as people would write them in plain torch, and the arguments of the benchmark.

They take rectangles, p [N, longest, r] and q [N, longest, d], padded with zeros; making those is part of the cost.
"""

import itertools

import torch
from torch import Tensor


def inputs(
    lengths: list[int], r: int, d: int, k: int, p_dtype: torch.dtype, q_dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random arguments of `kron_variance`; U is stored by columns, as a posterior holds it."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    tokens = sum(lengths)
    p, q = normal(tokens, r).to(p_dtype), normal(tokens, d).to(q_dtype)
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], device=device)
    basis_p = torch.linalg.qr(normal(r, r)).Q.contiguous()
    basis_q = torch.linalg.qr(normal(d, k)).Q.T.contiguous().T
    return p, q, offsets, basis_p, basis_q, normal(r, k).abs(), normal(r).abs()


def rectangles(p: Tensor, q: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """p [T, r] and q [T, d] as [N, longest, ·]; without a copy where all segments are as long."""
    if len(set(lengths)) == 1:
        return p.view(len(lengths), -1, p.shape[1]), q.view(len(lengths), -1, q.shape[1])
    padded_p, padded_q = (torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True) for x in (p, q))
    return padded_p, padded_q


def batched(p: Tensor, q: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """Three batched products in float32, and what is outside the basis as it is defined."""
    return _weigh(torch.bmm((p.float() @ basis_p).transpose(1, 2), q.float()), basis_q, weight, residual)


def batched_half(p: Tensor, q: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """The same, with the long product in q's own dtype and a float32 result, where torch has that."""
    return _weigh(basis_p.T @ _gradients(p, q), basis_q, weight, residual)


def batched_norms(p: Tensor, q: Tensor, basis_p: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """The cheapest: a difference of norms. In float32 it loses digits that the others keep."""
    rotated = basis_p.T @ _gradients(p, q)
    inside = (rotated @ basis_q).square()
    return (weight * inside).sum((1, 2)) + (rotated.square().sum(-1) - inside.sum(-1)) @ residual


def _gradients(p: Tensor, q: Tensor) -> Tensor:
    if q.is_cuda and q.dtype != torch.float32:
        return torch.bmm(p.to(q.dtype).transpose(1, 2), q, out_dtype=torch.float32)
    return torch.bmm(p.transpose(1, 2).float(), q.float())


def _weigh(rotated: Tensor, basis_q: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    coordinates = rotated @ basis_q
    outside = rotated - coordinates @ basis_q.T
    return (weight * coordinates.square()).sum((1, 2)) + outside.square().sum(-1) @ residual


PLAIN_TORCH = {"batched": batched, "batched_half": batched_half, "batched_norms": batched_norms}
LOSES_DIGITS = {torch.float32: {"batched_norms"}, torch.bfloat16: set[str]()}
"""What is timed, but is no rival: its variance is off where a gradient is almost inside the basis."""


def ggn_inputs(
    segments: int, r: int, d: int, k: int, basis_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random arguments of `ggn_project`, segments of 128 tokens in float32; its time does not depend on the values."""
    generator = torch.Generator().manual_seed(0)
    tokens = 128 * segments
    p, q = torch.randn(tokens, r, generator=generator), torch.randn(tokens, d, generator=generator)
    bases = torch.randn(k, r, d, generator=generator) / (r * d) ** 0.5
    return p, q, torch.arange(0, tokens + 1, 128), bases.to(basis_dtype)


def converted(p: Tensor, q: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """One product in float64, to which everything is converted."""
    gradients = _gradients(p, q).flatten(1).double()
    return gradients @ bases.flatten(1).double().T, torch.linalg.vecdot(gradients, gradients)


def converted_in_blocks(p: Tensor, q: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """The same, some columns at a time, so that what is converted stays in a cache."""
    gradients = _gradients(p, q).flatten(1)
    products = torch.zeros(len(p), len(bases), dtype=torch.float64)
    squared_norm = torch.zeros(len(p), dtype=torch.float64)
    for g, b in zip(gradients.split(2048, 1), bases.flatten(1).split(2048, 1), strict=True):
        block = g.double()
        products.addmm_(block, b.double().T)
        squared_norm += torch.linalg.vecdot(block, block)
    return products, squared_norm


def held_in_float64(p: Tensor, q: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """The same without the bases' conversion: for those who keep them in float64."""
    gradients = _gradients(p, q).flatten(1).double()
    return gradients @ bases.flatten(1).T, torch.linalg.vecdot(gradients, gradients)


def in_float32(p: Tensor, q: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest. It has no digits left where a gradient lies almost in the span of the bases."""
    gradients = _gradients(p, q).flatten(1)
    return gradients @ bases.flatten(1).float().T, torch.linalg.vecdot(gradients, gradients)


GGN_PLAIN_TORCH = {
    "converted": converted,
    "converted_in_blocks": converted_in_blocks,
    "held_in_float64": held_in_float64,
    "in_float32": in_float32,
}
GGN_NO_RIVALS = {"held_in_float64", "in_float32"}
"""What is timed beside the rivals: one takes two to four times the posterior's memory, one loses the digits."""
