"""What best-of-n is worth, against all subsets and by simulation."""

import itertools
import math

import pytest
import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.estimators import (
    best_n,
    best_of_n_kl,
    best_of_n_win_rate,
    bonbon_beta,
    discrete_best_of_n_kl,
    expected_best_of_n,
    expected_gold,
    mean_and_standard_error,
    sizes_up_to,
)
from bayesrm_fast.select.pools import soft_best_of_n, top_share


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_the_expectation_is_that_over_all_subsets_ties_and_all(n):
    scores, gold = torch.tensor([0.1, 0.5, 0.5, -2.0, 0.1, 0.4]), torch.tensor([1.0, 0.0, 3.0, 5.0, 2.0, 7.0])
    subsets = list(itertools.combinations(range(6), n))
    best = [min(subset, key=lambda i: (-float(scores[i]), i)) for subset in subsets]
    expected = sum(float(gold[i]) for i in best) / len(subsets)
    assert expected_best_of_n(scores, gold, n) == pytest.approx(expected, rel=1e-12)


def test_sizes_are_powers_of_two_and_the_whole():
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(8) == [1, 2, 4, 8]
    assert sizes_up_to(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_the_kl_of_one_draw_is_nothing():
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_kl_is_that_of_the_winners_rank():
    """With distinct scores the winner of n draws from a large pool has the rank distribution n·uⁿ⁻¹."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (2, 8, 56):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float((density * density.log()).mean()), rel=1e-4)


def test_a_standard_error_needs_two():
    assert mean_and_standard_error([3.0]) == (3.0, math.inf)
    mean, error = mean_and_standard_error([1.0, 2.0, 3.0, 6.0])
    assert (mean, error) == pytest.approx((3.0, (14 / 3) ** 0.5 / 2))


@pytest.mark.parametrize(("n", "beta"), [(2, 1 / 2), (4, 1 / 11), (8, 10 / 363)])
def test_bonbon_beta_is_the_papers(n, beta):
    assert bonbon_beta(n) == pytest.approx(beta, rel=1e-15)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_bonbon_beta_is_the_log_ratio_between_best_and_worst(n):
    """1 / (2β) is the mean of log p(U_best) − log p(U_worst) under best-of-n's density p(u) = n uⁿ⁻¹."""
    draws = torch.rand(200_000, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).log()
    ratios = (n - 1) * (draws.amax(1) - draws.amin(1))
    assert abs(float(ratios.mean()) - 1 / (2 * bonbon_beta(n))) < 4 * float(ratios.std()) / len(ratios) ** 0.5


@pytest.mark.parametrize("n", [1, 0, -2, 2.5, True, float("nan")])
def test_bonbon_needs_two_candidates(n):
    with pytest.raises(InputError, match="whole number of at least 2"):
        bonbon_beta(n)


SCORES = torch.tensor([0.1, 0.5, 0.6, -2.0, 0.2, 0.4], dtype=torch.float64)
GOLD = torch.tensor([1.0, 0.0, 3.0, 5.0, 2.0, 7.0], dtype=torch.float64)


@pytest.mark.parametrize("rule", [lambda own: soft_best_of_n(own, 0.3), lambda own: top_share(own, 2.0)])
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_a_stochastic_rules_gold_is_exact_over_few_subsets(rule, n):
    subsets = list(itertools.combinations(range(6), n))
    expected = sum(float(rule(SCORES[list(subset)]) @ GOLD[list(subset)]) for subset in subsets) / len(subsets)
    found = expected_gold(lambda positions: rule(SCORES[positions]), GOLD, n)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.standard_error == 0.0


def test_a_stochastic_rules_gold_is_estimated_from_many_subsets_by_their_seed():
    generator = torch.Generator().manual_seed(0)
    scores, gold = torch.randn(2, 40, generator=generator, dtype=torch.float64)

    def best(positions):
        """A rule of which the exact answer is known."""
        return (scores[positions] == scores[positions].max()).double()

    found = [expected_gold(best, gold, 8, subsets=400, seed=seed) for seed in range(20)]
    assert found[0] == expected_gold(best, gold, 8, subsets=400, seed=0)
    errors = torch.tensor([(one.value - expected_best_of_n(scores, gold, 8)) / one.standard_error for one in found])
    assert abs(float(errors.mean())) < 4 / math.sqrt(20)
    # Variance of 20 standard normals: 1 with an error of √(2/20).
    assert float((errors**2).mean()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 20))


def test_the_best_n_is_where_the_estimates_mean_is_largest():
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for _ in range(30):
        scores = torch.rand(64, generator=generator, dtype=torch.float64)
        prompts.append((scores, scores**4 * (1 - scores)))
    best = best_n(prompts)
    assert [n for n, _, _ in best.curve] == sizes_up_to(64)
    # n / ((n + 4) (n + 5)) of uniform scores is largest at √20
    assert best.n == 4
    assert best.gold == pytest.approx(sum(expected_best_of_n(s, g, 4) for s, g in prompts) / 30)
    assert abs(best.gold - 4 / (8 * 9)) < 4 * best.standard_error
    assert best_n(prompts[:1]).standard_error == math.inf
    assert best_n([(torch.zeros(4), torch.ones(4))]).n == 1
    assert best_n(prompts, [64, 8, 8]).n == 8


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_win_rate_is_that_of_uniform_draws(n):
    draws = torch.rand(100_000, n + 1, generator=torch.Generator().manual_seed(0))
    wins = (draws[:, :n].amax(1) > draws[:, n]).double()
    assert abs(float(wins.mean()) - best_of_n_win_rate(n)) < 4 * 0.5 / math.sqrt(100_000)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_kl_of_a_discrete_base_is_that_of_all_draws(n):
    base, scores = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64), torch.tensor([2.0, 0.5, 0.5, -1.0])
    chosen = torch.zeros(4, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=n):
        top = float(scores[list(draw)].max())
        best = [i for i in draw if float(scores[i]) == top]
        for i in best:
            chosen[i] += float(base[list(draw)].prod()) / len(best)
    expected = float((chosen * (chosen / base).log()).sum())
    assert discrete_best_of_n_kl(base, scores, n) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert expected <= best_of_n_kl(n)


def test_the_kl_of_many_responses_is_the_bound():
    base = torch.full((100_000,), 1e-5, dtype=torch.float64)
    for n in (2, 16):
        assert discrete_best_of_n_kl(base, torch.arange(100_000), n) == pytest.approx(best_of_n_kl(n), abs=n * 1e-5)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: best_of_n_kl(0.5), "n must be a finite number of at least 1"),
        (lambda: best_of_n_win_rate(math.nan), "n must be a finite number of at least 1"),
        (lambda: expected_best_of_n(SCORES, GOLD, 7), "n must be a whole number from 1 to 6"),
        (lambda: expected_best_of_n(SCORES, GOLD[:5], 2), "gold must have a value for each of 6 candidates, not 5"),
        (lambda: expected_best_of_n(SCORES, GOLD / 0, 2), "gold must be finite numbers"),
        (lambda: expected_gold(lambda own: own[:1], GOLD, 2), r"probabilities must be \[2\]"),
        (lambda: expected_gold(lambda own: own, GOLD, 7), "n must be a whole number from 1 to 6"),
        (lambda: expected_gold(lambda own: own, GOLD, 2, subsets=1), "subsets must be a whole number of at least 2"),
        (lambda: best_n([]), "at least one prompt"),
        (lambda: best_n([(SCORES, GOLD)], []), "at least one size"),
        (lambda: discrete_best_of_n_kl(torch.tensor([0.5, 0.6]), SCORES[:2], 2), "probabilities above 0 that sum to 1"),
        (lambda: discrete_best_of_n_kl(torch.tensor([1.0, 0.0]), SCORES[:2], 2), "probabilities above 0 that sum to 1"),
        (lambda: discrete_best_of_n_kl(torch.tensor([1.0]), SCORES, 2), "each of 1 responses, not 6"),
    ],
)
def test_what_cannot_be_estimated_is_refused(act, message):
    with pytest.raises(InputError, match=message):
        act()
