"""What the results of a run follow from."""

import json
import shutil
from dataclasses import replace

import pytest

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of


@pytest.fixture
def rm(model_folder):
    return BayesianRewardModel.from_pretrained(model_folder, device="cpu")


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


def job(rm):
    return job_of(rm, "abc", {"k": 1.0})


def test_the_same_model_elsewhere_has_the_same_job(rm, model_folder, tmp_path):
    assert job(load(shutil.copytree(model_folder, tmp_path / "copy"))) == job(rm)
    rm.save_pretrained(tmp_path / "saved again")
    assert job(load(tmp_path / "saved again")) == job(rm)
    json.dumps(job(rm))


def another_model(part):
    def change(rm):
        record = rm.posterior.record
        rm.posterior.record = replace(record, fingerprint=record.fingerprint | {part: "another"})

    return change


def another_structure(rm):
    rm.posterior.record = replace(rm.posterior.record, rank=1)


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
        *((another_model(part), part) for part in ("adapter weights", "base weights", "tokenizer", "chat template")),
        (another_structure, "posterior"),
        (another_precision, "posterior"),
        (another_temperature, "posterior"),
        (another_eigenvalue, "posterior"),
        (another_length, "max_length"),
    ],
)
def test_what_a_reward_depends_on_differs_by_its_part(rm, change, part):
    before = job(rm)
    change(rm)
    after = job(rm)
    assert {name for name in before if after[name] != before[name]} == {part}


def test_a_job_is_its_input_the_model_and_the_options(rm):
    assert job(rm).items() >= {"input": "abc", "k": 1.0, **rm.posterior.record.fingerprint}.items()


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
