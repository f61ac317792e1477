"""What this machine can do: `python -m bayesrm_fast`."""

import importlib.metadata
import json
import platform

import torch


def describe_machine() -> dict[str, str]:
    """Versions, devices and what serves the operations."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {name: importlib.metadata.version(name) for name in ("bayesrm_fast", "torch", "transformers", "peft")}
    return {
        **versions,
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "gpu": ", ".join(devices) or "none",
        "operations": "reference (plain torch)",
    }


if __name__ == "__main__":
    print(json.dumps(describe_machine(), indent=2))
