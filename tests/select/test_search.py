"""The fewest variances that a choice needs."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.select.rules import KnownCandidates, Need, PenalisedReward, Rule, first_best
from bayesrm_fast.select.search import LazySearch


def waves_of(search, variances):
    """Every wave that a search asks for, answered from all variances."""
    waves = []
    while wave := search.next_wave():
        waves.append(wave)
        search.learn(wave, torch.stack([variances[prompt][candidate] for prompt, candidate in wave]))
    return waves


@pytest.mark.parametrize("penalty", ["std", "variance"])
@pytest.mark.parametrize("wave_tokens", [1, 7, 1000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_lazy_winner_is_the_exhaustive_one_on_500_instances(penalty, wave_tokens, share):
    """Means and variances from few values, so that ties are many, and variances of zero, so that a tie can win.

    A share of each variance is known beforehand.
    """
    generator = torch.Generator().manual_seed(wave_tokens)
    rule = PenalisedReward(penalty, 1.0)

    def few(low, high, n):
        return torch.randint(low, high, (n,), generator=generator).float()

    sizes = torch.randint(1, 30, (500,), generator=generator).tolist()
    means, variances = [few(0, 6, n) for n in sizes], [few(0, 3, n) ** 2 for n in sizes]
    floors = [share * variance for variance in variances]
    search = LazySearch(rule, means, floors, [[1] * n for n in sizes], wave_tokens)
    asked = [one for wave in waves_of(search, variances) for one in wave]
    assert len(asked) == len(set(asked)) < sum(sizes)
    for mean, variance, needed in zip(means, variances, search.variances, strict=True):
        expected = first_best(rule.scores(KnownCandidates(mean, variance)))
        known = ~needed.isnan()
        assert torch.equal(needed[known], variance[known])
        assert first_best(rule.scores(KnownCandidates(mean, needed))) == expected


def test_no_more_variances_than_the_choice_needs():
    means = [torch.tensor([0.0, 3.0, 2.95, 1.0]), torch.tensor([5.0, 1.0])]
    floors = [torch.zeros_like(mean) for mean in means]
    search = LazySearch(PenalisedReward("std", 1.0), means, floors, [[10] * 4, [10] * 2], wave_tokens=1)
    # 3.0 − 0.1 stays under 2.95, whose variance is needed too; 5.0 − 0.1 is above everything.
    assert waves_of(search, [torch.full_like(mean, 0.01) for mean in means]) == [[(0, 1), (1, 0)], [(0, 2)]]


def test_what_is_known_of_a_variance_spares_computing_it():
    means, floors = [torch.tensor([3.0, 2.9, 2.8])], [torch.tensor([0.2, 0.0, 0.16])]
    search = LazySearch(PenalisedReward("std", 1.0), means, floors, [[10] * 3], wave_tokens=1)
    # 2.9 may be sure and comes first, but scores 2.4; then 3.0, at most 2.55, which gets 2.5. The last has at most 2.4.
    assert waves_of(search, [torch.full((3,), 0.25)]) == [[(0, 1)], [(0, 0)]]


def test_a_wave_is_filled_with_what_comes_next_as_long_as_it_finds_room():
    means = [torch.tensor([3.0, 2.9, 2.8, 2.7, 2.6])]
    tokens = [[10, 10, 30, 10, 10]]
    search = LazySearch(PenalisedReward("std", 1.0), means, [torch.zeros(5)], tokens, wave_tokens=40)
    assert search.next_wave() == [(0, 0), (0, 1)]


def test_of_equals_the_one_with_the_lower_index_is_asked_for_also_at_the_best_score():
    """Its ceiling equals the best score: it can still win. One with a higher index cannot."""
    rule = PenalisedReward("std", 1.0)
    means, floors = [torch.tensor([2.0, 3.0, 2.0])], [torch.zeros(3)]
    search = LazySearch(rule, means, floors, [[10] * 3], wave_tokens=1)
    assert waves_of(search, [torch.tensor([0.0, 1.0, 0.0])]) == [[(0, 1)], [(0, 0)]]


def test_what_was_not_asked_for_stays_unknown():
    search = LazySearch(PenalisedReward(), [torch.tensor([5.0, 1.0])], [torch.zeros(2)], [[10] * 2], wave_tokens=1)
    waves_of(search, [torch.tensor([0.25, 0.25])])
    (variance,) = search.variances
    assert variance[0] == 0.25
    assert variance[1].isnan()
    assert search.next_wave() == []


class Ceilings(Rule):
    """`mean − std`, with ceilings of somebody's own."""

    needs = frozenset({Need.VARIANCE})

    def __init__(self, ceilings):
        self.own = ceilings

    def scores(self, known):
        return known.mean - known.variance.sqrt()

    def ceilings(self, mean, floor):
        return self.own


def test_a_ceiling_that_is_nan_bounds_nothing():
    mean, ceilings = torch.tensor([9.0, 5.0, 1.0]), torch.tensor([torch.nan, 5.0, 1.0])
    search = LazySearch(Ceilings(ceilings), [mean], [torch.zeros(3)], [[10] * 3], wave_tokens=1)
    assert waves_of(search, [torch.tensor([100.0, 1.0, 1.0])]) == [[(0, 0)], [(0, 1)]]


@pytest.mark.parametrize("ceilings", [torch.zeros(1), torch.zeros(()), torch.zeros(6), [1.0, 2.0, 3.0], None])
def test_ceilings_that_are_not_one_for_each_candidate_are_refused(ceilings):
    with pytest.raises(InputError, match="Ceilings gave no ceiling for each of 3 candidates"):
        LazySearch(Ceilings(ceilings), [torch.zeros(3)], [torch.zeros(3)], [[10] * 3], wave_tokens=1)
