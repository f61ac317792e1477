"""Runs in chunks, and told from any other run."""

import shutil

import pytest

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli import jobs
from bayesrm_fast.cli.jobs import in_chunks, job_header


def test_records_come_in_chunks_after_those_that_are_done(monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK", 3)
    assert list(in_chunks(range(8), 0)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(in_chunks(iter(range(8)), 6)) == [[6, 7]]
    assert list(in_chunks(range(6), 6)) == []


@pytest.fixture
def rm(model_folder):
    return BayesianRewardModel.from_pretrained(model_folder, device="cpu")


def test_a_header_says_what_results_follow_from(rm, model_folder, tmp_path):
    input_file = tmp_path / "rows.jsonl"
    input_file.write_text("rows")
    header = job_header(rm, input_file, {"k": 0.5})
    again = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    moved = shutil.copy(input_file, tmp_path / "moved.jsonl")
    assert job_header(again, moved, {"k": 0.5}) == header
    changed = []

    def differs(name, other):
        changed.append({key for key in header if other[key] != header[key]})
        assert changed[-1] == {name}

    differs("k", job_header(rm, input_file, {"k": 1.0}))
    moved.write_text("other rows")
    differs("input_sha256", job_header(rm, moved, {"k": 0.5}))
    again.posterior.prior_precision *= 2
    differs("prior_precision", job_header(again, input_file, {"k": 0.5}))
    again = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    again.posterior.temperature = 2.0
    differs("temperature", job_header(again, input_file, {"k": 0.5}))
    shorter = BayesianRewardModel.from_pretrained(model_folder, device="cpu", max_length=16)
    differs("max_length", job_header(shorter, input_file, {"k": 0.5}))
    again = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    next(iter(again.posterior.blocks.values())).eigenvalues[0, 0] *= 2
    differs("posterior_sha256", job_header(again, input_file, {"k": 0.5}))
    assert isinstance(header["prior_precision"], float)
