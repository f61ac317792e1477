"""`ggn_project` of few rows on a GPU, where reading the bases is the floor: fractions of the bandwidth of a copy.

`python -m benchmarks.kernels --device cuda` has it among its results.
"""

from typing import Any

import torch

from bayesrm_fast.ops import ggn_project
from bayesrm_fast.ops.backends import PREFERENCE, refusal, use_backend
from benchmarks.timing import medians

COLUMNS = (4096, 14_336)
"""Inputs of an 8B Llama's projections: of six in every layer, and of down_proj.

At K = 128 and r = 16 their bases are 16.8 and 58.7 MB in bfloat16, and 5.1 GB for all 32 layers: 1.5 ms at the
3.35 TB/s of an H100.
"""

R, K, TOKENS = 16, 128, 128
SEGMENTS = (1, 4, 64)


def streaming_rows(rounds: int, copy_bytes_per_s: float) -> list[dict[str, Any]]:
    """For each d and number of segments: seconds by each backend and by plain torch, and the floor.

    The floor is what must be read, the bases once and p and q, at the rate of a copy.
    """
    return [_row(segments, d, rounds, copy_bytes_per_s) for d in COLUMNS for segments in SEGMENTS]


def _row(segments: int, d: int, rounds: int, copy_bytes_per_s: float) -> dict[str, Any]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    generator = torch.Generator("cuda").manual_seed(0)
    p, q = normal(segments * TOKENS, R), normal(segments * TOKENS, d).bfloat16()
    bases = (normal(K, R, d) / (R * d) ** 0.5).bfloat16()
    offsets = torch.arange(segments + 1, device="cuda") * TOKENS
    arguments = (p, q, offsets, bases)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        gradients = torch.bmm(p.view(segments, TOKENS, R).transpose(1, 2), q.view(segments, TOKENS, d).float())
        flat = gradients.flatten(1).double()
        return flat @ bases.flatten(1).double().T, torch.linalg.vecdot(flat, flat)

    def by(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        with use_backend(backend):
            return ggn_project(*arguments)

    serving = [name for name in PREFERENCE["cuda"] if refusal(name, "ggn_project", arguments) is None]
    formulations = {name: lambda name=name: by(name) for name in serving} | {"plain torch": plain}
    seconds = medians(formulations, rounds, "cuda")
    floor = (bases.nbytes + p.nbytes + q.nbytes) / copy_bytes_per_s
    return {
        "segments": f"{segments} × {TOKENS}",
        "r": R,
        "d": d,
        "k": K,
        "seconds": seconds,
        "floor_seconds": floor,
        "of_floor": {name: floor / time for name, time in seconds.items()},
    }
