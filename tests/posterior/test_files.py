"""A posterior's two files: what they hold beside the tensors, and what is refused."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from posterior.structures import Case

from bayesrm_fast import InputError
from bayesrm_fast.posterior.base import PriorChoice
from bayesrm_fast.posterior.files import FILES, load_posterior, save_posterior, tensors_sha256


@pytest.fixture
def posterior():
    return Case("kfac", 5, "a shared input", torch.float64).fit()


@pytest.fixture
def folder(posterior, tmp_path):
    save_posterior(posterior, tmp_path)
    return tmp_path


def changed(folder, **fields):
    path = folder / FILES.record
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_record_tells_what_is_known_and_how_it_was_found(posterior, folder):
    record = json.loads((folder / FILES.record).read_text())
    assert record["format"] == FILES.format
    assert record["prior_precision"] == 0.5
    assert record["prior"] == {"method": "evidence", "criterion": "log evidence", "curve": []}
    assert record["parameters"] == posterior.parameters
    assert [site["name"] for site in record["sites"]] == ["q", "k", "k.B"]
    assert record["versions"] == {"torch": "1"}


def test_a_tensor_that_sites_share_is_stored_once(posterior, folder):
    stored = safetensors.torch.load_file(folder / FILES.tensors)
    assert "q/basis_q" in stored
    assert "k/basis_q" not in stored
    assert json.loads((folder / FILES.record).read_text())["shared_tensors"] == {"k/basis_q": "q/basis_q"}
    loaded = load_posterior(folder)
    assert loaded.blocks["k"].basis_q is loaded.blocks["q"].basis_q
    assert loaded.blocks["k.B"].basis_q is not loaded.blocks["q"].basis_q


def test_without_labels_there_is_no_evidence_to_tell(posterior, tmp_path):
    posterior.record = replace(posterior.record, log_likelihood=None)
    save_posterior(posterior, tmp_path)
    assert json.loads((tmp_path / FILES.record).read_text())["log_evidence"] is None
    assert load_posterior(tmp_path).record == posterior.record


def test_a_prior_with_a_curve_is_the_same_once_loaded(posterior, tmp_path):
    posterior.prior = PriorChoice(0.1, "validation", "nll", [(0.1, 0.6), (1.0, 0.7)])
    save_posterior(posterior, tmp_path)
    assert load_posterior(tmp_path).prior == posterior.prior


def test_the_hash_of_the_tensors_does_not_know_the_prior_and_does_know_every_number(posterior):
    before = tensors_sha256(posterior)
    posterior.prior_precision = 7.0
    assert tensors_sha256(posterior) == before
    posterior.blocks["k.B"].tail[0] += 1e-9
    assert tensors_sha256(posterior) != before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_by_its_site(posterior, tmp_path, value):
    posterior.blocks["k.B"].tail[0] = value
    posterior.record = replace(posterior.record, log_likelihood=None)
    posterior.effective_parameters = lambda: 0.0  # the record may hold no NaN
    save_posterior(posterior, tmp_path)
    with pytest.raises(InputError, match=r"tail of k\.B is NaN or infinite"):
        load_posterior(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"structure": "dense"},
        {"structure": "ggn"},
        {"sites": [{"name": "q", "r": 3, "d": 10}]},
        {"sites": [{"name": "other", "r": 3, "d": 10, "activations": "q"}]},
        {"prior": {"meaning": "none"}},
        {"shared_tensors": {}},
        {"shared_tensors": {"k/basis_q": "nowhere"}},
        {"shared_tensors": None},
        {"temperature": 0.0},
        {"temperature": "warm"},
    ],
)
def test_a_record_that_does_not_describe_the_tensors_is_refused(folder, fields):
    changed(folder, **fields)
    with pytest.raises(InputError, match=r"holds no readable posterior|must be a positive number"):
        load_posterior(folder)


@pytest.mark.parametrize("precision", [0.0, -1.0])
def test_a_prior_precision_that_is_not_positive_is_refused(folder, precision):
    changed(folder, prior_precision=precision)
    with pytest.raises(InputError, match="must be a positive number"):
        load_posterior(folder)


def test_a_posterior_of_another_format_is_refused(folder):
    changed(folder, format=1)
    with pytest.raises(InputError, match="format 2"):
        load_posterior(folder)
