"""What `configs` needs to know of the GPU that a call is on."""

from functools import cache

import torch

from bayesrm_fast.ops.configs import H100, Chip


@cache
def chip_of(device: torch.device) -> Chip:
    """The chip of a device; for a CPU, where only the interpreter runs, an H100."""
    if device.type != "cuda":
        return H100
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Chip(capability, properties.multi_processor_count, properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]
