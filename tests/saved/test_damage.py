"""The file that is at fault when a library cannot load a folder."""

import json
import shutil

import pytest

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.saved.damage import MODEL_FILES, cannot_load


@pytest.fixture
def folders(base_folder, model_folder, tmp_path):
    """A fitted model, and the base model that it names."""
    base = shutil.copytree(base_folder, tmp_path / "base")
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return {"base": base, "model": model}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def without(name):
    def drop(path):
        values = json.loads(path.read_text())
        del values[name]
        path.write_text(json.dumps(values))

    return drop


def holding(content):
    return lambda path: path.write_bytes(content)


def changed(**values):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("folder", "name", "damage"),
    [
        ("model", "tokenizer.json", cut),
        ("model", "tokenizer.json", holding(b"")),
        ("model", "tokenizer.json", holding(b"[" * 100_000)),
        ("model", "tokenizer.json", without("model")),
        ("model", "tokenizer.json", changed(model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "<none>"})),
        ("model", "tokenizer_config.json", cut),
        ("model", "tokenizer_config.json", holding(b"[]")),
        ("model", "tokenizer_config.json", changed(added_tokens_decoder=3)),
        ("model", "tokenizer_config.json", changed(unk_token="")),
        ("model", "chat_template.jinja", holding(b"\xed")),
        ("model", "adapter_config.json", holding(b"[" * 100_000)),
        ("model", "adapter_config.json", changed(base_model_name_or_path=None)),
        ("model", "adapter_config.json", changed(r=5)),
        ("model", "adapter_config.json", changed(target_modules=["nothing"])),
        ("model", "adapter_model.safetensors", cut),
        ("base", "config.json", cut),
        ("base", "config.json", holding(b"\xff\xfe")),
        ("base", "config.json", changed(hidden_size="many")),
        ("base", "config.json", changed(hidden_size=20)),
        ("base", "model.safetensors", cut),
        ("base", "model.safetensors", holding(b"")),
        ("base", "model.safetensors", holding(b"\xff" * 40)),
    ],
)
def test_a_damaged_file_is_named(folders, folder, name, damage):
    path = folders[folder] / name
    damage(path)
    with pytest.raises(InputError) as refused:
        BayesianRewardModel.from_pretrained(folders["model"], device="cpu")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_damaged_one_of_many_files_is_named(folders, tmp_path):
    base = folders["base"]
    shutil.copy(base / "model.safetensors", base / "model-00002.safetensors")
    cut(base / "model.safetensors")
    told = str(cannot_load("the model", base, MODEL_FILES, OSError("something\nlong")))
    assert told.startswith(f"the model cannot be loaded: {base}/model.safetensors is damaged (")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no such\nthing"), "no such"),
        (KeyError("size"), "KeyError: 'size'"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("Errors in loading:\n\tsize mismatch\n\tanother"), "size mismatch"),
    ],
)
def test_where_no_file_is_damaged_by_itself_all_are_named(folders, error, line):
    base = folders["base"]
    told = str(cannot_load("the model", base, MODEL_FILES, error))
    assert told == f"the model cannot be loaded: {line} (from {base}/config.json, {base}/model.safetensors)"
    told = str(cannot_load("the model", "org/name", MODEL_FILES, error, "cannot be put on its base model"))
    assert told == f"the model cannot be put on its base model: {line}"
