"""A sequence classifier as text goes into it and rewards come out, with the taps that a posterior wants."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bayesrm_fast.classifier import Classifier, Shortcuts, checked_output_weights
from bayesrm_fast.errors import InputError
from bayesrm_fast.passes import Passes, Segment, measured_room
from bayesrm_fast.rewards import rewards_of
from bayesrm_fast.room import BATCH_TOKENS, Room
from bayesrm_fast.shortcuts import find_shortcuts
from bayesrm_fast.sites import LoraTap, Tap, adapter_hash, find_head, find_head_tap, find_lora_taps, has_adapter
from bayesrm_fast.taps import TappedModel
from bayesrm_fast.text import (
    PreferencePair,
    Text,
    TextEncoder,
    TokenizedText,
    check_rows,
    default_max_length,
    preference_pairs,
)
from bayesrm_fast.virtual import Targets, VirtualAdapter, VirtualOptions

outside_inference_mode = torch.inference_mode(mode=False)
"""A caller's inference mode would forbid the backward pass that a variance needs."""


class ServedModel:
    """A sequence classifier with its tokenizer, and the taps that a posterior over its weights wants.

    Args:
        model: a `PeftModel` with one active LoRA adapter, or with `virtual_rank` any sequence classifier; used where it
            is and left as it was found.
        tokenizer: a fast tokenizer. With a chat template it renders conversations by it; otherwise see `TextEncoder`.
        output_weights: weight of each of the model's outputs in the reward, `[num_labels]`. Needed where the model has
            several outputs; 1 where it has one.
        max_length: tokens at which a row is cut (`TextEncoder` says how). Default: what tokenizer and model accept, at
            most 4,096.
        max_batch_tokens: tokens of one batch, padding included. Default: 4,096 on a CPU, on a GPU what two short trials
            say of its free memory. Smaller batches follow by themselves where memory runs out.
        virtual_rank: rows of each virtual adapter's A, which `fit` finds in the inputs of the layers; the reward stays
            the model's own. Beside LoRA, both are in the posterior. None for no virtual adapters.
        virtual_targets: which layers get one: "auto" (all linear layers of attention and feed-forward blocks, from the
            last block down, as many as a ggn fit has memory for), last parts of their paths, or a regular expression.

    Raises:
        InputError: neither a LoRA adapter nor `virtual_rank`, or an adapter that cannot be served; the message lists
            the layers.
    """

    def __init__(
        self,
        model: PeftModel | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        virtual_rank: int | None = None,
        virtual_targets: Targets = "auto",
        output_weights: Sequence[float] | Tensor | None = None,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.virtual_options = None if virtual_rank is None else VirtualOptions(virtual_rank, virtual_targets)
        self.virtual: VirtualAdapter | None = None
        """The virtual adapters, None before a fit has made them."""
        self.lora = self.find_lora()
        self._shortcuts: Shortcuts | None = None
        config = model.config.get_text_config()
        self.output_weights = checked_output_weights(output_weights, int(model.config.num_labels or 0))
        positions = getattr(config, "max_position_embeddings", None)
        self.encoder = TextEncoder(tokenizer, max_length or default_max_length(tokenizer, positions))
        device = next(model.parameters()).device
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens must be positive, not {max_batch_tokens}")
        self._passes_options: dict[str, Any] = {
            "pad_token_id": tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id,
            "vocab_size": config.vocab_size,
            "device": device,
        }
        tokens = max_batch_tokens or BATCH_TOKENS.get(device.type)
        self._room = None if tokens is None else Room(tokens)

    @property
    def adapter(self) -> str | None:
        """Name of the LoRA adapter that is scored by, among those of the model; None where there is none."""
        return self.lora[0].adapter if self.lora else None

    def tokenize(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Segment]:
        """What `score_tokenized` takes; may run in another thread than the model.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        return [(row,) for row in self.encode(prompts, responses)]

    def tokenize_pairs(self, pairs: Iterable[Any]) -> list[Segment]:
        """The same for preference pairs.

        Raises:
            InputError: pairs that cannot be read.
        """
        return self.pair_segments(preference_pairs(pairs))

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """MAP rewards `[N]` by forward passes alone; needs no posterior.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        return self.rewards_tokenized(self.tokenize(prompts, responses), prompts)

    @outside_inference_mode
    def rewards_tokenized(self, segments: Sequence[Segment], prompts: Sequence[Text]) -> Tensor:
        """`rewards` of tokenized rows; rows of equal prompts may share their beginning."""
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(str(prompt), len(numbers)) for prompt in prompts]
        return rewards_of(self.passes_over(self.taps(self.virtual)), [row for (row,) in segments], owners)

    @property
    def shortcuts(self) -> Shortcuts:
        """The shortcuts that give this model's rewards exactly; tried when first asked for."""
        if self._shortcuts is None:
            self._shortcuts = find_shortcuts(
                self.model,
                self.output_weights,
                max_length=self.encoder.max_length,
                has_types="token_type_ids" in self.tokenizer.model_input_names,
                **self._passes_options,
            )
        return self._shortcuts

    @property
    def base_model(self) -> str:
        """Name or path of the model under the adapters."""
        if self.adapter is None:
            return str(self.model.config.name_or_path)
        return str(cast(PeftModel, self.model).peft_config[self.adapter].base_model_name_or_path)

    def find_lora(self) -> list[LoraTap]:
        """The layers with LoRA, as the model is now; none for a model without an adapter that is to get virtual ones.

        Raises:
            InputError: an adapter that cannot be served, or neither.
        """
        if self.virtual_options is not None and not has_adapter(self.model):
            return []
        return find_lora_taps(self.model)

    def taps(self, virtual: VirtualAdapter | None, include_head: bool = False) -> list[Tap]:
        """What a posterior over LoRA, these virtual adapters and perhaps the head is over."""
        taps: list[Tap] = [*self.lora, *(virtual.taps if virtual else ())]
        return [*taps, find_head_tap(self.model, taps)] if include_head else taps

    def passes_over(self, taps: Sequence[Tap]) -> Passes:
        """The model with these taps."""
        tapped = TappedModel(Classifier(self.model, self.output_weights, self.shortcuts), taps)
        room = self._room
        if room is None:
            room = measured_room(tapped, self.encoder.max_length, **self._passes_options)
            self._room = room if taps else None  # a pass without taps keeps nothing, and says nothing of one with them
        return Passes(tapped, room=room, **self._passes_options)

    def adapter_hash(self, virtual: VirtualAdapter | None) -> str:
        """`sites.adapter_hash` of LoRA, these virtual adapters and the head."""
        head = find_head(self.model)
        return adapter_hash([*self.taps(virtual), *([head] if head else [])])

    def encode(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[TokenizedText]:
        """A row for each prompt and response.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        check_rows(prompts, responses)
        return self.encoder.encode(prompts, responses)

    def pair_segments(self, pairs: Sequence[PreferencePair]) -> list[Segment]:
        """A segment for each pair."""
        prompts = [pair.prompt for pair in pairs]
        chosen = self.encoder.encode(prompts, [pair.chosen for pair in pairs])
        rejected = self.encoder.encode(prompts, [pair.rejected for pair in pairs])
        return list(zip(chosen, rejected, strict=True))
