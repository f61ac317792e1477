"""Penalties, ties, and the fewest variances that a choice needs."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.selection import first_best, needed_variances, penalised, penalty_of

MEAN, VARIANCE = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 9.0])


@pytest.mark.parametrize(
    ("penalty", "k", "scores"),
    [("none", 5.0, [1, 2, 3]), ("std", 0.5, [1, 1.5, 1.5]), ("variance", 0.5, [1, 1.5, -1.5]), ("std", 0.0, [1, 2, 3])],
)
def test_penalties(penalty, k, scores):
    assert penalised(MEAN, VARIANCE, penalty, k).tolist() == scores


def test_of_equal_scores_the_lower_index_wins():
    assert first_best(torch.tensor([1.0, 1.5, 1.5])) == 1
    assert first_best(torch.tensor([float("nan"), 1.0, 1.0])) == 1


@pytest.mark.parametrize(("penalty", "k"), [("sdt", 1.0), ("std", -1.0), ("std", float("nan")), ("std", float("inf"))])
def test_unknown_penalties_are_refused(penalty, k):
    with pytest.raises(InputError, match=r"penalty|k must be"):
        penalised(MEAN, VARIANCE, penalty, k)


@pytest.mark.parametrize("penalty", ["none", "std", "variance"])
@pytest.mark.parametrize("wave_tokens", [1, 7, 1000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_lazy_winner_is_the_exhaustive_one_on_500_instances(penalty, wave_tokens, share):
    """Means and variances from few values, so that ties are many, and variances of zero, so that a tie can win.

    A share of each variance is known beforehand.
    """
    generator = torch.Generator().manual_seed(wave_tokens)
    rule = penalty_of(penalty, 1.0)

    def few(low, high, n):
        return torch.randint(low, high, (n,), generator=generator).float()

    sizes = torch.randint(1, 30, (500,), generator=generator).tolist()
    means, variances = [few(0, 6, n) for n in sizes], [few(0, 3, n) ** 2 for n in sizes]
    asked = []

    def compute(wave):
        asked.extend(wave)
        return torch.stack([variances[prompt][candidate] for prompt, candidate in wave])

    ceilings = [rule.ceiling(mean, share * variance) for mean, variance in zip(means, variances, strict=True)]
    found = needed_variances(means, ceilings, [[1] * n for n in sizes], rule, compute, wave_tokens)
    assert len(asked) == len(set(asked)) < sum(sizes)
    for mean, variance, needed in zip(means, variances, found, strict=True):
        expected = first_best(rule.score(mean, variance))
        known = ~needed.isnan()
        assert torch.equal(needed[known], variance[known])
        scores = torch.where(known, rule.score(mean, needed), torch.nan)
        assert first_best(scores) == expected


def test_no_more_variances_than_the_choice_needs():
    asked = []

    def compute(wave):
        asked.append(wave)
        return torch.tensor([0.01] * len(wave))

    means = [torch.tensor([0.0, 3.0, 2.95, 1.0]), torch.tensor([5.0, 1.0])]
    needed_variances(means, means, [[10] * 4, [10] * 2], penalty_of("std", 1.0), compute, wave_tokens=1)
    # 3.0 − 0.1 stays under 2.95, whose variance is needed too; 5.0 − 0.1 is above everything.
    assert asked == [[(0, 1), (1, 0)], [(0, 2)]]


def test_what_is_known_of_a_variance_spares_computing_it():
    asked = []

    def compute(wave):
        asked.extend(wave)
        return torch.tensor([0.25] * len(wave))

    rule, means = penalty_of("std", 1.0), [torch.tensor([3.0, 2.9, 2.8])]
    ceilings = [rule.ceiling(means[0], torch.tensor([0.2, 0.0, 0.16]))]
    needed_variances(means, ceilings, [[10] * 3], rule, compute, wave_tokens=1)
    # 2.9 may be sure and comes first, but scores 2.4; then 3.0, at most 2.55, which gets 2.5. The last has at most 2.4.
    assert asked == [(0, 1), (0, 0)]


def test_a_wave_is_filled_with_what_comes_next_as_long_as_it_finds_room():
    asked = []

    def compute(wave):
        asked.append(wave)
        return torch.ones(len(wave))

    means = [torch.tensor([3.0, 2.9, 2.8, 2.7, 2.6])]
    needed_variances(means, means, [[10, 10, 30, 10, 10]], penalty_of("std", 1.0), compute, wave_tokens=40)
    assert asked[0] == [(0, 0), (0, 1)]
