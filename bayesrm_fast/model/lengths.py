"""What a model makes of a row's length: how many tokens it takes, and the lengths past which it computes otherwise."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.forward import text_config

POSITION_TABLES = re.compile(r"(position_embeddings?|embed_positions|wpe|positions_embed)$")
"""Names of transformers' learned position embeddings."""

WINDOWS = re.compile(r"window|chunk|local_attention|block_size")
"""In the names of configuration values beyond which attention does not see the whole row."""


def most_tokens(model: nn.Module) -> int | None:
    """The longest row that a model takes as it was trained; None where nothing says so.

    The least of what its configuration says, of the rows of its position table that hold positions, and of the length
    up to which its rewards do not depend on the rows that it has seen before (dynamic rotary embeddings, BigBird).
    """
    said = getattr(text_config(model), "max_position_embeddings", None)
    limits = [table_positions(model), *_lengths_with_memory(model)]
    if isinstance(said, int) and said > 0:
        limits.append(said)
    return min((limit for limit in limits if limit is not None), default=None)


def table_positions(model: nn.Module) -> int | None:
    """Tokens that a model's learned position embeddings suffice for; None where it has none."""
    found = []
    for name, module in model.named_modules():
        if POSITION_TABLES.search(name) and isinstance(module, nn.Embedding) and module.num_embeddings > 1:
            offset = getattr(module, "offset", None)  # OPT and BART keep rows that no position uses
            if not isinstance(offset, int):  # RoBERTa counts from the row after the padding's
                offset = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - offset)
    return min(found, default=None)


def check_length(model: nn.Module, max_length: int) -> None:
    """Raise InputError where a row of `max_length` tokens has no position, or a reward that depends on earlier rows."""
    positions = table_positions(model)
    if positions is not None and max_length > positions:
        raise InputError(f"max_length is {max_length}, and the model has embeddings for {positions} positions")
    past = min(_lengths_with_memory(model), default=None)
    if past is not None and max_length > past:
        raise InputError(
            f"max_length is {max_length}, and past {past} tokens the model's rewards depend on the rows that it has "
            f"seen before: take max_length={past} or less"
        )


def switches(model: nn.Module) -> tuple[int, ...]:
    """Lengths past which all rows of a call get other position embeddings, ascending."""
    found = set()
    for config in _configs(model):
        for rope in _rotary_parameters(config):
            if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
                found.add(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return tuple(sorted(int(length) for length in found))


def windows(model: nn.Module) -> tuple[int, ...]:
    """Numbers of tokens beyond which some layer's attention does not see the whole row, ascending."""
    found = set()
    for config in _configs(model):
        for name in dir(config):  # ModernBERT's window is a property
            if WINDOWS.search(name) and not name.startswith(("_", "use_", "max_")):
                found |= set(_whole_numbers(getattr(config, name, None)))
    return tuple(sorted(number for number in found if number > 1))


def _configs(model: nn.Module) -> list[Any]:
    """The configuration of the part of a model that reads text; of a model without one, those of what it is made of."""
    own = text_config(model)
    found = [own] if own is not None else [text_config(module) for module in model.modules()]
    return list({id(config): config for config in found if config is not None}.values())


def _lengths_with_memory(model: nn.Module) -> Iterator[int]:
    for config in _configs(model):
        for rope in _rotary_parameters(config):
            if "dynamic" in str(rope.get("rope_type", rope.get("type"))):
                yield int(config.max_position_embeddings)
        if getattr(config, "attention_type", None) == "block_sparse":  # given up for good at the first short row
            yield (5 + 2 * config.num_random_blocks) * config.block_size


def _rotary_parameters(config: Any) -> list[dict[str, Any]]:
    """The parameters of each kind of rotary embedding that a configuration names."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(given, dict):
        return []
    by_layer_type = [value for value in given.values() if isinstance(value, dict)]
    return by_layer_type or [given]


def _whole_numbers(value: Any) -> Iterable[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if type(one) is int]
