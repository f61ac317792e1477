"""Virtual adapters on disk and from the command line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_base, tiny_pairs, tiny_tokenizer, words
from transformers import AutoModelForSequenceClassification

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.saved.virtual_record import FILES

PROMPTS, RESPONSES = [words(3, 1)] * 3, [words(4 + i, i) for i in range(3)]


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


def scores(rm):
    result = rm.score(PROMPTS, RESPONSES)
    return torch.stack([result.mean, result.variance])


@pytest.fixture(scope="module")
def saved(base_folder, tmp_path_factory):
    """Virtual adapters and a posterior of `base_folder`; not to be written to."""
    folder = tmp_path_factory.mktemp("virtual") / "saved"
    load(base_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "virtual_adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, change=lambda tensors: None, **changes):
    """Other tensors and another record, each with its own checksum."""
    record = FILES.read_record(folder)
    tensors = FILES.read_tensors(folder, record)
    change(tensors)
    FILES.write(folder, replace(record, **changes), tensors)


def test_a_saved_model_gives_the_same_scores_and_holds_no_model(base_folder, tmp_path):
    rm = load(base_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)
    assert again.posterior.record == rm.posterior.record
    downs = {id(tap.down) for tap in again.virtual.taps}
    assert len(downs) == len({id(tap.down) for tap in rm.virtual.taps}) < len(again.virtual.taps)
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {"virtual_adapter.json", "virtual_adapter.safetensors", "posterior.json", "posterior.safetensors"} <= names
    assert not names & {"model.safetensors", "adapter_model.safetensors", "config.json"}


def test_saving_into_the_models_own_folder(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "model")
    rm = load(folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(folder)
    moved = folder.rename(tmp_path / "moved")
    torch.testing.assert_close(scores(load(moved)), scores(rm), rtol=0, atol=0)


def test_beside_lora_both_are_saved(adapter_folder, tmp_path):
    rm = load(adapter_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.adapter == "default"
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)


def test_a_rank_that_is_given_starts_anew(saved):
    rm = load(saved, virtual_rank=3)
    assert rm.posterior is None
    rm.fit(tiny_pairs(), prior_precision=1.0)
    assert {site.r for site in rm.posterior.sites} == {3}


def test_bfloat16_is_the_same_checkpoint(saved):
    rm = load(saved, dtype=torch.bfloat16)
    torch.testing.assert_close(scores(rm)[1], scores(load(saved))[1], rtol=0.25, atol=0)


def test_other_weights_are_refused(base_folder, copied, tmp_path):
    other = shutil.copytree(base_folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    rewrite(copied, model=str(other))
    with pytest.raises(InputError, match="what differs: base weights"):
        load(copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "virtual_adapter.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "virtual_adapter.json").unlink(), "has a posterior, and neither .* nor virtual_adapter.json "),
        (lambda f: (f / "virtual_adapter.safetensors").write_bytes(b"x"), "truncated or belongs to another"),
        (lambda f: (f / "virtual_adapter.json").write_text("{"), "not valid JSON"),
        (lambda f: edit(f, format=99), "of format 2"),
        (lambda f: rewrite(f, model="no/such-model"), "cannot be loaded"),
        (
            lambda f: rewrite(
                f,
                lambda tensors: tensors.clear() or tensors.update({"model.nothing": torch.ones(2, 16)}),
                layers={"model.nothing": "model.nothing"},
            ),
            r"virtual_adapter\.json: .* no linear layer model.nothing",
        ),
        (lambda f: rewrite(f, lambda tensors: tensors.popitem()), "does not hold the A of each"),
        (lambda f: rewrite(f, lambda tensors: next(iter(tensors.values())).fill_(float("nan"))), "is NaN or infinite"),
        (lambda f: edit(f, virtual_rank=0), "virtual_rank must be a whole number of at least 1"),
        (lambda f: edit(f, virtual_targets="("), "is no regular expression"),
        (lambda f: edit(f, layers={}), "the model or the layers are empty"),
        (lambda f: edit(f, model="elsewhere"), r"virtual_adapter\.json was changed after it was written"),
        (lambda f: rewrite(f, virtual_rank=7), "is \\[2, "),
    ],
)
def test_damaged_folders_are_named(copied, damage, message):
    damage(copied)
    with pytest.raises(InputError, match=message):
        load(copied)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("model", 3),
        ("virtual_rank", None),
        ("virtual_rank", True),
        ("virtual_rank", "2"),
        ("virtual_targets", None),
        ("virtual_targets", [3]),
        ("layers", None),
        ("layers", []),
        ("layers", {"model.layers.0.mlp.up_proj": 3}),
        ("layers", {"model.layers.0.mlp.up_proj": "nothing"}),
    ],
)
def test_a_part_of_the_record_that_is_not_what_was_saved_is_named(copied, name, value):
    edit(copied, **{name: value})
    with pytest.raises(InputError, match=rf"{copied}/virtual_adapter\.json(: {name}.* must be | was changed)"):
        load(copied)


def test_a_posterior_of_other_directions_is_refused(copied, base_folder, tmp_path):
    other = tmp_path / "other"
    load(base_folder, virtual_rank=2).fit(tiny_pairs(seed=50), prior_precision=1.0).save_pretrained(other)
    for file in ("virtual_adapter.json", "virtual_adapter.safetensors"):
        shutil.copy(other / file, copied / file)
    with pytest.raises(InputError, match=r"what differs: adapter weights$"):
        load(copied)


def test_nothing_is_saved_before_a_fit(base_folder, tmp_path):
    with pytest.raises(InputError, match="call fit first"):
        load(base_folder, virtual_rank=2).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_from_nowhere_cannot_be_saved(tmp_path):
    rm = BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"), virtual_rank=2)
    rm.fit(tiny_pairs(), prior_precision=1.0)
    with pytest.raises(InputError, match="save it first"):
        rm.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_unlabelled_candidates_give_the_posterior_of_their_pairs(base_folder, tmp_path):
    prompts = [words(3, 1)] * 3 + [words(4, 2)] * 2 + [words(5, 3)]
    responses = [words(3 + i, 20 + i) for i in range(6)]
    rm = load(base_folder, virtual_rank=2)
    with pytest.warns(UserWarning, match="1 prompt"):
        rm.fit_unlabelled(prompts, responses, prior_precision=1.0)
    assert rm.posterior.record.pairs == 3
    assert rm.posterior.record.log_likelihood is None
    with pytest.raises(InputError, match="nobody said"):
        rm.posterior.log_evidence()
    rm.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)
    calibration = again.calibrate(tiny_pairs())
    assert again.posterior.prior_precision == calibration.prior_precision


@pytest.mark.parametrize("architecture", ["roberta", "deberta-v2", "bert"])
def test_classifiers_with_a_dense_layer_or_a_pooler(architecture, tmp_path):
    tiny_base(architecture).save_pretrained(tmp_path / "model")
    tiny_tokenizer(architecture).save_pretrained(tmp_path / "model")
    rm = load(tmp_path / "model", virtual_rank=2)
    assert isinstance(rm.model, AutoModelForSequenceClassification._model_mapping[type(rm.model.config)])
    rm.fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(scores(load(tmp_path / "saved")), scores(rm), rtol=0, atol=0)
