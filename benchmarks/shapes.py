"""Models of known shape with random weights, and rows of random tokens, for timings that need no text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification

from bayesrm_fast.fit.fitting import fit_posterior
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.fit.virtual import make_virtual_adapter
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.lora import find_lora_taps
from bayesrm_fast.model.passes import Passes
from bayesrm_fast.model.readout import PooledReadout
from bayesrm_fast.model.shortcut_trials import find_shortcuts
from bayesrm_fast.model.taps import Tap, TappedModel
from bayesrm_fast.model.token_budget import TokenBudget
from bayesrm_fast.model.virtual_options import VirtualOptions
from bayesrm_fast.posterior.base import ModelRecord, Posterior
from bayesrm_fast.posterior.ggn import GgnPosterior
from bayesrm_fast.posterior.kronecker import KroneckerPosterior
from bayesrm_fast.posterior.stored_basis import StoredBasis
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow

VOCABULARY = 1000
MAX_LENGTH = 4096


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
            base = LlamaForSequenceClassification(config).to(dtype=dtype)
            options = LoraConfig(task_type="SEQ_CLS", r=self.r, target_modules="all-linear", modules_to_save=[])
            model = get_peft_model(base, options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        return model.eval()


def passes_of(model: Any, batch_tokens: int, device: str = "cpu") -> Passes:
    """The model with its LoRA layers tapped, and the shortcuts that are exact for it."""
    return _passes_over(model, find_lora_taps(model), batch_tokens, device)


def virtual_passes_of(model: Any, batch_tokens: int, pairs: list[TokenizedPair]) -> Passes:
    """A model without LoRA, with virtual adapters of rank 8 on all seven projections of every layer."""
    bare = _passes_over(model, [], batch_tokens, "cpu")
    virtual = make_virtual_adapter(bare, pairs, VirtualOptions(8), FitOptions("kfac", 64, 1.0))
    return replace(bare, tapped=TappedModel(bare.forward, virtual.taps))


def _passes_over(model: Any, taps: Sequence[Tap], batch_tokens: int, device: str) -> Passes:
    readout = PooledReadout(torch.ones(1))
    collator = Collator(pad_token_id=0, vocab_size=VOCABULARY, device=torch.device(device))
    shortcuts = find_shortcuts(model, readout, collator, max_length=MAX_LENGTH)
    return Passes(TappedModel(Forward(model, readout, shortcuts), taps), collator, TokenBudget(batch_tokens))


def random_rows(lengths: list[int], seed: int = 0, prompt: int = 0) -> list[TokenizedRow]:
    """Rows of random tokens, the first `prompt` of which are the same."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]
    for row in rows[1:]:
        row[:prompt] = rows[0][:prompt]
    return [TokenizedRow(row.tolist(), None, False) for row in rows]


def random_pairs(count: int, length: int) -> list[TokenizedPair]:
    """Preference pairs of random rows."""
    rows = random_rows([length] * (2 * count), seed=1)
    return [TokenizedPair(chosen, rejected) for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True)]


def random_ggn(like: Posterior, rank: int, dtype: torch.dtype = torch.float32) -> GgnPosterior:
    """A ggn posterior over the same sites; what scoring by it takes does not depend on the values."""
    bases = {site.name: StoredBasis.of(torch.randn(rank, site.r, site.d), dtype) for site in like.sites}
    return GgnPosterior.from_factor(like.sites, bases, torch.eye(rank, dtype=torch.float64), like.record, 1.0)


def fitted(passes: Passes, pairs: list[TokenizedPair], rank: int | None = 64) -> KroneckerPosterior:
    """A kfac posterior."""
    posterior = _fitted(passes, pairs, "kfac", rank)
    assert isinstance(posterior, KroneckerPosterior)
    return posterior


def fitted_ggn(passes: Passes, pairs: list[TokenizedPair], rank: int) -> GgnPosterior:
    """A ggn posterior; of no more pairs than its rank it is exact."""
    posterior = _fitted(passes, pairs, "ggn", rank)
    assert isinstance(posterior, GgnPosterior)
    return posterior


def _fitted(passes: Passes, pairs: list[TokenizedPair], structure: str, rank: int | None) -> Posterior:
    model = ModelRecord("random", {}, include_head=False, output_weights=[1.0], max_length=MAX_LENGTH)
    return fit_posterior(passes, pairs, None, FitOptions(structure, rank, 1.0), model)
