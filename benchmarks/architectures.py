"""Every sequence classifier of transformers at tiny size: rewards and variances against plain transformers in float64.

`python -m benchmarks.architectures` writes docs/architectures.md.
"""

import argparse
import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.layers import linear_modules
from bayesrm_fast.text.examples import TokenizedRow

ARCHITECTURES = tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"

TOLERANCE = 1e-5
"""Relative: some float64 models of transformers round to float32 inside."""

PRIOR_PRECISION = 0.7
VOCABULARY = 64
LARGEST = 3_000_000
"""Weights of what still counts as tiny."""

SIZES = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"), 16
    ),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "hidden_dim"), 24),
    **dict.fromkeys(("ffn_dim", "dff", "d_inner", "moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_attention_heads", "num_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads", "expansion_ratio", "num_experts_per_tok"), 2
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("head_dim", "d_head", "d_kv"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 96),
    "num_key_value_heads": 1,
    "type_vocab_size": 2,
}
"""Values of a tiny configuration, where an architecture has them."""

SPECIAL = {"num_labels": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

MLA = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "n_group": 2,
    "topk_group": 1,
}

OWN: dict[str, dict[str, Any]] = {
    "axk1": MLA,
    "axk2": MLA,
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "minicpm3": MLA,
    "mistral4": MLA,
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "diffllama": {"num_key_value_heads": 2},
    "falcon": {"head_dim": None},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None, "num_decoder_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "layoutlmv3": {"coordinate_size": 3, "shape_size": 2},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 8},
    "modernbert": {"local_attention": 8},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {
        "axial_pos_embds_dim": (8, 8),
        "axial_pos_shape": (8, 12),
        "attn_layers": ["local", "local"],
        "attention_head_size": 8,
        "feed_forward_size": 24,
    },
    "t5": {"decoder_start_token_id": 0},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
}
"""What an architecture needs beside or instead of `SIZES`; None for what it must not be given."""


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture.

    Attributes:
        name: of the architecture.
        served: whether it has rewards and variances.
        told: how its rows are batched and which shortcuts are taken, or the refusal.
        crashed: whether it was neither served nor refused.
        reward_error, variance_error: largest differences to rows alone and to autograd, relative to the largest value.
    """

    name: str
    served: bool
    told: str
    reward_error: float = 0.0
    variance_error: float = 0.0
    crashed: bool = False

    @property
    def is_right(self) -> bool:
        """Whether no number is wrong."""
        return not self.crashed and max(self.reward_error, self.variance_error) <= TOLERANCE


def tiny_model(name: str) -> PreTrainedModel:
    """A float64 model of an architecture, randomly initialised.

    Raises:
        InputError: it cannot be made from a tiny configuration.
    """
    cls = CONFIG_MAPPING[name]
    try:
        known = {key: value for key, value in SIZES.items() if hasattr(cls(), key)}
        options = known | SPECIAL | OWN.get(name, {})
        config = cls(**{key: value for key, value in options.items() if key not in SIZES or value is not None})
        with torch.device("meta"):
            weights = sum(p.numel() for p in AutoModelForSequenceClassification.from_config(config).parameters())
        if weights > LARGEST:
            raise InputError(f"a tiny configuration still has {weights:,} weights")
        torch.manual_seed(0)
        # The other implementations of experts know no float64.
        model = AutoModelForSequenceClassification.from_config(config, experts_implementation="eager")
    except InputError:
        raise
    except Exception as error:  # whatever configurations and constructors raise
        what = str(error).splitlines()[0] if str(error) else ""
        raise InputError(f"transformers cannot make a tiny one: {type(error).__name__}: {what}") from error
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)  # so that nothing is lost in rounding
    return model.double().eval()


def with_lora(model: PreTrainedModel) -> PeftModel:
    """LoRA of rank 2 with weights that are not zero on the linear layers inside the transformer's layers."""
    stack = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {module for layers in stack for module in layers.modules()}
    targets = [
        name
        for name, (module, _, _) in linear_modules(model).items()
        if module in inside and isinstance(module, nn.Linear | Conv1D) and not name.endswith("router")
    ]
    if any(
        name.endswith(".experts") for name, _ in model.named_modules()
    ):  # peft would adapt the experts by these names
        targets = [name for name in targets if not name.endswith(("gate_proj", "up_proj", "down_proj"))]
    if not targets:
        raise InputError("it has no linear layers that LoRA could adapt")
    options = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=targets, modules_to_save=[])
    adapted = get_peft_model(model, options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return adapted.double().eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token; rows end with the eos token, which an encoder-decoder is read at."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.model_max_length = 64
    return tokenizer


def texts(count: int, seed: int) -> list[str]:
    """Ragged texts of random words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    return [
        " ".join(f"w{i}" for i in torch.randint(4, VOCABULARY, (length,), generator=generator).tolist())
        for length in lengths
    ]


def jacobian(model: PeftModel, row: TokenizedRow) -> tuple[float, Tensor]:  # shape: (P,)
    """Reward and Jacobian of a row alone, by autograd."""
    weights = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    with contextlib.ExitStack() as stack:
        # Reformer's reversible layers give gradients in a backward pass alone, and to a graph that begins below them.
        root = torch.zeros((), requires_grad=True)
        hook = model.get_input_embeddings().register_forward_hook(lambda _, args, output: output + root)
        stack.callback(hook.remove)
        for weight in weights:
            weight.grad = None
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_()
        reward = model(input_ids=torch.tensor([row.input_ids])).logits[0, 0]
        reward.backward()
    dense = [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in weights]
    return reward.item(), torch.cat([gradient.flatten() for gradient in dense])


def variances(observed: Tensor, weights: Tensor, asked: Tensor) -> Tensor:  # (M, P), (M,), (N, P) -> (N,)
    """`jᵀ (Σ Λ o oᵀ + λ I)⁻¹ j` by the Woodbury identity."""
    scaled = observed * weights.sqrt()[:, None]
    inner = PRIOR_PRECISION * torch.eye(len(scaled), dtype=scaled.dtype) + scaled @ scaled.T
    outside = asked @ scaled.T
    explained = (outside * torch.linalg.solve(inner, outside.T).T).sum(1)
    return (asked.square().sum(1) - explained) / PRIOR_PRECISION


def tried(name: str) -> Outcome:
    """Fit and score an architecture, and compare its numbers."""
    try:
        model = with_lora(tiny_model(name))
        rm = BayesianRewardModel(model, tiny_tokenizer())
        prompts, chosen, rejected = texts(4, 1), texts(4, 2), texts(4, 3)
        pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(prompts, chosen, rejected, strict=True)]
        rm.fit(pairs, structure="ggn", rank=16, prior_precision=PRIOR_PRECISION)
        asked = ([*texts(3, 4), *texts(1, 5) * 3], texts(6, 6))
        scores = rm.score(*asked)
        means = rm.rewards(*asked)
    except InputError as refusal:
        return Outcome(name, False, str(refusal))
    except Exception as error:
        return Outcome(name, False, f"{type(error).__name__}: {error}".splitlines()[0], crashed=True)
    rows = [jacobian(model, row) for row in rm.tokenize(*asked)]
    differences = []
    for pair in rm.tokenize_pairs(pairs):
        (better, j), (worse, other) = jacobian(model, pair.chosen), jacobian(model, pair.rejected)
        differences.append((better - worse, j - other))
    margins = torch.tensor([margin for margin, _ in differences], dtype=torch.float64)
    expected = variances(
        torch.stack([j for _, j in differences]),
        torch.sigmoid(margins) * torch.sigmoid(-margins),
        torch.stack([j for _, j in rows]),
    )
    if not expected.any():
        return Outcome(name, False, "the tiny one's reward does not depend on its layers")
    alone = torch.tensor([reward for reward, _ in rows], dtype=torch.float64)
    return Outcome(
        name,
        True,
        _told(rm),
        max(_relative(scores.mean, alone), _relative(means, alone)),
        float(((scores.variance - expected).abs() / expected).max()),
    )


def _told(rm: BayesianRewardModel) -> str:
    taken = rm.shortcuts
    parts = [
        "equal lengths" if taken.equal_lengths else "padded",
        *(["no mask"] if taken.no_mask else []),
        *([f"last layer at the {taken.scored_token} token"] if taken.scored_token else []),
        *(["shared beginnings"] if taken.shared_prefix else []),
    ]
    return ", ".join(parts)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def table(outcomes: Sequence[Outcome]) -> str:
    """The document."""
    served = [outcome for outcome in outcomes if outcome.served]
    lines = [
        "# Architectures",
        "",
        "Every architecture that `AutoModelForSequenceClassification` of transformers "
        f"{transformers.__version__} names, at tiny size in float64, with LoRA (peft {peft.__version__}) on all linear "
        "layers of the transformer: rewards of ragged rows in batches against each row alone, and their variances "
        "under a ggn posterior against autograd's Jacobians. Errors are relative. `python -m benchmarks.architectures` "
        "writes this table.",
        "",
        f"Of {len(outcomes)}, {len(served)} are served, {sum(not one.is_right for one in served)} of them with an "
        f"error above {TOLERANCE:.0e}; {len(outcomes) - len(served)} are refused or cannot be made.",
        "",
        "| architecture | reward | variance | batches and shortcuts |",
        "| --- | --- | --- | --- |",
    ]
    for outcome in served:
        errors = f"{outcome.reward_error:.0e} | {outcome.variance_error:.0e}"
        lines.append(f"| {outcome.name} | {errors} | {outcome.told} |")
    lines += ["", "| architecture | why not |", "| --- | --- |"]
    lines += [f"| {one.name} | {one.told.replace('|', '/')} |" for one in outcomes if not one.served]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Try them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; default: all, and the document is written")
    names = parser.parse_args(arguments).names
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    outcomes = []
    for name in names or ARCHITECTURES:
        with contextlib.redirect_stderr(open(os.devnull, "w")):
            outcomes.append(tried(name))
        print(outcomes[-1], flush=True)
    if not names:
        DOCUMENT.write_text(table(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
