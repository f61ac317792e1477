"""Training an adapter, on rows joined as scoring joins them."""

import builtins
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_base, tiny_pairs, tiny_tokenizer, words
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.train.adapter import TrainOptions, _as_columns, _from_columns, train_adapter

pytest.importorskip("trl", reason="the extra `train` is not installed")

OPTIONS = TrainOptions(lora_rank=2, target_modules=["q_proj", "v_proj"], batch_size=2, epochs=2.0)


def test_a_trained_adapter_is_fitted_and_scored(base_folder, tmp_path):
    told = []
    log = train_adapter(base_folder, tiny_pairs(), tmp_path / "adapter", OPTIONS, lambda *at: told.append(at))
    assert told[-1] == (6, 6)
    assert all(entry["loss"] > 0 for entry in log)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], set(config["target_modules"])) == (2, {"q_proj", "v_proj"})
    assert config["base_model_name_or_path"] == str(base_folder)
    assert not {"README.md", "training_args.bin"} & {path.name for path in (tmp_path / "adapter").iterdir()}
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu").fit(tiny_pairs(), rank=4)
    assert rm.score([words(3)], [words(4)]).variance[0] > 0
    assert (rm.tokenizer.init_kwargs["trained_joining"], rm.encoder.joining) == ("blank line", "blank line")
    assert not rm.tokenizer.init_kwargs["trained_on_messages"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_that_was_trained_on_messages_says_so(base_folder, tmp_path):
    pairs = [pair | {"prompt": [{"role": "user", "content": pair["prompt"]}]} for pair in tiny_pairs(2)]
    train_adapter(base_folder, pairs, tmp_path / "adapter", OPTIONS)
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert rm.tokenizer.init_kwargs["trained_on_messages"]


def test_the_same_seed_gives_the_same_adapter(base_folder, tmp_path):
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        options = TrainOptions(lora_rank=2, target_modules=["q_proj"], batch_size=4, seed=seed)
        train_adapter(base_folder, tiny_pairs(), tmp_path / f"{number}", options)
        weights.append((tmp_path / f"{number}" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_rows_are_trained_at_the_token_that_scoring_reads(tmp_path, monkeypatch):
    """Also where the tokenizer's padding token is the eos token that every row ends with."""
    from transformers import LlamaForSequenceClassification

    tiny_base("llama", pad_token_id=None).save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer("llama", "{% for m in messages %}{{ m.content }} </s>{% endfor %}")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "base")
    paddings = set()
    forward = LlamaForSequenceClassification.forward

    def recorded(self, **inputs):
        paddings.add(self.config.pad_token_id)
        return forward(self, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForSequenceClassification, "forward", recorded)
        train_adapter(tmp_path / "base", tiny_pairs(), tmp_path / "adapter", OPTIONS)
    assert not paddings & {None, tokenizer.eos_token_id}


def test_training_sees_the_rows_that_scoring_sees(base_folder, tmp_path, monkeypatch):
    """A prompt's and a response's cut and joining included."""
    from transformers import LlamaForSequenceClassification

    pairs, seen = tiny_pairs(4), set()
    forward = LlamaForSequenceClassification.forward

    def recorded(self, input_ids=None, attention_mask=None, **options):
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            seen.add(tuple(token for token, real in zip(ids, mask, strict=True) if real))
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForSequenceClassification, "forward", recorded)
        options = TrainOptions(lora_rank=2, target_modules=["q_proj"], batch_size=2, max_length=10)
        train_adapter(base_folder, pairs, tmp_path / "adapter", options)
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu", max_length=10)
    expected = {tuple(row.input_ids) for pair in rm.tokenize_pairs(pairs) for row in pair.rows}
    assert seen == expected
    assert max(map(len, expected)) == 10


def test_token_types_survive_the_one_column_of_a_side():
    encoder = BayesianRewardModel(tiny_base("bert"), tiny_tokenizer("bert"), virtual_rank=2)
    (typed,) = encoder.tokenize(["above"], ["again"])
    assert _from_columns(_as_columns(typed)) == typed
    assert typed.token_type_ids is not None
    (plain,) = BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"), virtual_rank=2).tokenize(["a"], ["b"])
    assert _from_columns(_as_columns(plain)) == plain


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_tokenizer_without_an_end_or_a_padding_token_will_do(architecture, tmp_path):
    tiny_base(architecture, pad_token_id=None if architecture == "gpt2" else 0).save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer(architecture)
    if architecture == "gpt2":
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    options = TrainOptions(lora_rank=2, batch_size=4)
    train_adapter(tmp_path / "base", tiny_pairs(4), tmp_path / "adapter", options)
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert rm.rewards([words(3)], [words(4)]).isfinite().all()


def test_nobody_is_trusted(base_folder, tmp_path, monkeypatch):
    """Where nothing is said transformers would ask on the terminal, for a tokenizer and for a model each."""
    trusted = []
    for auto in (AutoTokenizer, AutoModelForSequenceClassification):

        def recorded(name, load=auto.from_pretrained, **options):
            trusted.append(options["trust_remote_code"])
            return load(name, **options)

        monkeypatch.setattr(auto, "from_pretrained", recorded)
    with pytest.raises(InputError, match="max_length"):
        train_adapter(base_folder, tiny_pairs(), tmp_path / "adapter", TrainOptions(max_length=1))
    assert trusted == [False, False]


def test_what_cannot_be_served_is_told_before_any_training(base_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="exists and is not a folder"):
        train_adapter(base_folder, tiny_pairs(), tmp_path / "file", OPTIONS)
    with pytest.raises(InputError, match="pairs, row 1 has no column"):
        train_adapter(base_folder, [{"prompt": "a"}], tmp_path / "adapter", OPTIONS)
    with pytest.raises(InputError, match="the base model /nothing/here cannot be loaded"):
        train_adapter("/nothing/here", tiny_pairs(), tmp_path / "adapter", OPTIONS)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(InputError, match=r"pip install 'bayesrm_fast\[train\]'"):
        train_adapter(base_folder, tiny_pairs(), tmp_path / "adapter", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_in_training_leaves_no_folder(base_folder, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_adapter(base_folder, tiny_pairs(), tmp_path / "adapter", OPTIONS, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_with_code_of_its_own_is_refused_and_nobody_is_asked(base_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(base_folder, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise AssertionError('the code was run')")

    def asks(*args):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr(builtins, "input", asks)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="brings code of its own, which training does not run"):
        train_adapter(folder, tiny_pairs(), tmp_path / "adapter", OPTIONS)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("architecture", "layer"), [("bert", "bert.pooler.dense"), ("deberta-v2", "pooler.dense")])
def test_layers_that_the_base_lacks_are_trained_and_saved_with_the_adapter(architecture, layer, tmp_path):
    classifier = tiny_base(architecture)
    backbone = getattr(classifier, classifier.base_model_prefix)
    backbone.pooler = None
    backbone.save_pretrained(tmp_path / "base")
    tiny_tokenizer(architecture).save_pretrained(tmp_path / "base")
    options = TrainOptions(lora_rank=2, target_modules=["query", "query_proj", "dense"], batch_size=2)
    train_adapter(tmp_path / "base", tiny_pairs(), tmp_path / "adapter", options)
    assert layer in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    rewards = []
    for seed in range(3):
        torch.manual_seed(seed)
        rewards.append(BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu").rewards(["a"], ["able"]))
    assert rewards[0].equal(rewards[1])
    assert rewards[0].equal(rewards[2])


def test_a_base_without_a_layer_of_its_backbone_is_refused(base_folder, tmp_path):
    base = shutil.copytree(base_folder, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"does not hold model\.layers\.1\.mlp\.up_proj, which would be random"):
        train_adapter(base, tiny_pairs(), tmp_path / "adapter", OPTIONS)
    assert not (tmp_path / "adapter").exists()
