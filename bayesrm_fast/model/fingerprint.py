"""All that a reward depends on, hashed by part, so that a model is known again and a refusal can say what differs."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bayesrm_fast.model.head import HEADS
from bayesrm_fast.model.layers import name_of_copied, outside_adapters, unread_copies
from bayesrm_fast.model.lora import LoraTap
from bayesrm_fast.model.offloaded import bringing
from bayesrm_fast.model.virtual import VirtualTap

ADAPTER = "adapter weights"
SCALING = "adapter scaling"
SAVED = "layers saved with the adapter"
HEAD = "score head"
BASE = "base weights"

BLOCK = 1024
"""Eight-byte words in each of the sums that stand for a large tensor."""

FACTOR = 0x9E3779B97F4A7C15
"""Odd; words are multiplied by its powers, each by that of its place, so that none change places unseen."""

WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "quantization_config", "return_dict", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Parts of a configuration that change no reward, or that are seen in the weights or with the tokenizer."""


def model_fingerprint(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, taps: Iterable[LoraTap | VirtualTap], pad_token_id: int | None
) -> dict[str, str]:
    """SHA-256 of all that a reward depends on, by the name of the part.

    It is the same whether the base model is held in float32 or in bfloat16. It does not see changes below bfloat16's
    rounding outside of the adapter, some that are made so that the sums of `rounded_digest` stay what they are, the
    scales that quantised weights have outside of their parameters, buffers on the meta device, and code: a readout or a
    `forward` of one's own. What a call may choose (`max_length`, `output_weights`, λ, temperature) stands beside it in
    the posterior's record.

    Args:
        model: with or without adapters; of several, those that are active.
        tokenizer: a fast one.
        taps: of LoRA and virtual adapters.
        pad_token_id: by which the scored token is found.
    """
    taps, bring = list(taps), bringing(model)
    digests: dict[str, dict[str, bytes]] = {}
    for part, weights in scored_weights(model).items():
        digests[part] = {name: rounded_digest(bring(weight)) for name, weight in weights.items()}
    scaling = {tap.name: tap.scaling for tap in taps if isinstance(tap, LoraTap)}
    return {
        ADAPTER: adapter_fingerprint(taps),
        **{part: joined_digest(found) for part, found in digests.items()},
        SCALING: _of_json(scaling),
        "configuration": _of_json(_configuration(model)),
        "tokenizer": _of_tokenizer(tokenizer),
        "padding token": _of_json(pad_token_id),
        "chat template": _of_json(tokenizer.chat_template),
    }


def adapter_fingerprint(taps: Iterable[LoraTap | VirtualTap]) -> str:
    """SHA-256 of the weights of LoRA and virtual adapters."""
    return joined_digest({name: exact_digest(weight) for tap in taps for name, weight in tap.hashed.items()})


def scored_weights(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Parameters and persistent buffers that a forward pass may read, without LoRA's: by part and name.

    Of a layer that peft has copied (`modules_to_save`), the active copy stands for the original.
    """
    found: dict[str, dict[str, Tensor]] = {SAVED: {}, HEAD: {}, BASE: {}}
    unread = set(unread_copies(model))
    for path, module in outside_adapters(model):
        if module in unread:
            continue
        is_copy = ".modules_to_save." in path
        path = name_of_copied(path).replace(".base_layer", "")
        part = HEAD if path.split(".")[0] in HEADS else SAVED if is_copy else BASE
        found[part].update({f"{path}.{name}": weight for name, weight in _own_weights(module)})
    return found


def _own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def exact_digest(weight: Tensor) -> bytes:
    """SHA-256 of a tensor's shape and values, in float32 where that holds them, whatever dtype they are held in."""
    if weight.is_meta:
        return rounded_digest(weight)
    held = weight.detach().cpu()
    single = held.float()
    held = held if held.dtype == torch.float64 and not torch.equal(single.double(), held) else single
    return hashlib.sha256(f"{list(weight.shape)}".encode() + held.contiguous().numpy().tobytes()).digest()


def rounded_digest(weight: Tensor) -> bytes:
    """SHA-256 of a tensor's shape and of sums over its values in bfloat16, which read each of them once.

    Values are taken four at a time as whole numbers of eight bytes, and `BLOCK` of these are added up, each times a
    power of `FACTOR`, modulo 2⁶⁴; what does not fill a block is hashed as it is. Measured on one CPU core: 5.8 GB/s for
    bfloat16, so 3 s for a model of 8 · 10⁹ weights (13 s for float32), where SHA-256 takes 1.2 GB/s at best.
    """
    digest = hashlib.sha256(f"{list(weight.shape)}".encode())
    if weight.is_meta:
        return digest.digest()
    held = weight.detach()
    held = held.bfloat16().view(torch.int16) if held.is_floating_point() else held
    flat = held.contiguous().view(-1).view(torch.uint8)
    whole = flat.numel() // (8 * BLOCK) * (8 * BLOCK)
    if whole:
        digest.update(_block_sums(flat[:whole].view(torch.int64).view(-1, BLOCK)).cpu().numpy().tobytes())
    digest.update(flat[whole:].cpu().numpy().tobytes())
    return digest.digest()


def _block_sums(words: Tensor) -> Tensor:  # shape: (blocks, BLOCK) -> (blocks,), int64
    powers = [pow(FACTOR, i, 2**64) for i in range(BLOCK)]
    signed = [power - 2**64 if power >= 2**63 else power for power in powers]
    factors = torch.tensor(signed, dtype=torch.int64, device=words.device)
    if words.device.type == "cpu":
        return words @ factors
    return torch.cat([(part * factors).sum(1) for part in words.split(4096)])  # others have no product of whole numbers


def joined_digest(digests: Mapping[str, bytes]) -> str:
    """SHA-256 over digests and their names."""
    digest = hashlib.sha256()
    for name in sorted(digests):
        digest.update(name.encode() + digests[name])
    return digest.hexdigest()


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of vocabulary, normaliser, splitting and special tokens; not of the padding that a call has left set."""
    backend: str = tokenizer.backend_tokenizer.to_str()
    beginning = backend.find('"added_tokens"')  # truncation and padding stand before it
    roles = tokenizer.special_tokens_map  # with a separator, rows are joined otherwise
    special = [roles, sorted(tokenizer.all_special_ids)]
    return _of_json([backend[beginning:], special, sorted(tokenizer.model_input_names)])


def _configuration(model: nn.Module) -> Any:
    """What a model's configuration sets to other than its kind's defaults."""
    config = getattr(model, "config", None)
    to_diff_dict = getattr(config, "to_diff_dict", None)
    return None if to_diff_dict is None else _with_effect(to_diff_dict())


def _with_effect(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {
            str(name): held for name, held in value.items() if name not in WITHOUT_EFFECT and "drop" not in str(name)
        }
        return {name: _with_effect(held) for name, held in kept.items()}
    return [_with_effect(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
