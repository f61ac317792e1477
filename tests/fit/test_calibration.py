"""What probabilities are worth, and the choice of a prior precision and a temperature."""

import warnings

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit.calibration import calibrate
from bayesrm_fast.fit.prior import GRID, by_evidence, by_margins, margins_and_norms
from bayesrm_fast.fit.reliability import reliability
from bayesrm_fast.posterior.base import PriorChoice
from bayesrm_fast.posterior.probit import probit_probability


def overconfident(count, factor, seed=0):
    """Differences whose labels follow a `factor` times smaller one."""
    generator = torch.Generator().manual_seed(seed)
    truth = 1.5 * torch.randn(count, generator=generator, dtype=torch.float64)
    won = torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(truth)
    return factor * torch.where(won, truth, -truth)


def test_a_temperature_takes_overconfidence_away():
    difference = overconfident(4000, 4.0)
    none = torch.zeros(1, 4000)
    found = calibrate(difference, none, [1.0], torch.sigmoid(difference))
    # The curvature of the NLL at the truth gives the temperature a standard error of 3 % here.
    assert found.temperature == pytest.approx(4.0, rel=0.15)
    assert found.after.nll < found.before.nll
    assert found.after.ece < 0.03 < found.before.ece
    assert found.after.accuracy == found.before.accuracy


def test_the_variance_that_explains_the_errors_is_chosen():
    """Half of the differences are pure noise that the variance knows of, at one of three λ."""
    count = 4000
    difference = overconfident(count, 1.0)
    noisy = torch.arange(count) % 2 == 0
    generator = torch.Generator().manual_seed(1)
    difference = torch.where(noisy, 8 * torch.randn(count, generator=generator, dtype=torch.float64), difference)
    variance = torch.stack([noisy * v for v in (0.0, 1e4, 1.0)]).double()
    found = calibrate(difference, variance, [1.0, 2.0, 3.0], torch.sigmoid(difference))
    assert found.prior_precision == 2.0
    assert found.temperature == pytest.approx(1.0, rel=0.2)
    assert found.after.nll < 0.85 * found.before.nll


@pytest.mark.parametrize(("scale", "end"), [(0.01, "0.125, is the least"), (100.0, "8, is the largest")])
def test_a_choice_at_an_end_of_its_grid_is_told(scale, end):
    difference = scale * overconfident(400, 1.0)
    with pytest.warns(UserWarning, match=f"the temperature that the pairs chose, {end} of the values"):
        calibrate(difference, torch.zeros(1, 400), [1.0], torch.sigmoid(difference))


def test_an_inner_choice_warns_of_nothing():
    difference = overconfident(400, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(difference, torch.zeros(1, 400), [1.0], torch.sigmoid(difference))


def test_no_pair_chooses_for_itself():
    """The right pair alone would have T = 1/8 and the wrong one T = 8; each gets the other's."""
    found = calibrate(torch.tensor([3.0, -3.0]), torch.zeros(1, 2), [1.0], torch.tensor([0.9, 0.1]))
    expected = -torch.nn.functional.logsigmoid(torch.tensor([3.0 / 8, -3.0 * 8])).mean()
    assert found.after.nll == pytest.approx(float(expected), rel=1e-6)


@pytest.fixture
def rm():
    return BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert")).fit(tiny_pairs(), rank=4)


@pytest.mark.parametrize("prior_precision", ["validation", "evidence", 3.0])
def test_the_model_has_what_was_chosen(rm, prior_precision, tmp_path):
    held_out = tiny_pairs(12, seed=7)
    means = rm.score_pairs(held_out).mean
    found = rm.calibrate(held_out, prior_precision)
    assert rm.posterior.prior_precision == found.prior_precision
    assert rm.posterior.temperature == found.temperature
    if prior_precision == 3.0:
        assert found.prior_precision == 3.0
    scores = rm.score_pairs(held_out)
    assert torch.equal(scores.mean, means)
    expected = probit_probability(scores.mean, scores.variance, found.temperature)
    torch.testing.assert_close(scores.probability, expected)
    again = rm.calibrate(held_out, prior_precision)
    assert again.before.nll == pytest.approx(reliability(scores.probability).nll, rel=1e-4)
    found.plot(tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5_000
    for bad in (tmp_path / "reliability.xyz", tmp_path / "nowhere" / "reliability.png"):
        with pytest.raises(InputError, match="cannot be written"):
            found.plot(bad)


@pytest.mark.parametrize(
    ("asked", "method", "criterion"),
    [
        ("validation", "calibration", "held-out negative log likelihood"),
        ("evidence", "evidence", "log evidence"),
        ("margins", "margins", "mean ‖j‖² over mean squared margin"),
        (2.5, "given", ""),
    ],
)
def test_the_posterior_says_how_its_prior_was_chosen(rm, asked, method, criterion):
    held_out = tiny_pairs(12, seed=7)
    found = rm.calibrate(held_out, asked)
    prior = rm.posterior.prior
    assert (prior.method, prior.criterion) == (method, criterion)
    assert prior.precision == found.prior_precision
    if asked == 2.5:
        assert prior == PriorChoice(2.5)
    elif asked == "evidence":
        assert prior == by_evidence(rm.posterior)
    elif asked == "margins":
        assert prior == by_margins(*margins_and_norms(rm.passes(), rm.tokenize_pairs(held_out)))
    else:
        assert prior.precision in GRID


def test_a_calibration_that_fails_leaves_the_posterior_as_it_was(rm):
    before = rm.posterior.prior, rm.posterior.temperature
    with pytest.raises(InputError, match="at least two pairs"):
        rm.calibrate(tiny_pairs(1))
    assert (rm.posterior.prior, rm.posterior.temperature) == before


def test_progress_counts_the_pairs(rm):
    told = []
    rm.calibrate(tiny_pairs(12, seed=7), progress=lambda *at: told.append(at))
    assert told[-1] == (12, 12)


def test_too_few_pairs_and_bad_options(rm):
    with pytest.raises(InputError, match="at least two pairs"):
        rm.calibrate(tiny_pairs(1))
    with pytest.raises(InputError, match="prior_precision must be"):
        rm.calibrate(tiny_pairs(4), "guess")
    with pytest.raises(InputError, match="no pairs"):
        reliability(torch.zeros(0))


def test_what_belongs_together_stays_in_one_half():
    """Steps of one response choose nothing for each other: of two groups each has what the other one chose."""
    difference, groups = torch.cat([torch.full((50,), 2.0), torch.full((50,), -2.0)]), [0] * 50 + [1] * 50
    found = calibrate(difference, torch.zeros(1, 100), [1.0], torch.sigmoid(difference), groups)
    alone = [
        calibrate(difference[own], torch.zeros(1, 50), [1.0], torch.sigmoid(difference[own])).temperature
        for own in (slice(50), slice(50, 100))
    ]
    expected = torch.cat([torch.sigmoid(difference[:50] / alone[1]), torch.sigmoid(difference[50:] / alone[0])])
    assert found.after.nll == pytest.approx(reliability(expected).nll)
    with pytest.raises(InputError, match="at least two responses"):
        calibrate(difference, torch.zeros(1, 100), [1.0], torch.sigmoid(difference), [0] * 100)
