"""`kron_variance` as people would write it in plain torch, and the arguments that the benchmark gives it.

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
