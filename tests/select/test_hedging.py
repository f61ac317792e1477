"""HedgeTune: roots against closed forms and quadrature, and where there are none."""

import math

import pytest
import torch
from whole_rows import whole_rows

from bayesrm_fast.errors import InputError
from bayesrm_fast.score.joint import JointRewards
from bayesrm_fast.select.hedging import HedgingPool, hedge
from bayesrm_fast.select.laws import BestOfNLaw, BestOfPoissonLaw, SoftBestOfNLaw

FAMILIES = [BestOfNLaw, BestOfPoissonLaw, SoftBestOfNLaw]
COUNT = 2000
U = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
HACKED = U**12 * (1 - U)
"""The paper's example: the best proxies are worth nothing."""


def test_the_root_of_best_of_n_is_that_of_the_papers_example():
    """E_n[U¹² (1 − U)] = n / ((n + 12) (n + 13)) is largest at √(12 · 13)."""
    found = hedge(BestOfNLaw, [HedgingPool(U, HACKED)])
    assert found.is_interior
    # Midpoints stand for the bins' means: an error of 1/COUNT² times a second derivative of about 12².
    assert found.parameter == pytest.approx(math.sqrt(156), rel=1e-4)
    assert max(value for _, value in found.curve) == pytest.approx(1 / (math.sqrt(12) + math.sqrt(13)) ** 2, rel=1e-3)


def test_the_root_of_best_of_poisson_is_that_of_its_score_function():
    found = hedge(BestOfPoissonLaw, [HedgingPool(U, HACKED)])

    def residual(theta):
        law = BestOfPoissonLaw(theta)
        return float((HACKED * law.score_function(U) * law.density(U)).mean())

    assert found.is_interior
    assert residual(0.999 * found.parameter) > 0 > residual(1.001 * found.parameter)


def test_the_root_of_soft_best_of_n_is_where_proxy_and_gold_are_uncorrelated():
    found = hedge(SoftBestOfNLaw, [HedgingPool(U, HACKED)])
    weights = (U / found.parameter).softmax(0)
    covariance = weights @ (U * HACKED) - (weights @ U) * (weights @ HACKED)
    assert found.is_interior
    assert float(covariance) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameter_is_best_by_simulated_choice_over_prompts(family):
    """Prompts of their own scores and pool sizes: no parameter of a fine grid has more gold."""
    generator = torch.Generator().manual_seed(0)
    pools = []
    for count in (30, 60, 90, 40):
        scores = torch.randn(count, generator=generator, dtype=torch.float64)
        pools.append(HedgingPool(scores, scores - 0.4 * scores.clamp(min=0) ** 2))
    found = hedge(family, pools)

    def gold(parameter):
        return sum(float(family(parameter).of_pool(pool.scores)[0] @ pool.gold) for pool in pools) / len(pools)

    assert found.is_interior
    assert gold(found.parameter) >= max(value for _, value in found.curve)
    assert gold(found.parameter) > max(gold(0.98 * found.parameter), gold(1.02 * found.parameter))


@pytest.mark.parametrize("family", FAMILIES)
def test_gold_that_rises_or_falls_throughout_has_its_maximum_at_an_end(family):
    rising, falling = hedge(family, [HedgingPool(U, U)]), hedge(family, [HedgingPool(U, -U)])
    assert not rising.is_interior
    assert not falling.is_interior
    assert rising.parameter == rising.curve[-1][0]
    assert falling.parameter == falling.curve[0][0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gold", [0.0, 0.1, 1e6])
def test_flat_gold_is_not_optimised(family, gold):
    found = hedge(family, [HedgingPool(U, torch.full_like(U, gold))])
    assert (found.parameter, found.is_interior) == (found.curve[0][0], False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_one_prompt_of_few_candidates_gives_a_parameter_on_the_path(family, seed):
    scores, gold = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = hedge(family, [HedgingPool(scores, gold), HedgingPool(torch.zeros(1), torch.zeros(1))])
    ends = sorted((found.curve[0][0], found.curve[-1][0]))
    assert ends[0] <= found.parameter <= ends[1]


def a_posterior():
    """The better the mean, the more uncertain."""
    mean = torch.linspace(-1, 1, 41, dtype=torch.float64)
    covariance = torch.diag((2 * (mean + 1)) ** 2)
    centre = torch.eye(41, dtype=torch.float64) - 1 / 41
    return mean, centre @ covariance @ centre


@pytest.mark.parametrize("family", FAMILIES)
def test_a_posterior_needs_no_gold_and_hedges_where_risk_matters(family):
    mean, covariance = a_posterior()
    joint = JointRewards(mean, covariance, *whole_rows(41))
    pool = HedgingPool(mean, joint.samples(4000))
    averse = hedge(family, [pool], aversion=0.5)
    assert averse.is_interior

    def value_and_std(parameter):
        chances = family(parameter).of_pool(mean)[0]
        std = float((chances @ covariance @ chances).clamp(min=0).sqrt())  # 0 but for rounding under the base
        return float(chances @ mean) - 0.5 * std, std

    value, std = value_and_std(averse.parameter)
    # Of S draws the mean has an error of std / √S, and half the std one of less than half of that.
    assert value > max(value_and_std(parameter)[0] for parameter, _ in averse.curve) - 4 * 1.5 * std / math.sqrt(4000)
    assert value > value_and_std(averse.curve[-1][0])[0] + 0.1


def test_without_aversion_the_posteriors_mean_is_all_that_counts():
    mean, covariance = a_posterior()
    pool = HedgingPool(mean, torch.stack([mean + covariance[0], mean - covariance[0]]))
    found = hedge(BestOfNLaw, [pool])
    assert (found.parameter, found.is_interior) == (41, False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hedge(BestOfNLaw, []), "nothing to hedge by"),
        (lambda: hedge(SoftBestOfNLaw, [HedgingPool(torch.zeros(3), torch.ones(3))]), "nothing to hedge by"),
        (lambda: hedge(BestOfNLaw, [HedgingPool(U, U)], -1.0), "aversion must be a finite number of at least 0"),
        (lambda: HedgingPool(torch.zeros(3), torch.zeros(2)), r"gold must be \[n\] or \[S, n\] for n = 3"),
        (lambda: HedgingPool(torch.zeros(2), torch.tensor([0.0, math.nan])), "gold must be finite.* position 1 is nan"),
        (lambda: HedgingPool(torch.tensor([math.nan, 0.0]), torch.zeros(2)), "scores must be finite"),
    ],
)
def test_what_cannot_be_hedged_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
