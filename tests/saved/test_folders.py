"""A folder is written whole or not at all, and holds nothing of an earlier save."""

import contextlib
import os
import shutil

import pytest
import torch
from dying import killed
from failing_rename import FailingRename
from full_disk import full_disk
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.saved import folders
from bayesrm_fast.saved.folders import (
    has_adapter_files,
    hub_options,
    is_saved_adapter,
    local_folder,
    local_folder_or_name,
)

PROMPTS, RESPONSES = [words(3, 1)] * 3, [words(4 + i, i) for i in range(3)]


def scores(rm):
    result = rm.score(PROMPTS, RESPONSES)
    return torch.stack([result.mean, result.variance])


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


def content(folder):
    """Everything under a folder, names and bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def everything(adapter_folder):
    """LoRA, virtual adapters, a chat template and a posterior of both."""
    rm = load(adapter_folder, virtual_rank=2)
    rm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} </s> {% endfor %}"
    return rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)


@pytest.fixture(scope="module")
def less(adapter_folder):
    """LoRA and a posterior of it, no more."""
    return load(adapter_folder).fit(tiny_pairs(), structure="ekfac", rank=4, prior_precision=2.0)


@pytest.fixture(scope="module")
def virtual(base_folder):
    return load(base_folder, virtual_rank=2).fit(tiny_pairs(), rank=4, prior_precision=1.0)


@pytest.fixture
def used(everything, tmp_path):
    """A folder that a model of everything was saved to, among files that are not ours."""
    folder = tmp_path / "used"
    everything.save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "model.safetensors").write_bytes(b"the model itself")
    (folder / "runs").mkdir()
    (folder / "runs" / "log").write_text("also mine")
    return folder


FOREIGN = {"notes.txt": b"mine", "model.safetensors": b"the model itself", "runs": None, "runs/log": b"also mine"}


def test_a_save_replaces_all_of_an_earlier_one_and_nothing_else(used, less):
    assert {"virtual_adapter.json", "virtual_adapter.safetensors", "chat_template.jinja"} <= set(content(used))
    less.save_pretrained(used)
    found = content(used)
    assert not [name for name in found if name.startswith(("virtual_adapter", "chat_template", ".saving-"))]
    assert found.items() >= FOREIGN.items()
    again = load(used)
    assert (again.virtual, again.posterior.record.structure, again.tokenizer.chat_template) == (None, "ekfac", None)
    torch.testing.assert_close(scores(again), scores(less), rtol=0, atol=0)


def test_a_posterior_goes_where_the_new_model_has_none(used, adapter_folder):
    load(adapter_folder).save_pretrained(used)
    assert not [name for name in content(used) if name.startswith(("posterior", "virtual_adapter"))]
    assert content(used).items() >= FOREIGN.items()
    assert load(used).posterior is None


def test_saving_the_same_again_changes_no_byte(everything, used):
    before = content(used)
    everything.save_pretrained(used)
    assert content(used) == before


@pytest.mark.parametrize(
    ("error", "moves"),
    [
        (KeyboardInterrupt(), False),
        (KeyboardInterrupt(), True),
        (OSError(28, "No space left on device"), False),
    ],
    ids=["interrupt", "late interrupt", "full disk"],
)
def test_a_failure_at_any_step_leaves_the_folder_as_it_was(used, less, monkeypatch, error, moves):
    before = content(used)
    expected = InputError if isinstance(error, OSError) else type(error)
    steps = 0
    while True:
        failing = FailingRename(steps + 1, error, moves)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing)
            with contextlib.suppress(expected):
                less.save_pretrained(used)
        if failing.left > 0:
            break
        assert content(used) == before, f"step {steps + 1}"
        steps += 1
    assert steps >= 14  # two files of the posterior, then more than five out and five in, with a turn each
    torch.testing.assert_close(scores(load(used)), scores(less), rtol=0, atol=0)
    assert [path.name for path in used.parent.iterdir()] == ["used"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ValueError("no")])
def test_a_failure_while_files_are_made_leaves_all_as_it_was(used, less, monkeypatch, error, tmp_path):
    before = content(used)

    def fails(folder):
        raise error

    monkeypatch.setattr(less.tokenizer, "save_pretrained", fails)
    expected = InputError if isinstance(error, OSError) else type(error)
    for folder in (used, tmp_path / "new"):
        with pytest.raises(expected):
            less.save_pretrained(folder)
    assert content(used) == before
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_new_folder_appears_whole_or_not_at_all(less, tmp_path, monkeypatch, error):
    expected = InputError if isinstance(error, OSError) else type(error)
    steps = 0
    while True:
        failing = FailingRename(steps + 1, error, moves=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", failing)
            with contextlib.suppress(expected):
                less.save_pretrained(tmp_path / "new")
        if failing.left > 0:
            break
        assert content(tmp_path) == {}, f"step {steps + 1}"
        steps += 1
    assert steps == 4  # the posterior's two files with the turn before them, and the folder
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    torch.testing.assert_close(scores(load(tmp_path / "new")), scores(less), rtol=0, atol=0)


@pytest.mark.parametrize("moment", [4, 8, 9, 12])
def test_a_folder_loads_after_a_save_that_was_killed(used, less, moment):
    """Before, between and after the steps of a save: as it was, or as it should become."""
    before = scores(load(used))
    assert killed(lambda: less.save_pretrained(used), moment)
    found = scores(load(used))
    assert torch.equal(found, before) or torch.equal(found, scores(less))
    less.save_pretrained(used)
    assert not [name for name in content(used) if name.startswith(".")]
    torch.testing.assert_close(scores(load(used)), scores(less), rtol=0, atol=0)


def test_an_adapter_beside_others_loads_after_a_save_that_was_killed(adapter_folder, less, tmp_path):
    less.save_pretrained(tmp_path / "second")
    assert killed(lambda: less.save_pretrained(tmp_path / "second"), 9)
    again = load(adapter_folder).with_adapter(tmp_path / "second", "second")
    torch.testing.assert_close(scores(again), scores(less), rtol=0, atol=0)


def test_an_adapter_is_not_saved_into_its_base_models_folder(adapter_folder, base_folder, tmp_path):
    before = content(base_folder)
    (tmp_path / "link").symlink_to(base_folder)
    for folder in (base_folder, tmp_path / "link"):
        with pytest.raises(InputError, match="is the base model's folder: save the adapter to another one"):
            load(adapter_folder).save_pretrained(folder)
    assert content(base_folder) == before


def test_a_disk_that_is_full_leaves_all_as_it_was(used, everything, tmp_path):
    before = content(used)
    sizes = sorted({path.stat().st_size for path in used.iterdir() if path.name not in FOREIGN})
    for size in [0, *(size - 1 for size in sizes)]:
        for folder in (used, tmp_path / "new"):
            with full_disk(size), pytest.raises(InputError, match=f"^{folder} cannot be written: "):
                everything.save_pretrained(folder)
    assert content(used) == before
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_model_without_lora_does_not_take_the_place_of_an_adapter(used, virtual):
    before = content(used)
    with pytest.raises(InputError, match="holds a LoRA adapter, and this model has none: save it to another folder"):
        virtual.save_pretrained(used)
    assert content(used) == before


def test_saving_into_the_adapters_own_folder_adds_the_posterior(adapter_folder, tmp_path):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    rm = load(folder).fit(tiny_pairs(), rank=4)
    rm.save_pretrained(folder)
    torch.testing.assert_close(scores(load(folder)), scores(rm), rtol=0, atol=0)
    assert sorted(tmp_path.iterdir()) == [folder]


def test_an_adapter_of_another_name_is_saved_flat(base_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    rm = BayesianRewardModel(tiny_adapter("llama", base=base, adapter_name="policy_v2"), tiny_tokenizer("llama"))
    rm.fit(tiny_pairs(), rank=4).save_pretrained(tmp_path / "model")
    torch.testing.assert_close(scores(load(tmp_path / "model")), scores(rm), rtol=0, atol=0)


def test_saving_where_nothing_can_be_written_leaves_nothing(model_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    rm = load(model_folder)
    with pytest.raises(InputError, match=r"cannot be written|not a folder"):
        rm.save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be written|not a folder"):
        rm.save_pretrained(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["nothing/here/at/all", "/nothing"])
def test_a_folder_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match="not a folder"):
        load(name)


def test_what_a_folder_holds(adapter_folder, base_folder, virtual, tmp_path):
    virtual.save_pretrained(tmp_path / "virtual")
    assert [is_saved_adapter(folder) for folder in (adapter_folder, tmp_path / "virtual", base_folder)] == [
        True,
        True,
        False,
    ]
    assert has_adapter_files(adapter_folder, or_fail=True)
    assert not has_adapter_files(base_folder, or_fail=False)
    with pytest.raises(InputError, match=r"--virtual-rank 8"):
        has_adapter_files(base_folder, or_fail=True)
    with pytest.raises(InputError, match=r"has no adapter_config\.json; it is not a peft adapter"):
        has_adapter_files(tmp_path, or_fail=True)


def test_a_hub_name_is_downloaded_without_the_models_weights_of_other_kinds(tmp_path, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(folders, "snapshot_download", download)
    assert local_folder("org/adapter", revision="abc", token="secret") == tmp_path
    ((name, options),) = asked
    assert (name, options["revision"], options["token"]) == ("org/adapter", "abc", "secret")
    assert "*.safetensors" in options["allow_patterns"]
    assert not [pattern for pattern in options["allow_patterns"] if pattern.endswith((".bin", ".pt", ".py"))]
    assert local_folder(tmp_path) == tmp_path
    assert len(asked) == 1


def test_a_repository_that_cannot_be_had_is_no_folder(monkeypatch):
    def download(name, **options):
        raise RuntimeError("404, or no network, or no access")

    monkeypatch.setattr(folders, "snapshot_download", download)
    with pytest.raises(InputError, match="org/adapter is not a folder, and no such repository could be downloaded"):
        local_folder("org/adapter")


def test_the_name_of_a_model_without_an_adapter_stays_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "snapshot_download", lambda name, **options: str(tmp_path))
    found = {"org/adapter": "adapter_config.json", "org/model": None}
    asked = []

    def find(name, **options):
        asked.append(options)
        return found[name]

    monkeypatch.setattr(folders, "find_adapter_config_file", find)
    assert local_folder_or_name("org/model", takes_models=True, revision="abc") == "org/model"
    assert local_folder_or_name("org/adapter", takes_models=True, revision="abc") == tmp_path
    assert asked == [{"revision": "abc"}] * 2
    assert local_folder_or_name("org/model", takes_models=False) == tmp_path
    assert local_folder_or_name(tmp_path, takes_models=True) == tmp_path


def test_options_of_the_hub_are_told_from_the_models():
    options = {"revision": "abc", "token": None, "cache_dir": "here", "local_files_only": True, "dtype": torch.float32}
    assert hub_options(options) == {"revision": "abc", "token": None, "cache_dir": "here", "local_files_only": True}
