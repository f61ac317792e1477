"""The prior precision: by evidence, by held-out pairs, by margins."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from posterior.structures import STRUCTURES, Case
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit.prior import GRID, by_evidence, by_margins, by_validation, margins_and_norms, variance_curve


def posterior_with(squared_norm, structure="ggn"):
    posterior = Case(structure, None, "three sites", torch.float64).fit()
    posterior.record = replace(posterior.record, squared_norm=squared_norm)
    return posterior


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("squared_norm", [1e-3, 1.0, 1e3])
def test_evidence_gives_mackays_fixed_point_which_is_the_maximum(structure, squared_norm):
    posterior = posterior_with(squared_norm, structure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its maximum is inside the grid
        found = by_evidence(posterior)
    assert (found.method, found.criterion) == ("evidence", "log evidence")
    assert found.precision == pytest.approx(posterior.effective_parameters(found.precision) / squared_norm, rel=1e-9)
    best = posterior.log_evidence(found.precision)
    assert [precision for precision, _ in found.curve] == list(GRID)
    assert all(best >= value == posterior.log_evidence(precision) for precision, value in found.curve)
    assert posterior.prior_precision == 0.5  # it is found, not set


@pytest.mark.parametrize(
    ("squared_norm", "end", "message"),
    [
        (1e-18, -1, r"evidence is largest at 1e\+08 or above: the weights are next to zero"),
        (1e18, 0, r"evidence is largest at 0\.0001 or below: the pairs determine next to nothing"),
    ],
)
def test_evidence_that_grows_over_the_whole_grid_takes_its_end_and_says_so(squared_norm, end, message):
    with pytest.warns(UserWarning, match=f"{message}.* an end of its grid and no measurement; take 'margins'"):
        assert by_evidence(posterior_with(squared_norm)).precision == pytest.approx(GRID[end])


def test_evidence_needs_weights_that_are_not_zero_and_labels():
    with pytest.raises(InputError, match="evidence grows"):
        by_evidence(posterior_with(0.0))
    posterior = posterior_with(1.0)
    posterior.record = replace(posterior.record, log_likelihood=None)
    with pytest.raises(InputError, match="no evidence"):
        by_evidence(posterior)


def test_margins_give_the_prior_under_which_differences_are_as_large_as_the_models_own():
    found = by_margins(torch.tensor([1.0, -3.0]), torch.tensor([4.0, 16.0]))
    assert (found.precision, found.method) == (pytest.approx(10 / 5), "margins")
    assert not found.curve


@pytest.mark.parametrize(("margins", "norms"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_margins_need_rewards_that_differ_and_depend_on_the_weights(margins, norms):
    with pytest.raises(InputError, match="whose rewards differ"):
        by_margins(torch.tensor(margins), torch.tensor(norms))


def test_held_out_pairs_give_the_prior_with_the_smallest_nll():
    difference = torch.tensor([2.0, -2.0, 1.0], dtype=torch.float64)
    variance = torch.tensor([[100.0] * 3, [0.0, 50.0, 0.0], [0.0] * 3], dtype=torch.float64)
    found = by_validation(difference, variance, [0.1, 1.0, 10.0])
    assert (found.precision, found.method, found.criterion) == (1.0, "validation", "held-out negative log likelihood")
    for (precision, nll), row, expected in zip(found.curve, variance.tolist(), [0.1, 1.0, 10.0], strict=True):
        assert precision == expected
        scaled = [d / math.sqrt(1 + math.pi / 8 * v) for d, v in zip(difference.tolist(), row, strict=True)]
        assert nll == pytest.approx(sum(math.log1p(math.exp(-z)) for z in scaled) / 3)


@pytest.fixture(scope="module")
def rm():
    """Whose pairs come in batches of several, in the order of their lengths."""
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), max_batch_tokens=500)
    return model.fit(tiny_pairs(), rank=4, prior_precision=2.0)


def test_margins_and_norms_are_those_of_the_pairs_in_their_order(rm):
    pairs = tiny_pairs(9, seed=3)
    margins, norms = margins_and_norms(rm.passes(), rm.tokenize_pairs(pairs))
    scores = rm.score_pairs(pairs)
    torch.testing.assert_close(margins, scores.mean.double(), rtol=1e-4, atol=1e-5)
    _, (variance,) = variance_curve(rm.passes(), rm.tokenize_pairs(pairs), rm.posterior, [1e12], None)
    torch.testing.assert_close(norms, variance * 1e12, rtol=1e-4, atol=0)


def test_a_curve_has_the_variances_of_the_pairs_in_their_order_and_tells_its_progress(rm):
    pairs, told = tiny_pairs(9, seed=3), []
    differences, variances = variance_curve(
        rm.passes(), rm.tokenize_pairs(pairs), rm.posterior, [0.1, 2.0], lambda *at: told.append(at)
    )
    scores = rm.score_pairs(pairs)
    torch.testing.assert_close(differences, scores.mean.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variances[1], scores.variance.double(), rtol=1e-4, atol=0)
    assert (variances[0] > variances[1]).all()
    assert told[-1] == (9, 9)
    assert 1 < len(told) < 9
