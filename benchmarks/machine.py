"""What a result file says of the machine that made it."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch


def gpu_in_file_names() -> str:
    """The GPU's name as a part of a file's name: results of another GPU go to a file of their own."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here")
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, versions, and the GPU where that is what ran."""
    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    gpu = {}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        gpu = {"gpu": properties.name, "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
    return {
        **gpu,
        "processor": processor,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
