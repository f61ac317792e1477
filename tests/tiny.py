"""Tiny, randomly initialised models of every supported architecture, with tokenizers made on the spot."""

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

TEXT = (
    "a ability able about above accept across act action add after again against age ago air all almost alone along "
    "already also always among and animal another answer any appear apple are area arm around arrive art"
)
WORDS = TEXT.split()

DECODERS = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "opt"]
ENCODERS = ["bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert"]
ARCHITECTURES = DECODERS + ENCODERS

_COMMON = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
)
_OWN = {
    "llama": dict(num_key_value_heads=1),
    "mistral": dict(num_key_value_heads=1),
    "qwen2": dict(num_key_value_heads=1),
    "qwen3": dict(num_key_value_heads=1, head_dim=8),
    "qwen3_moe": dict(
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        experts_implementation="eager",  # the others know no float64
    ),
    "gemma3_text": dict(num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8),
    "gemma2": dict(num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8),
    "gpt2": dict(n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "opt": dict(ffn_dim=24, word_embed_proj_dim=16),
    "roberta": dict(max_position_embeddings=66),
    "xlm-roberta": dict(max_position_embeddings=66),
    "deberta-v2": dict(
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm"
    ),
}
TARGETS = {
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "opt": ["q_proj", "v_proj", "fc1"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj"],
    "bert": ["query", "value", "output.dense"],
    "roberta": ["query", "value"],
    "xlm-roberta": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "modernbert": ["Wqkv", "Wi"],
}


def tiny_tokenizer(architecture, chat_template=None, *, knows_line_breaks=False):
    decoder = architecture in DECODERS
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocab = {word: i for i, word in enumerate([*specials, *WORDS, *["\n"] * knows_line_breaks])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if knows_line_breaks:
        spaces, breaks = pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split("\n", "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([spaces, breaks])
    if decoder:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        names = dict(bos_token="<s>", eos_token="</s>")
    else:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
        names = dict(cls_token="<s>", sep_token="</s>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", model_max_length=64, **names
    )
    if not decoder:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    if architecture in ("roberta", "xlm-roberta", "modernbert"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_base(architecture, num_labels=1, dtype=torch.float32, **overrides):
    """A base classifier whose weights are large enough that nothing is lost in rounding."""
    torch.manual_seed(0)
    options = _COMMON | _OWN.get(architecture, {}) | dict(vocab_size=len(WORDS) + 4, num_labels=num_labels)
    if architecture == "xlnet":
        del options["max_position_embeddings"]  # its configuration refuses one
    config = AutoConfig.for_model(architecture, **(options | dict(pad_token_id=0, bos_token_id=1) | overrides))
    return _enlarged(AutoModelForSequenceClassification.from_config(config), architecture, dtype)


def tiny_token_classifier(architecture, num_labels=2, dtype=torch.float32, **overrides):
    """The same as a classifier of tokens, of which a line break is one."""
    torch.manual_seed(0)
    options = _COMMON | _OWN.get(architecture, {}) | dict(vocab_size=len(WORDS) + 5, num_labels=num_labels)
    config = AutoConfig.for_model(architecture, **(options | dict(pad_token_id=0, bos_token_id=1) | overrides))
    return _enlarged(AutoModelForTokenClassification.from_config(config), architecture, dtype)


def tiny_policy(architecture="llama", dtype=torch.float64, **overrides):
    """A causal language model whose probabilities are far from even."""
    torch.manual_seed(0)
    options = _COMMON | _OWN.get(architecture, {}) | dict(vocab_size=len(WORDS) + 4)
    config = AutoConfig.for_model(architecture, **(options | dict(pad_token_id=0, bos_token_id=1) | overrides))
    return _enlarged(AutoModelForCausalLM.from_config(config), architecture, dtype)


def _enlarged(model, architecture, dtype):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    if dtype == torch.float64 and architecture == "llama":
        _use_full_precision_norms(model)
    return model.to(dtype).eval()


def _use_full_precision_norms(model):
    """transformers' RMSNorm rounds to float32 whatever the model's dtype, which hides float64 agreement."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)


def tiny_adapter(architecture, *, dtype=torch.float32, num_labels=1, base=None, adapter_name="default", **lora):
    """A LoRA adapter with weights that are not zero."""
    base = tiny_base(architecture, num_labels, dtype) if base is None else base
    options = dict(r=3, lora_alpha=6, task_type="SEQ_CLS") | lora
    options.setdefault(
        "target_modules", TARGETS.get(architecture, ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])
    )
    model = get_peft_model(base, LoraConfig(**options), adapter_name=adapter_name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    # get_peft_model holds new adapter weights in float32; a float64 test needs all of it in float64.
    return (model.to(dtype) if dtype == torch.float64 else model).eval()


def tiny_step_model(architecture, *, dtype=torch.float32, num_labels=2, base=None, **lora):
    """A LoRA adapter of a token classifier, with its tokenizer."""
    base = tiny_token_classifier(architecture, num_labels, dtype) if base is None else base
    model = tiny_adapter(architecture, dtype=dtype, base=base, task_type="TOKEN_CLS", **lora)
    return model, tiny_tokenizer(architecture, knows_line_breaks=True)


def tiny_steps(count=4, seed=0):
    """Responses of two to four labelled steps."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        lengths = torch.randint(1, 5, (2 + i % 3,), generator=generator).tolist()
        labels = torch.randint(2, (len(lengths),), generator=generator).bool().tolist()
        steps = [words(length, seed + 100 * i + j) for j, length in enumerate(lengths)]
        rows.append({"prompt": words(2 + i % 4, seed + 100 * i + 50), "completions": steps, "labels": labels})
    return rows


def words(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())


def tiny_pairs(count=6, seed=0):
    """Pairs of ragged lengths."""
    lengths = torch.randint(1, 9, (count, 3), generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        {
            "prompt": words(a, seed + 10 * i),
            "chosen": words(b, seed + 10 * i + 1),
            "rejected": words(c, seed + 10 * i + 2) + " again",
        }
        for i, (a, b, c) in enumerate(lengths)
    ]
