"""By which fingerprint a model is known again, and what it sees."""

import copy

import pytest
import torch
from tiny import ENCODERS, tiny_adapter, tiny_base, tiny_tokenizer
from tokenizers import normalizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayesrm_fast.model.fingerprint import (
    BLOCK,
    FACTOR,
    HEAD,
    _block_sums,
    exact_digest,
    model_fingerprint,
    rounded_digest,
    scored_weights,
)
from bayesrm_fast.model.lora import find_lora_taps


def of(model, tokenizer=None, pad=0):
    taps = find_lora_taps(model) if hasattr(model, "peft_config") else []
    return model_fingerprint(model, tokenizer or tiny_tokenizer("llama"), taps, pad)


def differing(a, b):
    return {name for name in a if a[name] != b[name]}


def weight(path, change=1e-3, architecture="llama"):
    def build():
        model = tiny_adapter(architecture)
        with torch.no_grad():
            model.get_base_model().get_parameter(path).view(-1)[0] += change
        return model

    return build


def scaled(layer):
    def build():
        model = tiny_adapter("llama")
        model.get_base_model().get_submodule(layer).scaling["default"] *= 1.01
        return model

    return build


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("adapter weights", weight(f"{Q}.lora_A.default.weight")),
        ("adapter weights", weight(f"{Q}.lora_B.default.weight")),
        ("adapter scaling", lambda: tiny_adapter("llama", lora_alpha=7)),
        ("adapter scaling", lambda: tiny_adapter("llama", use_rslora=True)),
        ("adapter scaling", lambda: tiny_adapter("llama", alpha_pattern={"q_proj": 7})),
        ("adapter scaling", scaled(Q)),
        ("score head", weight("score.weight", 1)),
        ("base weights", weight(f"{Q}.base_layer.weight", 1)),
        ("base weights", weight("model.norm.weight", 1)),
        ("base weights", weight("model.embed_tokens.weight", 1)),
        ("configuration", lambda: tiny_adapter("llama", base=tiny_base("llama", rms_norm_eps=1e-3))),
        (
            "configuration",
            lambda: tiny_adapter(
                "llama", base=tiny_base("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
            ),
        ),
    ],
)
def test_each_part_of_a_model_is_told(part, change):
    assert differing(of(tiny_adapter("llama")), of(change())) == {part}


@pytest.mark.parametrize("architecture", ENCODERS)
def test_every_weight_but_the_adapters_is_seen(architecture):
    model = tiny_base(architecture)
    tokenizer, before = tiny_tokenizer(architecture), None
    for name, parameter in model.named_parameters():
        before = of(model, tokenizer)
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        part = "score head" if name.split(".")[0] == "classifier" else "base weights"
        assert differing(before, of(model, tokenizer)) == {part}, name


def changed_tokenizer(change):
    tokenizer = tiny_tokenizer("llama", "{{ messages }}")
    change(tokenizer)
    return tokenizer


def normalised(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("tokenizer", normalised),
        ("tokenizer", lambda t: t.add_tokens(["word"])),
        ("tokenizer", lambda t: setattr(t, "eos_token", "<unk>")),
        ("tokenizer", lambda t: setattr(t, "sep_token", "</s>")),
        ("tokenizer", lambda t: setattr(t, "model_input_names", ["input_ids", "token_type_ids", "attention_mask"])),
        ("chat template", lambda t: setattr(t, "chat_template", "{{ messages[0] }}")),
        ("chat template", lambda t: setattr(t, "chat_template", None)),
    ],
)
def test_each_part_of_a_tokenizer_is_told(part, change):
    model, tokenizer = tiny_base("llama"), tiny_tokenizer("llama", "{{ messages }}")
    assert differing(of(model, tokenizer), of(model, changed_tokenizer(change))) == {part}


def test_the_padding_token_is_seen_and_not_a_calls_padding():
    model, tokenizer = tiny_base("llama"), tiny_tokenizer("llama")
    before = of(model, tokenizer)
    tokenizer(["a ability", "able"], padding=True, truncation=True, max_length=2)
    assert of(model, tokenizer) == before
    assert differing(before, of(model, tokenizer, pad=2)) == {"padding token"}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "roberta", "deberta-v2"])
def test_a_checkpoint_has_one_fingerprint_in_float32_and_in_bfloat16(architecture, tmp_path):
    base, tokenizer = tiny_base(architecture), tiny_tokenizer(architecture)
    base.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    again.model_input_names = tokenizer.model_input_names  # which transformers does not save
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=dtype)
        assert of(loaded, again) == of(base, tokenizer)


def test_the_adapters_name_and_other_adapters_are_no_part_of_it():
    model, other = tiny_adapter("llama"), tiny_adapter("llama", adapter_name="other")
    expected = of(model)
    assert of(other) == expected
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    assert of(model) == expected


def test_of_a_copied_layer_the_active_copy_is_read_alone():
    model = tiny_adapter("llama", modules_to_save=["score"])
    head, before = model.get_base_model().score, of(model)
    with torch.no_grad():
        head.original_module.weight.add_(1)
    assert of(model) == before
    with torch.no_grad():
        head.modules_to_save["default"].weight.add_(1)
    assert differing(before, of(model)) == {"score head"}
    assert of(tiny_adapter("llama")) == before
    pooled = tiny_adapter("bert", modules_to_save=["pooler.dense"])
    before = of(pooled)
    assert "bert.pooler.dense.weight" in scored_weights(pooled)["layers saved with the adapter"]
    assert "bert.pooler.dense.weight" not in scored_weights(pooled)["base weights"]
    with torch.no_grad():
        pooled.get_base_model().bert.pooler.dense.modules_to_save["default"].bias[0] += 1
    assert differing(before, of(pooled)) == {"layers saved with the adapter"}


@pytest.mark.parametrize("shape", [(3,), (4 * BLOCK,), (2, 4 * BLOCK + 1), (37, 1001), (0,)])
def test_a_digest_sees_every_number_of_a_tensor(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = rounded_digest(tensor)
    assert rounded_digest(tensor.bfloat16()) == rounded_digest(tensor.double()) == expected
    assert rounded_digest(tensor.flatten()[None]) != expected
    for position in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
        changed = tensor.clone()
        changed.view(-1)[position] *= -1
        assert rounded_digest(changed) != expected
    transposed = tensor.T.contiguous().T if tensor.dim() == 2 else tensor
    assert rounded_digest(transposed) == expected


@pytest.mark.parametrize("width", [16, 100, 4 * BLOCK])
def test_a_digest_sees_rows_that_change_places(width):
    """As in weights that were converted for another order of rotary dimensions."""
    tensor = torch.randn(64 * BLOCK // 16, width, generator=torch.Generator().manual_seed(0))
    for order in ([1, 0, *range(2, len(tensor))], [*range(0, len(tensor), 2), *range(1, len(tensor), 2)]):
        assert rounded_digest(tensor[order]) != rounded_digest(tensor)


def test_the_sums_of_blocks_are_one_number_however_they_are_computed():
    words = torch.randint(-(2**62), 2**62, (3, BLOCK), generator=torch.Generator().manual_seed(0))
    factors = [pow(FACTOR, i, 2**64) for i in range(BLOCK)]
    sums = [sum(map(int.__mul__, row, factors)) % 2**64 for row in words.tolist()]
    assert [found % 2**64 for found in _block_sums(words).tolist()] == sums


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_numbers_that_are_no_floating_point_are_hashed_as_they_are(dtype):
    tensor = torch.arange(2, 20002).to(dtype)
    changed = tensor.clone()
    changed[7] = 0
    assert rounded_digest(tensor) != rounded_digest(changed)


@pytest.mark.parametrize("digest", [exact_digest, rounded_digest])
def test_of_a_tensor_that_is_not_there_the_shape_is_hashed(digest):
    assert digest(torch.empty(3, device="meta")) == digest(torch.empty(3, device="meta"))
    assert digest(torch.empty(3, device="meta")) != digest(torch.empty(4, device="meta"))


def test_a_head_of_another_name_is_the_score_head():
    classes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    found = scored_weights(tiny_base("bart", **classes))[HEAD]
    assert {name.split(".")[0] for name in found} == {"classification_head"}
