"""Laws of the chosen quantile: densities, score functions, and their pools."""

import pytest
import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.laws import BestOfNLaw, BestOfPoissonLaw, SoftBestOfNLaw
from bayesrm_fast.select.pools import best_of_poisson, best_of_subset, soft_best_of_n

SCORES = torch.tensor([0.3, -1.0, 2.0, 0.9, 0.3, 0.1], dtype=torch.float64)
FAMILIES = {
    "best of n": (BestOfNLaw, [1.0, 1.5, 4.0, 30.0]),
    "best of poisson": (BestOfPoissonLaw, [0.0, 0.5, 4.0, 30.0]),
    "soft best of n": (SoftBestOfNLaw, [0.2, 1.0, 5.0]),
}
CASES = [(name, parameter) for name, (_, parameters) in FAMILIES.items() for parameter in parameters]
OF_QUANTILES = [case for case in CASES if case[0] != "soft best of n"]
CELLS = 1_200_000  # a multiple of the pool's bins
MIDPOINTS = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS


@pytest.mark.parametrize(("family", "parameter"), OF_QUANTILES)
def test_densities_integrate_to_one_and_score_functions_to_zero(family, parameter):
    """By midpoints; log u at 0, the roughest of them, costs their rule half a cell times log 2."""
    law = FAMILIES[family][0](parameter)
    density = law.density(MIDPOINTS)
    assert float(density.mean()) == pytest.approx(1.0, abs=1e-6)
    assert float((density * law.score_function(MIDPOINTS)).mean()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("family", "parameter"), [case for case in OF_QUANTILES if case[1] not in (0.0, 1.0)])
def test_the_score_function_is_the_slope_of_the_log_density(family, parameter):
    law, u, step = FAMILIES[family][0], torch.linspace(0.01, 1.0, 50, dtype=torch.float64), 1e-5
    slope = (law(parameter + step).density(u).log() - law(parameter - step).density(u).log()) / (2 * step)
    # Error of a central difference: step² times a third derivative, and the density's rounding over the step.
    torch.testing.assert_close(law(parameter).score_function(u), slope, rtol=1e-6, atol=1e-7)


def test_best_of_n_is_the_largest_of_n_uniform_draws():
    draws = torch.rand(200_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).amax(1)
    expected = float((BestOfNLaw(5).density(MIDPOINTS) * MIDPOINTS).mean())
    assert abs(float(draws.mean()) - expected) < 4 * float(draws.std()) / len(draws) ** 0.5


def test_best_of_poisson_is_the_largest_of_a_poisson_number_of_draws():
    """The definition; the density with e^{θ(1−u)} has its mass at the wrong end."""
    generator, theta, trials = torch.Generator().manual_seed(0), 3.0, 100_000
    sizes = 1 + torch.poisson(torch.full((trials,), theta), generator=generator)
    draws = torch.rand(trials, 20, generator=generator, dtype=torch.float64)
    largest = torch.where(torch.arange(20) < sizes[:, None], draws, 0.0).amax(1)
    density = BestOfPoissonLaw(theta).density(MIDPOINTS)
    for power in (1, 2, 6):
        drawn = largest**power
        expected = float((density * MIDPOINTS**power).mean())
        assert abs(float(drawn.mean()) - expected) < 4 * float(drawn.std()) / trials**0.5


@pytest.mark.parametrize(("family", "parameter"), CASES)
def test_a_pools_probabilities_have_the_slopes_that_are_told(family, parameter):
    make, step = FAMILIES[family][0], 1e-6
    probabilities, slopes = make(parameter).of_pool(SCORES)
    assert float(probabilities.sum()) == pytest.approx(1.0, rel=1e-12)
    assert float(slopes.sum()) == pytest.approx(0.0, abs=1e-12)
    later = make(parameter + step).of_pool(SCORES)[0]
    # Error of a one-sided difference: the step times half a second derivative.
    torch.testing.assert_close(slopes, (later - probabilities) / step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "parameter"), OF_QUANTILES)
def test_a_pool_has_the_laws_density_by_rank(family, parameter):
    law = FAMILIES[family][0](parameter)
    binned = law.density(MIDPOINTS).reshape(6, -1).mean(1) / 6
    # Equal scores at 0 and 4: the lower index is the higher rank.
    torch.testing.assert_close(law.of_pool(SCORES)[0][[1, 5, 4, 0, 3, 2]], binned, rtol=1e-6, atol=1e-9)


def test_the_soft_law_is_the_rule():
    torch.testing.assert_close(SoftBestOfNLaw(0.7).of_pool(SCORES)[0], soft_best_of_n(SCORES, 0.7))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_goes_from_uniform_to_the_best(family):
    make = FAMILIES[family][0]
    path = make.path([SCORES, SCORES[:3]], 5)
    assert len(path) == 5
    weakest, strongest = make(path[0]).of_pool(SCORES)[0], make(path[-1]).of_pool(SCORES)[0]
    assert float((weakest - 1 / 6).abs().max()) < 0.005
    assert float(strongest[2]) > 0.6
    gains = [float(make(parameter).of_pool(SCORES)[0] @ SCORES) for parameter in path]
    assert gains == sorted(gains)


def test_a_pools_law_is_the_limit_of_subsets():
    """With and without replacement differ by O(1/N)."""
    scores = torch.arange(4000)
    for by_law, by_subset in (
        (BestOfNLaw(6).of_pool(scores)[0], best_of_subset(scores, 6)),
        (BestOfPoissonLaw(5.0).of_pool(scores)[0], best_of_poisson(scores, 5.0)),
    ):
        assert float((by_law - by_subset).abs().sum()) < 30 / 4000


@pytest.mark.parametrize("law", [BestOfNLaw(2), BestOfPoissonLaw(2.0)])
@pytest.mark.parametrize("u", [-0.1, 1.1, float("nan")])
def test_quantiles_are_between_0_and_1(law, u):
    for function in (law.density, law.score_function):
        with pytest.raises(InputError, match="between 0 and 1"):
            function(torch.tensor([0.5, u]))


@pytest.mark.parametrize(
    ("law", "parameter"),
    [(BestOfNLaw, 0.5), (BestOfNLaw, float("nan")), (BestOfPoissonLaw, -1.0), (SoftBestOfNLaw, 0.0)],
)
def test_parameters_out_of_range_are_refused(law, parameter):
    with pytest.raises(InputError, match="must be a finite number"):
        law(parameter)
