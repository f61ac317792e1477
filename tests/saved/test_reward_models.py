"""Saving and loading, and what is refused on the way."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    tiny_adapter,
    tiny_base,
    tiny_pairs,
    tiny_step_model,
    tiny_steps,
    tiny_token_classifier,
    tiny_tokenizer,
    words,
)
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.posterior.files import load_posterior, save_posterior

PROMPTS, RESPONSES = [words(3, 1)] * 3, [words(4 + i, i) for i in range(3)]


def scores(rm):
    result = rm.score(PROMPTS, RESPONSES)
    return torch.stack([result.mean, result.variance])


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


@pytest.fixture(scope="session")
def of_an_encoder(tmp_path_factory):
    """An adapter with a posterior, on a base model with a head of two layers; not to be written to."""
    folder = tmp_path_factory.mktemp("encoder")
    tiny_base("roberta").save_pretrained(folder / "base")
    tiny_tokenizer("roberta").save_pretrained(folder / "base")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    tiny_adapter("roberta", base=base, task_type=None).save_pretrained(folder / "plain")
    load(folder / "plain").fit(tiny_pairs(), rank=4).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def copied(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "posterior.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_gives_the_same_scores(adapter_folder, tmp_path):
    rm = load(adapter_folder).fit(tiny_pairs(), rank=4, include_head=True)
    rm.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)
    assert again.posterior.record == rm.posterior.record
    assert again.posterior.log_evidence() == rm.posterior.log_evidence()


def test_several_outputs_are_saved_with_their_weights(tmp_path):
    tiny_base("qwen2", num_labels=3).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    weights = [1.0, -0.5, 0.1]  # the last has no exact float32
    rm = BayesianRewardModel(tiny_adapter("qwen2", base=base), tiny_tokenizer("qwen2"), output_weights=weights)
    rm.fit(tiny_pairs(), rank=4).save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.output_weights.tolist() == torch.tensor(weights).tolist()
    assert load(tmp_path / "model", output_weights=weights).output_weights.tolist() == again.output_weights.tolist()
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)
    with pytest.raises(InputError, match="output_weights="):
        load(tmp_path / "model", output_weights=[1.0, 1.0, 1.0])


def test_the_record_is_readable(model_folder):
    record = json.loads((model_folder / "posterior.json").read_text())
    assert record["structure"] == "ekfac"
    assert record["pairs"] == 6
    assert record["prior"]["method"] == "evidence"
    assert len(record["prior"]["curve"]) > 10
    assert set(record["versions"]) == {"bayesrm_fast", "torch", "transformers", "peft"}
    assert record["base_model"]
    assert {"name", "r", "d", "activations"} == set(record["sites"][0])
    assert record["parameters"] == sum(site["r"] * site["d"] for site in record["sites"])


def test_shared_bases_are_stored_once(model_folder):
    posterior = load_posterior(model_folder)
    layer = "model.layers.0.self_attn"
    blocks = posterior.blocks
    assert blocks[f"{layer}.q_proj.lora_A"].basis_q is blocks[f"{layer}.v_proj.lora_A"].basis_q


def test_bases_lie_by_columns_fitted_and_loaded(adapter_folder, model_folder):
    fitted = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu").fit(
        tiny_pairs(), structure="ekfac", rank=4
    )
    for rm in (fitted, BayesianRewardModel.from_pretrained(model_folder, device="cpu")):
        assert all(block.basis_q.T.is_contiguous() for block in rm.fitted.blocks.values())


def test_other_adapter_weights_are_refused(copied):
    tensors = load_file(copied / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, copied / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"what differs: adapter weights$"):
        load(copied)


def edited_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edited_tensor(file, name):
    tensors = load_file(file)
    tensors[name][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("adapter scaling", lambda adapter, base: edited_json(adapter / "adapter_config.json", lora_alpha=7)),
        ("adapter scaling", lambda adapter, base: edited_json(adapter / "adapter_config.json", use_rslora=True)),
        (
            "adapter scaling",
            lambda adapter, base: edited_json(adapter / "adapter_config.json", alpha_pattern={"query": 7}),
        ),
        ("score head", lambda adapter, base: edited_tensor(base / "model.safetensors", "classifier.out_proj.bias")),
        ("score head", lambda adapter, base: edited_tensor(base / "model.safetensors", "classifier.dense.weight")),
        (
            "base weights",
            lambda adapter, base: edited_tensor(
                base / "model.safetensors", "roberta.encoder.layer.1.output.LayerNorm.bias"
            ),
        ),
        ("configuration", lambda adapter, base: edited_json(base / "config.json", layer_norm_eps=0.1)),
        ("tokenizer", lambda adapter, base: edited_json(adapter / "tokenizer.json", normalizer={"type": "Lowercase"})),
        ("chat template", lambda adapter, base: (adapter / "chat_template.jinja").write_text("{{ messages }}")),
    ],
)
def test_a_posterior_of_another_model_is_refused_by_the_part_that_differs(of_an_encoder, tmp_path, part, change):
    folder = shutil.copytree(of_an_encoder, tmp_path / "both")
    edited_json(folder / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder / "base"))
    again = load(folder / "adapter")
    torch.testing.assert_close(scores(again), scores(load(of_an_encoder / "adapter")), rtol=0, atol=0)
    change(folder / "adapter", folder / "base")
    with pytest.raises(InputError, match=rf"fitted on another model .* what differs: {part}( \(|$)"):
        load(folder / "adapter")


@pytest.mark.parametrize("name", ["posterior.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_missing_or_truncated_tensors_are_refused(copied, name, harm):
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
    with pytest.raises(InputError, match=name):
        load(copied)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}'])
def test_a_broken_record_is_refused(copied, content):
    (copied / "posterior.json").write_text(content)
    with pytest.raises(InputError, match=r"posterior\.json"):
        load(copied)


def test_a_posterior_with_values_that_are_not_finite_is_refused(model_folder, tmp_path):
    posterior = load_posterior(model_folder)
    name = posterior.sites[0].name
    posterior.blocks[name].basis_p[0, 0] = float("nan")  # no part of the record's own figures
    save_posterior(posterior, tmp_path)
    with pytest.raises(InputError, match=f"basis_p of {name} is NaN"):
        load_posterior(tmp_path)


def test_a_record_with_a_prior_precision_that_is_not_positive_is_refused(copied):
    edit(copied, prior_precision=-1.0)
    with pytest.raises(InputError, match=r"posterior\.json: prior_precision cannot be -1.0"):
        load(copied)


def test_a_full_model_without_an_adapter_is_refused(base_folder):
    with pytest.raises(InputError, match="a model without a LoRA adapter"):
        load(base_folder)


def test_models_that_are_no_reward_models(base_folder, tmp_path):
    AutoModel.from_pretrained(base_folder).save_pretrained(tmp_path / "headless")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match=r"lacks score\.weight"):
        load(tmp_path / "headless", virtual_rank=2)
    with pytest.raises(InputError, match="virtual_rank=8"):
        load(base_folder)
    with pytest.raises(InputError, match="cannot be loaded"):
        load("no/such-model", virtual_rank=2)


def assert_same_steps(first, second):
    for one, other in zip(
        first.score_steps(tiny_steps(2, seed=3)), second.score_steps(tiny_steps(2, seed=3)), strict=True
    ):
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.covariance, other.covariance)


@pytest.mark.parametrize("task", ["TOKEN_CLS", None])
def test_a_token_classifier_comes_back_with_its_separator(tmp_path, task):
    base = tiny_token_classifier("llama")
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForTokenClassification.from_pretrained(tmp_path / "base")
    base.config.architectures = None
    base.config.save_pretrained(tmp_path / "base")
    model, tokenizer = tiny_step_model("llama", base=base)
    model.peft_config["default"].task_type = task
    model.peft_config["default"].modules_to_save = ["score"]
    rm = BayesianRewardModel(model, tokenizer, step_separator="art").fit(tiny_steps(), rank=8)
    rm.save_pretrained(tmp_path / "rm")
    again = load(tmp_path / "rm")
    assert again.segments.separator == "art"
    assert_same_steps(rm, again)
    other = load(tmp_path / "rm", step_separator="\n") if task else None
    assert other is None or (other.posterior is None and other.segments.separator == "\n")


def test_virtual_adapters_of_a_token_classifier_come_back(tmp_path):
    tiny_token_classifier("bert").save_pretrained(tmp_path / "base")
    tiny_tokenizer("bert", knows_line_breaks=True).save_pretrained(tmp_path / "base")
    rm = load(tmp_path / "base", virtual_rank=2).fit(tiny_steps(), rank=8)
    rm.save_pretrained(tmp_path / "rm")
    assert_same_steps(rm, load(tmp_path / "rm"))
