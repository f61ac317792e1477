"""Every structure of the posterior against its explicit GGN, solved in float64, and what must hold for any of them."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posterior.structures import SHAPES, STRUCTURES, Case, Tokens, cases, covariance, feed, variances
from tolerances import RELATIVE

from bayesrm_fast.fit.options import DEFAULT_RANK
from bayesrm_fast.posterior.files import CLASSES, FILES, load_posterior, save_posterior, tensors_sha256

PRECISIONS = [1e-3, 0.1, 0.5, 10.0, 1e4]
LARGE = 1e12

every_rank = pytest.mark.parametrize(
    ("structure", "rank"), [(name, rank) for name, one in STRUCTURES.items() for rank in one.ranks]
)


@pytest.fixture(params=cases(), ids=str, scope="module")
def case(request):
    return request.param


@pytest.fixture(scope="module")
def posterior(case):
    """Not to be changed."""
    return case.fit()


def close(found, expected, dtype, scale=None):
    """To `RELATIVE` of each number, or of a scale."""
    atol = 0 if scale is None else RELATIVE[dtype] * scale
    rtol = RELATIVE[dtype] if scale is None else 0
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=rtol, atol=atol)


def test_every_structure_is_in_the_family():
    assert set(STRUCTURES) == set(CLASSES) == set(DEFAULT_RANK)
    for name, structure in STRUCTURES.items():
        assert type(Case(name, None, "one row", torch.float64).fit()) is CLASSES[name]
        full, truncated = structure.ranks
        assert full is None
        assert truncated < min(site.d for shape in SHAPES.values() for site in shape.sites)


def test_variances_are_those_of_the_dense_posterior(case, posterior):
    found = variances(posterior, case.scored_tokens)
    assert found.dtype == case.dtype
    close(found, case.dense_covariance(case.jacobians, 0.5).diagonal(), case.dtype)


def test_variances_are_positive_and_zero_where_there_are_no_tokens(case, posterior):
    found = variances(posterior, case.scored_tokens)
    for length, variance in zip(case.shape.scored, found.tolist(), strict=True):
        assert variance > 0 if length else variance == 0


def test_variances_tend_to_the_prior_as_its_precision_grows(case, posterior):
    found = feed(posterior.variance_curve_consumer([LARGE]), case.scored_tokens, case.sites).variance[0]
    close(found.double() * LARGE, np.square(case.jacobians).sum(1), case.dtype)


def test_variances_fall_as_the_prior_precision_grows_and_no_faster_than_the_prior(case, posterior):
    curve = feed(posterior.variance_curve_consumer(PRECISIONS), case.scored_tokens, case.sites).variance.double()
    assert curve.shape == (len(PRECISIONS), len(case.scored_tokens))
    slack = 1 + RELATIVE[case.dtype]
    assert (curve[1:] <= curve[:-1] * slack).all()
    scaled = curve * torch.tensor(PRECISIONS, dtype=torch.float64)[:, None]
    assert (scaled[:-1] <= scaled[1:] * slack).all()
    assert (curve[-1] < curve[0])[curve[0] > 0].all()


def test_the_curve_is_what_setting_the_prior_precision_gives(case):
    posterior = case.fit()
    curve = feed(posterior.variance_curve_consumer(PRECISIONS), case.scored_tokens, case.sites).variance
    for precision, found in zip(PRECISIONS, curve, strict=True):
        posterior.prior_precision = precision
        close(found, variances(posterior, case.scored_tokens), case.dtype)


def test_padding_whose_cotangents_are_zero_changes_nothing(case, posterior):
    """What a consumer of `gradients_alone` gets: tokens that have an activation, and a cotangent of zero."""
    padded = {}
    for site in case.sites:
        p, q, offsets = case.scored_tokens.by_site[site.name]
        zeros, ones = (p.new_zeros, q.new_ones) if site.activations == "q" else (p.new_ones, q.new_zeros)
        ps, qs = [], []
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            ps += [p[start:stop], zeros(2, site.r)]
            qs += [q[start:stop], ones(2, site.d)]
        padded[site.name] = (torch.cat(ps), torch.cat(qs), offsets + 2 * torch.arange(len(offsets)))
    consumers = [posterior.variance_consumer(), posterior.variance_curve_consumer([1.0]), posterior.feature_consumer()]
    assert all(consumer.gradients_alone for consumer in consumers)
    close(variances(posterior, Tokens(padded)), variances(posterior, case.scored_tokens), case.dtype)


@every_rank
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_order_and_batches_of_the_segments_change_nothing(structure, rank, data):
    case = Case(structure, rank, "three sites", torch.float64)
    posterior, tokens = case.fit(), case.scored_tokens
    expected = variances(posterior, tokens)
    order = data.draw(st.permutations(range(len(tokens))))
    size = data.draw(st.integers(1, len(tokens)))
    for batch in (order[start : start + size] for start in range(0, len(order), size)):
        close(variances(posterior, tokens.select(batch)), expected[batch], case.dtype)


@every_rank
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_order_batches_and_shards_of_the_pairs_change_nothing(structure, rank, data):
    case = Case(structure, rank, "three sites", torch.float64)
    tokens = case.fitted_tokens
    tokens = tokens.select(data.draw(st.permutations(range(len(tokens)))))
    batches = tokens.batches(*[data.draw(st.integers(1, 4)) for _ in range(3)])
    first = data.draw(st.integers(0, len(batches)))
    shards = [batches[:first], batches[first:]]
    expected = variances(case.fit(), case.scored_tokens)
    close(variances(case.fit(shards), case.scored_tokens), expected, case.dtype)


def test_the_covariance_is_the_dense_one_with_the_variances_on_its_diagonal(case, posterior):
    found = covariance(posterior, case.scored_tokens)
    expected = case.dense_covariance(case.jacobians, 0.5)
    close(found, expected, case.dtype, scale=expected.diagonal().max())
    close(found.diagonal(), variances(posterior, case.scored_tokens), case.dtype)
    assert torch.equal(found, found.T)
    values = torch.linalg.eigvalsh(found)
    assert values[0] >= -1e-12 * values[-1]


def test_the_conditional_posterior_of_some_sites_is_the_dense_one_and_a_lower_bound(case, posterior):
    variance = variances(posterior, case.scored_tokens)
    starts = np.cumsum([0, *[site.r * site.d for site in case.sites]])
    for first in range(len(case.sites)):
        some = case.sites[first:]
        conditional = posterior.conditional(some)
        assert type(conditional) is type(posterior)
        assert conditional.sites == some
        found = variances(conditional, case.scored_tokens)
        ggn, jacobians = case.dense()[starts[first] :, starts[first] :], case.jacobians[:, starts[first] :]
        close(found, case.dense_covariance(jacobians, 0.5, ggn).diagonal(), case.dtype)
        assert (found <= variance * (1 + RELATIVE[case.dtype])).all()


def test_the_spectrum_is_that_of_the_dense_ggn(case, posterior):
    groups = posterior.spectrum()
    assert all(values.dtype == torch.float64 for values, _ in groups)
    assert all((values >= 0).all() for values, _ in groups)
    values = np.concatenate([np.repeat(values.numpy(), times) for values, times in groups])
    assert len(values) <= posterior.parameters == len(case.dense())
    values = np.sort(np.pad(values, (0, posterior.parameters - len(values))))
    expected = np.linalg.eigvalsh(case.dense())
    close(values, expected, case.dtype, scale=expected[-1])


@pytest.mark.parametrize("precision", [None, 1e-2, 5.0])
def test_determinant_effective_parameters_and_evidence_are_the_dense_ones(case, posterior, precision):
    used = 0.5 if precision is None else precision
    values = np.linalg.eigvalsh(case.dense()).clip(min=0)
    determinant = np.log(values + used).sum()
    assert posterior.log_determinant(precision) == pytest.approx(determinant, rel=RELATIVE[case.dtype])
    effective = (values / (values + used)).sum()
    assert posterior.effective_parameters(precision) == pytest.approx(effective, rel=RELATIVE[case.dtype])
    record = posterior.record
    evidence = record.log_likelihood - used * record.squared_norm / 2 + len(values) * math.log(used) / 2
    assert posterior.log_evidence(precision) == pytest.approx(evidence - determinant / 2, rel=RELATIVE[case.dtype])


def test_pairs_that_say_nothing_leave_the_prior(case):
    silent = {name: (0 * p, q, offsets) for name, (p, q, offsets) in case.fitted_tokens.by_site.items()}
    posterior = case.fit([[Tokens(silent)]])
    close(variances(posterior, case.scored_tokens), np.square(case.jacobians).sum(1) / 0.5, case.dtype)
    assert posterior.effective_parameters() == 0
    assert posterior.log_determinant() == pytest.approx(posterior.parameters * math.log(0.5))
    part = case.sites[-1:]
    squared = np.square(case.scored_tokens.jacobians(part)).sum(1)
    close(variances(posterior.conditional(part), case.scored_tokens), squared / 0.5, case.dtype)


def test_saved_and_loaded_it_is_the_same_to_the_bit(case, posterior, tmp_path):
    save_posterior(posterior, tmp_path)
    loaded = load_posterior(tmp_path)
    assert type(loaded) is CLASSES[case.structure]
    assert (loaded.sites, loaded.record, loaded.temperature) == (posterior.sites, posterior.record, 1.5)
    assert loaded.prior.precision == 0.5
    assert (loaded.prior.method, loaded.prior.criterion) == ("evidence", "log evidence")
    assert_same_to_the_bit(case, loaded, posterior)
    record = json.loads((tmp_path / FILES.record).read_text())
    assert record["log_evidence"] == posterior.log_evidence()
    assert record["effective_parameters"] == posterior.effective_parameters()
    assert record["tensors_sha256"] == tensors_sha256(posterior) == tensors_sha256(loaded)


def assert_same_to_the_bit(case, one, other):
    tokens = case.scored_tokens
    assert torch.equal(variances(one, tokens), variances(other, tokens))
    assert torch.equal(covariance(one, tokens), covariance(other, tokens))
    assert one.log_evidence() == other.log_evidence()
    assert identities(one) == identities(other)


def identities(posterior):
    """Which tensors are which others."""
    tensors = list(posterior.tensors().values())
    return [next(i for i, first in enumerate(tensors) if first is tensor) for tensor in tensors]


def test_on_another_device_it_is_the_same_and_shared_tensors_stay_one(case, posterior):
    moved = posterior.to("cpu")
    assert (moved.record, moved.prior, moved.temperature) == (posterior.record, posterior.prior, posterior.temperature)
    assert_same_to_the_bit(case, moved, posterior)
    elsewhere = posterior.to("meta")
    assert {tensor.device.type for tensor in elsewhere.tensors().values()} == {"meta"}
    assert identities(elsewhere) == identities(posterior)
