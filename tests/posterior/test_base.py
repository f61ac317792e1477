"""What every posterior has, whatever its structure: its prior, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from posterior.structures import Case

from bayesrm_fast import InputError
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.posterior.base import PriorChoice


@pytest.fixture
def posterior():
    return Case("ggn", None, "one row", torch.float64).fit()


@pytest.mark.parametrize("precision", [0.0, -1.0, float("nan"), float("inf")])
def test_a_prior_precision_that_is_not_a_positive_number_is_refused(posterior, precision):
    before = posterior.prior
    with pytest.raises(InputError, match="must be a positive number"):
        PriorChoice(precision)
    with pytest.raises(InputError, match="must be a positive number"):
        posterior.prior_precision = precision
    assert posterior.prior is before


@pytest.mark.parametrize(("precision", "is_held"), [(1e-38, False), (1.2e-38, True), (8.5e37, True), (1e39, False)])
def test_a_prior_precision_that_float32_or_its_inverse_cannot_hold_is_refused(precision, is_held):
    """Variances would be infinite, or zero."""
    if is_held:
        assert PriorChoice(precision).precision == FitOptions(prior_precision=precision).prior_precision
        return
    for make in (PriorChoice, lambda value: FitOptions(prior_precision=value)):
        with pytest.raises(InputError, match=r"must be between 1\.2e-38 and 8\.5e\+37, "):
            make(precision)


@pytest.mark.parametrize("value", ["one", True, None, [1.0]])
def test_a_prior_precision_that_is_no_number_is_refused(posterior, value):
    with pytest.raises(InputError, match="must be a positive number"):
        posterior.prior_precision = value


def test_a_prior_precision_that_is_set_is_given_and_has_no_curve(posterior):
    posterior.prior = PriorChoice(2.0, "evidence", "log evidence", [(1.0, -3.0)])
    posterior.prior_precision = 3
    assert posterior.prior == PriorChoice(3.0, "given", "", ())


def test_a_number_for_a_prior_is_given(posterior):
    other = type(posterior)(posterior.sites, posterior.bases, posterior.transform, posterior.eigenvalues, None, 4)
    assert other.prior == PriorChoice(4.0, "given")
    assert other.temperature == 1.0


def test_parameters_are_the_weights_of_all_sites():
    assert Case("kfac", 5, "three sites", torch.float64).fit().parameters == 4 * 20 + 3 * 15 + 12


def test_without_labels_there_is_no_evidence_and_the_rest_is_there(posterior):
    expected = posterior.effective_parameters()
    posterior.record = replace(posterior.record, log_likelihood=None)
    with pytest.raises(InputError, match="no evidence"):
        posterior.log_evidence()
    assert posterior.effective_parameters() == expected
