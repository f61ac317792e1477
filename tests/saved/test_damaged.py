"""Damaged folders: a refusal by name, or the very same numbers."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.posterior.files import FILES


def load(folder):
    return BayesianRewardModel.from_pretrained(folder, device="cpu")


@pytest.fixture
def copied(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "name",
    ["posterior.json", "posterior.safetensors", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"],
)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_stands_in_the_place_of_a_file_is_refused_at_once(copied, name, make):
    (copied / name).unlink()
    make(copied / name)
    with pytest.raises(InputError, match=f"{name} is (no regular file|a folder)"):
        load(copied)


def test_a_pipe_in_the_base_models_folder_is_refused_at_once(copied, base_folder, tmp_path):
    base = shutil.copytree(base_folder, tmp_path / "base")
    (base / "model.safetensors").unlink()
    os.mkfifo(base / "model.safetensors")
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    with pytest.raises(InputError, match=r"base/model\.safetensors is no regular file"):
        load(copied)


def test_a_posterior_over_other_layers_is_refused_by_their_names(copied):
    """Whoever rewrites a record with its checksum still has to have the model's sites."""
    record = FILES.read_record(copied)
    tensors = FILES.read_tensors(copied, record)
    old = "model.layers.1.mlp.up_proj"
    renamed = {name.replace(old, "model.layers.1.mlp.other"): tensor for name, tensor in tensors.items()}
    sites = [replace(site, name=site.name.replace(old, "model.layers.1.mlp.other")) for site in record.sites]
    shared = {
        name.replace(old, "model.layers.1.mlp.other"): owner.replace(old, "model.layers.1.mlp.other")
        for name, owner in record.shared_tensors.items()
    }
    FILES.write(copied, replace(record, sites=sites, shared_tensors=shared), renamed)
    with pytest.raises(InputError, match=r"is over other weights .*: model\.layers\.1\.mlp\.other\.lora_A, .*up_proj"):
        load(copied)


def test_a_posterior_with_the_head_is_not_that_of_the_adapter_alone(copied):
    record = FILES.read_record(copied)
    FILES.write(copied, replace(record, include_head=True), FILES.read_tensors(copied, record))
    with pytest.raises(InputError, match=r"is over other weights than the model has; what differs: score\.weight"):
        load(copied)


def read_or_told(folder):
    try:
        return FILES.read_record(folder)
    except InputError as error:
        return str(error)


def test_every_bit_of_a_record_counts(copied):
    """But for those of its white space."""
    path, record = copied / "posterior.json", FILES.read_record(copied)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (300,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        found = read_or_told(copied)
        assert found == record or "posterior.json" in found
