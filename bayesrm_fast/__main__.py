"""What this machine can do: `python -m bayesrm_fast`."""

import json
import platform

import torch

from bayesrm_fast.ops import cpp, cuda
from bayesrm_fast.ops.backends import BACKENDS, OPERATIONS, PREFERENCE, refusal
from bayesrm_fast.posterior import library_versions


def describe_machine() -> dict[str, str]:
    """Versions, devices and what serves the operations."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **library_versions(),
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "gpu": ", ".join(devices) or "none",
        "instruction set of the C++ part": cpp.unavailable() or cpp.instruction_set(),
        "architectures of the CUDA part": cuda.architectures(),
    }


def describe_backends() -> dict[str, dict[str, str]]:
    """For every operation what each backend says: that it serves, or why it does not.

    The backends for CPU tensors are asked with float32, those for CUDA tensors, where there is a GPU, with bfloat16.
    """
    cpu = (torch.zeros(0, 1), torch.zeros(0, 8), torch.zeros(1, dtype=torch.int64))
    gpu = (cpu[0].bfloat16().cuda(), cpu[1].bfloat16().cuda(), cpu[2].cuda()) if torch.cuda.is_available() else cpu
    tensors = {name: cpu if name in PREFERENCE["cpu"] else gpu for name in BACKENDS}
    return {
        operation: {name: refusal(name, operation, tensors[name]) or "serves" for name in BACKENDS}
        for operation in OPERATIONS
    }


if __name__ == "__main__":
    print(json.dumps({**describe_machine(), "backends": describe_backends()}, indent=2))
