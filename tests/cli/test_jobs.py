"""What the results of a run follow from."""

import json
import shutil

import pytest
import torch

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of, reward_parts


@pytest.fixture
def rm(model_folder):
    return BayesianRewardModel.from_pretrained(model_folder, device="cpu")


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


def test_the_same_model_elsewhere_has_the_same_parts(rm, model_folder, tmp_path):
    parts = reward_parts(rm)
    assert reward_parts(load(shutil.copytree(model_folder, tmp_path / "copy"))) == parts
    rm.save_pretrained(tmp_path / "saved again")
    assert reward_parts(load(tmp_path / "saved again")) == parts
    json.dumps(parts)


def scaled(rm):
    rm.model.peft_config["default"].lora_alpha *= 2


def another_base(rm):
    with torch.no_grad():
        rm.model.get_base_model().model.embed_tokens.weight[5, 0] += 1


def another_template(rm):
    rm.tokenizer.chat_template = "{{ messages }}"


def another_vocabulary(rm):
    rm.tokenizer.add_tokens(["zebra"])


def another_padding(rm):
    rm.model.config.pad_token_id = 1


def another_precision(rm):
    rm.posterior.prior_precision *= 2


def another_temperature(rm):
    rm.posterior.temperature = 2.0


def another_eigenvalue(rm):
    next(iter(rm.posterior.blocks.values())).eigenvalues[0, 0] *= 2


def another_length(rm):
    rm.encoder.max_length = 16


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (scaled, "adapter's configuration"),
        (another_base, "base model"),
        (another_padding, "base model's configuration"),
        (another_template, "tokenizer"),
        (another_vocabulary, "tokenizer"),
        (another_precision, "posterior"),
        (another_temperature, "posterior"),
        (another_eigenvalue, "posterior"),
        (another_length, "max_length"),
    ],
)
def test_what_a_reward_depends_on_differs_by_its_part(rm, change, part):
    before = reward_parts(rm)
    change(rm)
    after = reward_parts(rm)
    assert {name for name in before if after[name] != before[name]} == {part}


def test_a_job_is_its_input_the_model_and_the_options(rm):
    job = job_of(rm, "abc", {"k": 1.0})
    assert job.items() >= {"input": "abc", "k": 1.0, **reward_parts(rm)}.items()


def test_an_input_that_changes_is_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("rows")
    sha256 = file_sha256(path)
    check_unchanged(path, sha256)
    path.write_text("rowz")
    with pytest.raises(InputError, match=r"rows\.jsonl has changed while it was read: nothing is written"):
        check_unchanged(path, sha256)
    path.unlink()
    with pytest.raises(InputError, match=r"rows\.jsonl cannot be read: No such file"):
        check_unchanged(path, sha256)
