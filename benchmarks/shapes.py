"""Models of known shape with random weights, and rows of random tokens, for timings that need no text."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification

from bayesrm_fast.classifier import Classifier
from bayesrm_fast.fitting import FitOptions, fit_posterior
from bayesrm_fast.kronecker import KroneckerPosterior
from bayesrm_fast.passes import Passes, Segment
from bayesrm_fast.posterior import FitRecord
from bayesrm_fast.room import Room
from bayesrm_fast.shortcuts import find_shortcuts
from bayesrm_fast.sites import find_lora_taps
from bayesrm_fast.taps import TappedModel
from bayesrm_fast.text import TokenizedText

VOCABULARY = 1000


@dataclass(frozen=True)
class LlamaShape:
    """A Llama sequence classifier with LoRA on all seven projections of every layer."""

    hidden: int
    layers: int
    r: int = 8
    intermediate: int | None = None
    heads: int | None = None
    key_value_heads: int | None = None

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """The model, seeded, with LoRA weights that are not zero."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate or self.hidden * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads or self.hidden // 64,
            num_key_value_heads=self.key_value_heads or self.heads or self.hidden // 64,
            num_labels=1,
            pad_token_id=0,
        )
        with torch.device(device):
            base = LlamaForSequenceClassification(config).to(dtype)
            options = LoraConfig(task_type="SEQ_CLS", r=self.r, target_modules="all-linear", modules_to_save=[])
            model = get_peft_model(base, options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        return model.eval()


def passes_of(model: Any, batch_tokens: int, device: str = "cpu") -> Passes:
    """The model tapped, with the shortcuts that are exact for it."""
    weights = torch.ones(1)
    options: dict[str, Any] = {"pad_token_id": 0, "vocab_size": VOCABULARY, "device": torch.device(device)}
    shortcuts = find_shortcuts(model, weights, max_length=4096, has_types=False, **options)
    tapped = TappedModel(Classifier(model, weights, shortcuts), find_lora_taps(model))
    return Passes(tapped, room=Room(batch_tokens), **options)


def random_rows(lengths: list[int], seed: int = 0, prompt: int = 0) -> list[TokenizedText]:
    """Rows of random tokens, the first `prompt` of which are the same."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]
    for row in rows[1:]:
        row[:prompt] = rows[0][:prompt]
    return [TokenizedText(row.tolist(), None, False) for row in rows]


def random_pairs(count: int, length: int) -> list[Segment]:
    """Preference pairs of random rows."""
    rows = random_rows([length] * (2 * count), seed=1)
    return list(zip(rows[0::2], rows[1::2], strict=True))


def fitted(passes: Passes, pairs: list[Segment], rank: int | None = 64) -> KroneckerPosterior:
    """A kfac posterior."""
    record = FitRecord("kfac", rank, len(pairs), 0.0, 0.0, "random", "", False, [1.0], 4096, {})
    posterior = fit_posterior(passes, pairs, None, FitOptions("kfac", rank, 1.0), record, None)
    assert isinstance(posterior, KroneckerPosterior)
    return posterior
