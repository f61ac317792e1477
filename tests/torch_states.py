"""States of torch that a caller may be in, each of which would change what an operation makes."""

import contextlib

import torch


@contextlib.contextmanager
def _setting(set_state, value, normal):
    set_state(value)
    try:
        yield
    finally:
        set_state(normal)


def default_dtype(dtype):
    return _setting(torch.set_default_dtype, dtype, torch.float32)


STATES = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device": lambda: _setting(torch.set_default_device, "meta", None),
    "device of a block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "deterministic": lambda: _setting(torch.use_deterministic_algorithms, True, False),
}
