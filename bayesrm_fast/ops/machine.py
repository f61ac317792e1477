"""What this machine has for the operations."""

import platform

import torch

from bayesrm_fast.ops import cpu, cuda
from bayesrm_fast.versions import library_versions


def describe_machine() -> dict[str, str]:
    """Versions, devices, and what the compiled parts were built for."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **library_versions(),
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "gpu": ", ".join(devices) or "none",
        "instruction set of the C++ part": cpu.unavailable() or cpu.instruction_set(),
        "architectures of the CUDA part": cuda.architectures(),
    }
