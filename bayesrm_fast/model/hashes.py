"""Hashes by which weights are known again."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from bayesrm_fast.model.layers import outside_adapters
from bayesrm_fast.model.taps import Tap


def adapter_hash(taps: Iterable[Tap]) -> str:
    """SHA-256 over names, shapes and values of the adapters and the head, whatever dtype they are held in."""
    digest = hashlib.sha256()
    weights = {name: weight for tap in taps for name, weight in tap.hashed.items()}
    for name in sorted(weights):
        weight = weights[name].detach().cpu()
        weight = weight if weight.dtype == torch.float64 else weight.float()
        digest.update(f"{name}{list(weight.shape)}".encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's weights without its adapters.

    Floating-point weights are rounded to bfloat16, so that a checkpoint has one hash whether it is loaded in float32 or
    in bfloat16.
    """
    digest = hashlib.sha256()
    for path, module in outside_adapters(model):
        for part, weight in module.named_parameters(recurse=False):
            name = f"{path}.{part}".replace(".base_layer.", ".").replace(".original_module.", ".")
            if ".modules_to_save." in name:
                continue
            held = weight.detach()
            held = held.bfloat16().view(torch.int16) if held.is_floating_point() else held
            digest.update(f"{name}{list(weight.shape)}".encode())
            digest.update(held.cpu().contiguous().numpy().data)
    return digest.hexdigest()
