"""Covariances of rewards and of their differences by whitened gradients."""

import numpy as np
import pytest
import torch
from dense_reference import DensePosterior
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.posterior.files import CLASSES
from bayesrm_fast.score import features as gathering
from bayesrm_fast.score import sketch as sketching
from bayesrm_fast.score.features import DifferenceCovariance, whitened_gradients

PRECISION = 0.5
PROMPT = words(4, 100)
RESPONSES = [words(1 + i % 7, 50 + i) for i in range(8)]
FIRST, SECOND = torch.triu_indices(8, 8, 1)
EQUAL = torch.tensor([3])


@pytest.fixture(scope="module", params=CLASSES)
def rm(request):
    model = BayesianRewardModel(tiny_adapter("bert", dtype=torch.float64), tiny_tokenizer("bert"), max_batch_tokens=60)
    return model.fit(tiny_pairs(), structure=request.param, rank=16, prior_precision=PRECISION)


def rows_of(rm):
    return rm.tokenize([PROMPT] * 8, RESPONSES)


@pytest.fixture(scope="module")
def dense(rm):
    """Covariance of the rewards by the dense reference."""

    def ids(prompt, response):
        row = rm.tokenizer(prompt, response, return_token_type_ids=True)
        return row["input_ids"], row["token_type_ids"]

    pairs = [(ids(p["prompt"], p["chosen"]), ids(p["prompt"], p["rejected"])) for p in tiny_pairs()]
    structure, rank = rm.fitted.record.structure, rm.fitted.record.rank
    rows = [ids(PROMPT, response) for response in RESPONSES]
    return torch.from_numpy(DensePosterior(rm.model, pairs).covariance(rows, structure, rank, PRECISION))


def differences(covariance):
    signs = torch.zeros(len(FIRST), 8, dtype=torch.float64)
    signs[torch.arange(len(FIRST)), FIRST] = 1
    signs[torch.arange(len(FIRST)), SECOND] = -1
    return signs @ covariance @ signs.T


def columns(rm, expected, outside):
    features = whitened_gradients(rm.passes(), rows_of(rm), rm.fitted, outside)
    found = DifferenceCovariance(features, FIRST, SECOND, expected.diagonal())
    return torch.stack([found.column(i) for i in range(len(FIRST))]), found.sketch_error


def test_covariances_of_differences_are_those_of_the_dense_posterior(rm, dense):
    expected = differences(dense)
    found, error = columns(rm, expected, "exact")
    relative = RELATIVE[torch.float64]
    np.testing.assert_allclose(found, expected, rtol=relative, atol=relative * float(expected.max()))
    assert error is None


@pytest.mark.parametrize("width", [64, 8192])
def test_sketched_ones_have_the_exact_variances_and_err_as_they_say(rm, dense, width, monkeypatch):
    """With 64 numbers what lies in the posterior's bases is sketched too, where it is more."""
    monkeypatch.setattr(sketching, "WIDTH", width)
    monkeypatch.setattr(gathering, "WIDTH", width)
    expected = differences(dense)
    found, error = columns(rm, expected, "sketch")
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=1e-8, atol=0)
    assert 0 < error < 5 * (2 / width) ** 0.5
    scale = expected.diagonal().sqrt()
    # The errors are those of 378 inner products with a standard deviation of at most √(2/m).
    assert ((found - expected) / scale / scale[:, None]).abs().max() < 5 * (2 / width) ** 0.5


def test_a_sketch_holds_no_more_numbers_than_its_width_and_the_bases(rm, monkeypatch):
    monkeypatch.setattr(sketching, "WIDTH", 64)
    monkeypatch.setattr(gathering, "WIDTH", 64)
    features = whitened_gradients(rm.passes(), rows_of(rm), rm.fitted, "sketch")
    assert sum(part.shape[1] for part in features.exact) <= 64
    assert features.sketched.shape == (8, 64)


def test_a_difference_without_variance_has_no_covariances(rm, dense):
    variance = differences(dense).diagonal().clone()
    variance[EQUAL] = 0
    found = DifferenceCovariance(whitened_gradients(rm.passes(), rows_of(rm), rm.fitted), FIRST, SECOND, variance)
    assert not found.column(int(EQUAL)).any()
    assert found.column(0)[EQUAL] == 0


def test_progress_is_told_in_rows(rm):
    told = []
    whitened_gradients(rm.passes(), rows_of(rm), rm.fitted, progress=lambda *args: told.append(args))
    assert told[-1] == (8, 8)
    assert len(told) > 1
