"""Shape and dtype checks that the operations share; each error names the argument."""

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_shape(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...] = FLOATING
) -> None:
    """Raise ValueError unless `tensor` is floating point, or of `dtypes`, and has `shape` (None matches any size)."""
    if tensor.dtype not in dtypes:
        others = "".join(f" or {dtype}" for dtype in dtypes if dtype not in FLOATING)
        raise ValueError(f"{name} must be floating point{others}, not {tensor.dtype}")
    sizes = tensor.shape
    if len(sizes) == len(shape):
        for want, have in zip(shape, sizes, strict=True):
            if want is not None and want != have:
                break
        else:
            return
    wanted = ", ".join("*" if want is None else str(want) for want in shape)
    raise ValueError(f"{name} must have shape [{wanted}], not {list(sizes)}")


def require_segments(p: Tensor, q: Tensor, offsets: Tensor) -> None:
    """Raise ValueError unless `p [T, r]`, `q [T, d]` and `offsets [N+1]` are about the same tokens on one device."""
    require_shape("p", p, (None, None))
    require_shape("q", q, (p.shape[0], None))
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 of shape [N+1], not {offsets.dtype} {list(offsets.shape)}")
    devices = {p.device, q.device, offsets.device}
    if len(devices) > 1:
        raise ValueError(f"p, q and offsets must be on one device, not on {sorted(map(str, devices))}")


def require_increasing(offsets: Tensor, tokens: int) -> None:
    """Raise ValueError unless `offsets` run from 0 to `tokens` and never decrease.

    On a GPU nothing is checked, since the values could not be read without waiting for it.
    """
    if offsets.device.type != "cpu":
        return
    bounds = offsets.tolist()  # one call into torch, where comparing tensors would take five
    if bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(f"offsets must run from 0 to {tokens}, not {bounds[0]} to {bounds[-1]}")
    if sorted(bounds) != bounds:
        raise ValueError("offsets must not decrease")


def result_dtype(p: Tensor, q: Tensor) -> torch.dtype:
    """float64 where p or q is float64, else float32."""
    return torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)


def require_bases(p: Tensor, q: Tensor, basis_p: Tensor, basis_q: Tensor) -> None:
    """Raise ValueError unless `basis_p [r, r]` and `basis_q [d, k]` fit `p [T, r]` and `q [T, d]`."""
    require_shape("basis_p", basis_p, (p.shape[1], p.shape[1]))
    require_shape("basis_q", basis_q, (q.shape[1], None))
    require_device(p, basis_p=basis_p, basis_q=basis_q)


def require_device(p: Tensor, **constants: Tensor) -> None:
    """Raise ValueError unless what goes with `p` is on its device."""
    for name, constant in constants.items():
        if constant.device != p.device:
            raise ValueError(f"{name} must be on {p.device}, where p is, not on {constant.device}")
