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
from bayesrm_fast.posterior.stored_basis import StoredBasis


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
    ("fields", "message"),
    [
        ({"structure": "dense"}, "structure cannot be 'dense'"),
        ({"rank": 0}, "rank cannot be 0"),
        ({"rank": True}, "rank must be a whole number, not True"),
        ({"pairs": -1}, "pairs cannot be -1"),
        ({"max_length": 0}, "max_length cannot be 0"),
        ({"include_head": 1}, "include_head must be true or false, not 1"),
        ({"output_weights": [True]}, r"output_weights\[0\] must be a finite number, not True"),
        ({"fingerprint": None}, "fingerprint must be an object, not None"),
        ({"squared_norm": -1.0}, "squared_norm cannot be -1.0"),
        ({"log_likelihood": 1.0}, "log_likelihood cannot be 1.0"),
        ({"prior_precision": 0.0}, "prior_precision cannot be 0.0"),
        ({"prior_precision": -1.0}, "prior_precision cannot be -1.0"),
        ({"prior_precision": 10**400}, "prior_precision must be a finite number"),
        ({"prior": {"meaning": "none"}}, "prior lacks 'method'"),
        ({"temperature": 0.0}, "temperature cannot be 0.0"),
        ({"temperature": "warm"}, "temperature must be a finite number, not 'warm'"),
        ({"sites": [{"name": "q", "r": 3, "d": 10}]}, r"sites\[0\] lacks 'activations'"),
        ({"sites": [{"name": "q", "r": 3, "d": 10, "activations": "r"}]}, r"activations must be one of p, q"),
        ({"sites": []}, "parameters cannot be"),
        ({"parameters": 1}, "parameters cannot be 1"),
        ({"shared_tensors": None}, "shared_tensors must be an object"),
        ({"penalty": {}}, "penalty lacks 'k'"),
        ({"more": 1}, "has an unknown field, 'more'"),
        ({"prior_precision": 0.6}, "was changed after it was written"),
        ({"include_head": True}, "was changed after it was written"),
        ({"temperature": 1.6}, "was changed after it was written"),
        ({"output_weights": [-1.0]}, "was changed after it was written"),
        ({"shared_tensors": {}}, "was changed after it was written"),
    ],
)
def test_a_changed_record_is_refused_by_what_is_changed(folder, fields, message):
    changed(folder, **fields)
    with pytest.raises(InputError, match=rf"posterior\.json:? ?{message}|posterior\.json: .*{message}"):
        load_posterior(folder)


def test_a_record_without_a_field_is_refused(folder):
    path = folder / FILES.record
    record = json.loads(path.read_text())
    for name in record:
        path.write_text(json.dumps({other: held for other, held in record.items() if other != name}))
        message = {"format": "of format", "sha256": "was changed"}.get(name, f"lacks '{name}'")
        with pytest.raises(InputError, match=message):
            load_posterior(folder)


def test_every_digit_of_a_record_counts(folder):
    path = folder / FILES.record
    text = path.read_text()
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    for i in digits[:: max(len(digits) // 60, 1)]:
        path.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        with pytest.raises(InputError, match=r"posterior\.(json|safetensors)"):
            load_posterior(folder)


def test_a_posterior_of_another_format_is_refused(folder):
    changed(folder, format=1)
    with pytest.raises(InputError, match="format 5"):
        load_posterior(folder)


def rewritten(folder, change, **fields):
    """Other tensors, with a record that names them and has a checksum of its own."""
    record = FILES.read_record(folder)
    tensors = FILES.read_tensors(folder, record)
    change(tensors)
    FILES.write(folder, replace(record, **fields), tensors)


def scaled(name, factor):
    return lambda tensors: tensors.update({name: tensors[name] * factor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("k.B/tail"), r"lacks k\.B/tail"),
        (lambda tensors: tensors.update(other=torch.ones(1)), "other belongs to no site"),
        (lambda tensors: tensors.update({"q/tail": torch.ones(1)}), r"tail of q is \[1\], not \[3\]"),
        (lambda tensors: tensors.update({"q/basis_q": tensors["q/basis_q"].T.contiguous()}), r"basis_q of q is \["),
        (lambda tensors: tensors["q/eigenvalues"].mul_(-1), "eigenvalues of q has numbers below zero"),
        (lambda tensors: tensors["q/tail"].sub_(100), "tail of q has numbers below zero"),
        (scaled("q/basis_q", 1.01), "basis_q of q is not orthonormal"),
        (scaled("k.B/basis_p", torch.zeros(1)), r"basis_p of k\.B is not orthonormal"),
        (lambda tensors: tensors["q/basis_p"][0].mul_(1.5), "basis_p of q is not orthonormal"),
        (
            lambda tensors: tensors.update({"q/tail": torch.ones(3, dtype=torch.int64)}),
            "tail of q is NaN or",
        ),
    ],
)
def test_tensors_that_cannot_be_a_posteriors_are_refused_by_site(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(InputError, match=rf"posterior\.safetensors:? {message}"):
        load_posterior(folder)


def test_a_shared_tensor_that_is_nowhere_is_refused(folder):
    rewritten(folder, lambda tensors: None, shared_tensors={"k/basis_q": "nowhere"})
    with pytest.raises(InputError, match=r"posterior\.safetensors lacks nowhere"):
        load_posterior(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["all/eigenvalues"].mul_(-1), "the eigenvalues have numbers below zero"),
        (scaled("all/transform", 1.1), "the eigenvectors are not orthonormal"),
        (scaled("q/basis", 1.1), "the eigenvectors are not orthonormal"),
        (lambda tensors: tensors.update({"all/eigenvalues": torch.ones(1)}), "do not fit each other"),
        (lambda tensors: tensors.update({"q/basis": tensors["q/basis"][1:].clone()}), "basis of q is"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_that_cannot_be_eigenvectors_are_refused(tmp_path, change, message, dtype):
    posterior = Case("ggn", 5, "a shared input", torch.float64).fit()
    bases = {name: StoredBasis.of(basis.values, dtype) for name, basis in posterior.bases.items()}
    posterior = type(posterior).from_factor(
        posterior.sites, bases, torch.eye(5).double(), posterior.record, posterior.prior
    )
    save_posterior(posterior, tmp_path)
    assert load_posterior(tmp_path).bases["q"].values.dtype == dtype
    rewritten(tmp_path, change)
    with pytest.raises(InputError, match=rf"posterior\.safetensors: .*{message}"):
        load_posterior(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("q/scale"), "lacks q/scale"),
        (lambda tensors: tensors.update({"q/scale": torch.ones(4)}), r"basis of q has scales \[4\], not \[5\]"),
        (scaled("q/scale", 1.1), "the eigenvectors are not orthonormal"),
        (lambda tensors: tensors["q/scale"].fill_(torch.nan), "scale of q is NaN or infinite"),
        (lambda tensors: tensors.update({"q/scale": torch.ones(5, dtype=torch.int8)}), "scale of q is .* no number"),
        (lambda tensors: tensors.update({"q/basis": tensors["q/basis"].float()}), "q/scale belongs to no site"),
    ],
)
def test_scales_that_do_not_fit_bases_in_int8_are_refused(tmp_path, change, message):
    posterior = Case("ggn", 5, "a shared input", torch.float64).fit()
    bases = {name: StoredBasis.of(basis.values, torch.int8) for name, basis in posterior.bases.items()}
    save_posterior(
        type(posterior).from_factor(posterior.sites, bases, torch.eye(5).double(), posterior.record, posterior.prior),
        tmp_path,
    )
    rewritten(tmp_path, change)
    with pytest.raises(InputError, match=rf"posterior\.safetensors:? ?.*{message}"):
        load_posterior(tmp_path)
