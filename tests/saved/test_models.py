"""Models and adapters from disk or the hub, and where the options of a caller go."""

import builtins
import json
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.saved import folders
from bayesrm_fast.saved.models import add_adapter, load_adapter, load_model
from bayesrm_fast.saved.reward_models import load_reward_model

HUB = {"revision": "abc", "token": "secret", "cache_dir": "/somewhere", "local_files_only": True}


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


@pytest.fixture
def asked(monkeypatch):
    """Names and options that model and tokenizer were loaded with, of folders that stand for the hub's repositories."""
    calls = {}
    for auto in (AutoModelForSequenceClassification, AutoTokenizer):

        def recorded(name, load=auto.from_pretrained, kind=auto.__name__, **options):
            calls[kind.removeprefix("Auto").removesuffix("ForSequenceClassification").lower()] = (str(name), options)
            return load(name, **{key: value for key, value in options.items() if key not in HUB})

        monkeypatch.setattr(auto, "from_pretrained", recorded)
    return calls


def edited(folder, to, **changes):
    """A copy of an adapter with changes in its configuration."""
    copy = shutil.copytree(folder, to)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | changes))
    return copy


def without_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()
    return folder


def test_a_models_options_reach_its_tokenizer_too(base_folder, asked):
    load_model(str(base_folder), None, **HUB, trust_remote_code=True, dtype=torch.float32)
    model, tokenizer = asked["model"], asked["tokenizer"]
    assert model[0] == tokenizer[0] == str(base_folder)
    assert model[1].items() >= {**HUB, "trust_remote_code": True, "dtype": torch.float32}.items()
    assert tokenizer[1] == {**HUB, "trust_remote_code": True}


def test_a_tokenizer_beside_the_posterior_is_a_folders_own(base_folder, adapter_folder, asked):
    load_model(str(base_folder), adapter_folder, **HUB, trust_remote_code=True)
    assert asked["model"][1].items() >= HUB.items()
    assert asked["tokenizer"] == (str(adapter_folder), {"trust_remote_code": True})


def test_an_adapters_options_are_for_its_base_model(adapter_folder, base_folder, asked, tmp_path):
    load_adapter(adapter_folder, **HUB, trust_remote_code=True)
    assert asked["model"][0] == str(base_folder)
    assert asked["model"][1].items() >= {**HUB, "trust_remote_code": True}.items()
    assert asked["tokenizer"] == (str(adapter_folder), {"trust_remote_code": True})
    load_adapter(without_tokenizer(shutil.copytree(adapter_folder, tmp_path / "bare")), **HUB, trust_remote_code=True)
    assert asked["tokenizer"] == (str(base_folder), {**HUB, "trust_remote_code": True})


def test_an_adapter_that_was_trained_with_more_tokens_brings_its_embeddings(base_folder, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    base.resize_token_embeddings(44, mean_resizing=False)
    torch.nn.init.normal_(base.get_input_embeddings().weight[41:].detach())
    model = tiny_adapter("llama", base=base)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    tokenizer = tiny_tokenizer("llama")
    tokenizer.add_tokens(["zebra", "zip", "zoo"])
    tokenizer.save_pretrained(tmp_path)
    texts = (["a zebra", "zoo"], ["zip", "able"])
    found = load(tmp_path).rewards(*texts)
    torch.testing.assert_close(found, BayesianRewardModel(model, tokenizer).rewards(*texts))


def test_the_revision_that_an_adapter_names_is_its_base_models(adapter_folder, asked, tmp_path):
    folder = without_tokenizer(edited(adapter_folder, tmp_path / "pinned", revision="pinned"))
    load_adapter(folder)
    assert (asked["model"][1]["revision"], asked["tokenizer"][1]["revision"]) == ("pinned", "pinned")
    load_adapter(folder, revision="other")
    assert (asked["model"][1]["revision"], asked["tokenizer"][1]["revision"]) == ("other", "other")
    load_adapter(adapter_folder)
    assert "revision" not in asked["model"][1]


@pytest.mark.parametrize("pinned", [None, "pinned"])
def test_the_revision_of_an_adapter_on_the_hub_is_not_its_base_models(
    adapter_folder, asked, tmp_path, monkeypatch, pinned
):
    folder, downloaded = edited(adapter_folder, tmp_path / "snapshot", revision=pinned), []

    def download(name, **options):
        downloaded.append(options)
        return str(folder)

    monkeypatch.setattr(folders, "snapshot_download", download)
    load_reward_model("org/adapter", makes_virtual=False, output_weights=None, device="cpu", **HUB)
    assert downloaded[0].items() >= HUB.items()
    assert asked["model"][1].get("revision") == pinned
    assert asked["model"][1].items() >= {"token": "secret", "cache_dir": "/somewhere"}.items()


def test_nobody_is_trusted_by_default(adapter_folder, base_folder, asked):
    """Where nothing is said transformers would ask on the terminal."""
    for ask in (lambda: load_adapter(adapter_folder), lambda: load_model(base_folder, None)):
        ask()
        assert asked["model"][1]["trust_remote_code"] is False
        assert asked["tokenizer"][1]["trust_remote_code"] is False


@pytest.fixture
def remote(base_folder, tmp_path, monkeypatch):
    """A base model that brings code of its own, and a terminal on which nobody answers."""
    folder = shutil.copytree(base_folder, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForSequenceClassification": "own.OwnModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from torch import nn\n"
        "from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'of_its_own'\n"
        "class OwnModel(LlamaForSequenceClassification):\n"
        "    config_class = OwnConfig\n"
        "    def __init__(self, config):\n"
        "        LlamaPreTrainedModel.__init__(self, config)\n"
        "        self.num_labels = config.num_labels\n"
        "        self.model = LlamaModel(config)\n"
        "        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)\n"
        "        self.post_init()\n"
    )

    def asks(*args):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr(builtins, "input", asks)
    monkeypatch.setattr(sys, "stdin", None)
    return folder


def test_remote_code_is_run_on_request_alone(remote):
    with pytest.raises(InputError, match=f"^the model {remote} brings code of its own: pass trust_remote_code=True"):
        load(remote, virtual_rank=2)
    rm = load(remote, virtual_rank=2, trust_remote_code=True).fit(tiny_pairs(), prior_precision=1.0)
    assert rm.virtual.taps


def test_remote_code_under_an_adapter_is_run_on_request_alone(remote, adapter_folder, tmp_path):
    adapter = edited(adapter_folder, tmp_path / "adapter", base_model_name_or_path=str(remote))
    told = f"^the adapter's base model {remote} brings code of its own: pass trust_remote_code=True to run it$"
    with pytest.raises(InputError, match=told):
        load(adapter)
    assert type(load(adapter, trust_remote_code=True).model.get_base_model()).__name__ == "OwnModel"


def test_an_adapter_whose_base_model_is_gone_is_refused(adapter_folder, tmp_path):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nothing/here"}))
    with pytest.raises(InputError, match="base model /nothing/here cannot be loaded"):
        load(folder)


def test_an_adapter_of_a_model_without_a_score_head_is_refused(tmp_path):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=44, pad_token_id=0
    )
    LlamaModel(config).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"nor the adapter in .* holds score\.weight, which would be random"):
        load(tmp_path / "adapter")


IDS = torch.tensor([[1, 5, 9, 12, 2]])


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """Base models without a pooler, as they are for encoders that were not trained to classify."""
    folder = tmp_path_factory.mktemp("headless")
    for architecture in ("bert", "deberta-v2"):
        classifier = tiny_base(architecture)
        backbone = getattr(classifier, classifier.base_model_prefix)
        backbone.pooler = None
        backbone.save_pretrained(folder / architecture)
        tiny_tokenizer(architecture).save_pretrained(folder / architecture)
    return folder


def trained(base, folder, architecture, **lora):
    """An adapter as peft saves it, and the rewards that the model gave that was trained."""
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(base / architecture, num_labels=1)
    model = tiny_adapter(architecture, base=model, **lora)
    model.save_pretrained(folder)
    return model(IDS).logits


@pytest.mark.parametrize(("architecture", "random"), [("bert", "bert.pooler.dense"), ("deberta-v2", "pooler.dense")])
def test_layers_that_nobody_holds_are_refused_by_name(headless, tmp_path, architecture, random):
    trained(headless, tmp_path, architecture)
    with pytest.raises(InputError, match=rf"nor the adapter in .* holds {random}\.bias, {random}\.weight, which would"):
        load(tmp_path)


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_layers_that_the_adapter_holds_are_the_trained_ones_at_every_load(headless, tmp_path, architecture):
    expected = trained(headless, tmp_path / "adapter", architecture, modules_to_save=["pooler"])
    for seed in range(3):
        torch.manual_seed(seed)
        rm = load(tmp_path / "adapter")
        torch.testing.assert_close(rm.model(IDS).logits, expected, rtol=0, atol=0)
    rm.fit(tiny_pairs(), rank=4).save_pretrained(tmp_path / "fitted")
    again = load(tmp_path / "fitted")
    torch.testing.assert_close(again.model(IDS).logits, expected, rtol=0, atol=0)
    assert torch.equal(again.score(["a"], ["able"]).variance, rm.score(["a"], ["able"]).variance)


def test_an_adapter_beside_one_with_layers_of_its_own_needs_them_too(headless, tmp_path):
    trained(headless, tmp_path / "first", "bert", modules_to_save=["pooler"])
    trained(headless, tmp_path / "second", "bert")
    model, _ = load_adapter(tmp_path / "first")
    with pytest.raises(InputError, match=r"second lacks bert\.pooler, which the adapters beside it hold"):
        add_adapter(model, tmp_path / "second", "second")
    add_adapter(model, tmp_path / "first", "again")


def test_a_base_models_layer_of_another_shape_is_random_too(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].repeat(2, 1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"is no reward model: it lacks score\.weight"):
        load_model(folder, None, ignore_mismatched_sizes=True)


NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
HEAD = "base_model.model.score.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NAME), r"lacks model\.layers\.1\.mlp\.up_proj\.lora_A\.weight, which adap"),
        (lambda weights: weights.update({HEAD: weights[HEAD][:0].clone()}), r"adapter_model.* head without outputs"),
        (
            lambda weights: weights.update({NAME.replace("up_", "down_"): weights[NAME].clone()}),
            r"holds model\.layers\.1\.mlp\.down_proj\.lora_A\.weight, of which adapter_config\.json makes no layer",
        ),
        (lambda weights: weights.update({NAME: weights[NAME][:2].clone()}), "cannot be put on its base model: size"),
    ],
)
def test_an_adapters_file_holds_its_layers_and_no_others(adapter_folder, tmp_path, change, message):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        load(folder)


def initialised_by(kind, base_folder, folder, **options):
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=kind, **options)
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    model.save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", ["pissa_niter_4", "corda", "lora_ga"])
def test_adapters_whose_base_weights_no_load_restores_are_refused(base_folder, adapter_folder, tmp_path, kind):
    folder = edited(adapter_folder, tmp_path / "adapter", init_lora_weights=kind)
    with pytest.raises(InputError, match=f"adapter was initialised by '{kind}', which changes the base weights"):
        load(folder)


def test_such_an_adapter_is_fitted_where_it_was_trained_and_not_saved(base_folder, tmp_path):
    model = initialised_by("pissa_niter_4", base_folder, tmp_path / "adapter")
    rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)
    assert rm.score(["a"], ["able"]).variance > 0
    with pytest.raises(InputError, match="'default' was initialised by 'pissa_niter_4'"):
        rm.save_pretrained(tmp_path / "fitted")
    assert not (tmp_path / "fitted").exists()


@pytest.mark.parametrize("kind", ["pissa", "olora", "orthogonal", "eva", "gaussian"])
def test_adapters_whose_base_weights_every_load_restores_are_served(base_folder, tmp_path, kind):
    model = initialised_by(kind, base_folder, tmp_path / "adapter")
    rm = load(tmp_path / "adapter")
    # A decomposition and a product, each to float32's rounding of weights of about 1.
    torch.testing.assert_close(rm.model(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    rm.fit(tiny_pairs(), rank=4).save_pretrained(tmp_path / "fitted")
    again = load(tmp_path / "fitted")
    assert torch.equal(again.score(["a"], ["able"]).variance, rm.score(["a"], ["able"]).variance)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_adapters_that_change_the_base_do_not_share_it(base_folder, adapter_folder, tmp_path, kind):
    initialised_by(kind, base_folder, tmp_path / "adapter")
    for first, second in ((tmp_path / "adapter", adapter_folder), (adapter_folder, tmp_path / "adapter")):
        model, _ = load_adapter(first)
        with pytest.raises(InputError, match=f"initialised by '{kind}' change the base model, and cannot share it"):
            add_adapter(model, second, "second")


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "UNHEARD_OF"}'])
def test_an_adapters_configuration_that_cannot_be_read_is_named(adapter_folder, tmp_path, content):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=r"adapter_config\.json cannot be read"):
        load_adapter(folder)


def test_another_adapter_is_added_beside_and_made_active(adapter_folder, tmp_path):
    model, _ = load_adapter(adapter_folder)
    add_adapter(model, adapter_folder, "second")
    assert model.active_adapters == ["second"]
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" in name]
    with pytest.raises(InputError, match="has an adapter 'second' already"):
        add_adapter(model, adapter_folder, "second")
    other = edited(adapter_folder, tmp_path / "other", base_model_name_or_path="org/other")
    with pytest.raises(InputError, match=f"is of the base model org/other, not of {model.name_or_path}"):
        add_adapter(model, other, "third")
    with pytest.raises(InputError, match="it is not a peft adapter"):
        add_adapter(model, tmp_path, "third")
    (other / "adapter_model.safetensors").unlink()
    shutil.copy(adapter_folder / "adapter_config.json", other / "adapter_config.json")
    with pytest.raises(InputError, match="is missing"):
        add_adapter(model, other, "third")
