"""When drawing stops: thresholds in closed form, and what a simulated stream is worth."""

import math

import pytest
import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.stopping import Stopping, stopping_threshold


@pytest.mark.parametrize("cost", [0.3, 0.01, 1e-4])
def test_the_threshold_is_where_a_draw_is_worth_its_cost(cost):
    threshold = stopping_threshold(2.0, 3.0, cost)
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi) * float(z[1] - z[0])
    assert float((density * (2 + 3 * z - threshold).clamp(min=0)).sum()) == pytest.approx(cost, rel=1e-7)


def test_the_threshold_of_a_certain_reward_is_that_less_the_cost():
    assert stopping_threshold(2.0, 0.0, 0.25) == 1.75


def streams(trials, length, seed):
    return torch.randn(trials, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worth(streams, cost, **options):
    """Mean net value of stopping."""
    total = 0.0
    for stream in streams.tolist():
        stopping = Stopping(cost, **options)
        for value in stream:
            stopping.observe(value)
            if stopping.should_stop:
                break
        total += stream[stopping.best] - cost * stopping.drawn
    return total / len(streams)


def optimum(streams, cost):
    """Of the known distribution: E of stopping at the reservation value τ is τ itself."""
    return stopping_threshold(0.0, 1.0, cost)


def best_fixed(streams, cost):
    drawn = torch.arange(1, streams.shape[1] + 1)
    return float((streams.cummax(1).values.mean(0) - cost * drawn).max())


def test_the_known_optimum_is_worth_the_reservation_value():
    cost, drawn = 0.03, streams(4000, 400, 0)
    threshold = stopping_threshold(0.0, 1.0, cost)
    stop = (drawn >= threshold).double().argmax(1)
    net = drawn.gather(1, stop[:, None]).flatten() - cost * (stop + 1)
    assert abs(float(net.mean()) - threshold) < 4 * float(net.std()) / math.sqrt(len(net))
    assert threshold > best_fixed(drawn, cost) + 0.1


@pytest.mark.parametrize(("cost", "share"), [(0.1, 0.8), (0.03, 0.9), (0.01, 0.94)])
def test_with_a_typical_std_it_is_near_the_optimum_and_beats_every_fixed_number(cost, share):
    """What is lacking is the price of learning the mean."""
    drawn = streams(600, 400, 1)
    net = worth(drawn, cost, typical_std=1.0)
    assert net > best_fixed(drawn, cost)
    assert net > share * optimum(drawn, cost)


def test_without_one_it_learns_the_spread_and_still_beats_every_fixed_number():
    drawn = streams(600, 400, 2)
    assert worth(drawn, 0.01) > best_fixed(drawn, 0.01)


def test_a_population_that_ends_is_not_drawn_from_for_ever():
    """Of uniform rewards, the Gaussian of the same spread goes on beyond the largest."""
    generator, longest = torch.Generator().manual_seed(0), 0
    for stream in torch.rand(20, 300, generator=generator, dtype=torch.float64).tolist():
        stopping = Stopping(0.003)  # about a hundredth of the std
        for value in stream:
            stopping.observe(value)
            if stopping.should_stop:
                break
        assert stopping.should_stop
        longest = max(longest, stopping.drawn)
    assert longest < 200


def test_gauge_and_unit_do_not_matter():
    values = streams(1, 12, 3)[0].tolist()
    plain, moved = Stopping(0.02, typical_std=1.5, k=1.0), Stopping(0.08, typical_std=6.0, k=1.0)
    for value in values:
        plain.observe(value, 0.25)
        moved.observe(4 * value + 1000, 4.0)
        assert moved.best == plain.best
        assert moved.expected_gain == pytest.approx(4 * plain.expected_gain, rel=1e-9)
        assert moved.threshold == pytest.approx(4 * (plain.threshold) + 1000, rel=1e-12)


def test_the_threshold_is_what_the_best_is_compared_to():
    stopping = Stopping(0.1, typical_std=1.0)
    values = [0.3, -0.5, 0.9, 0.1, 1.6]
    for value in values:
        stopping.observe(value)
        # None of these is so often the best that the bound on a better one counts.
        assert stopping.should_stop == (values[stopping.best] >= stopping.threshold)
    assert stopping.should_stop


def test_uncertain_candidates_are_penalised():
    stopping = Stopping(0.1, k=2.0)
    stopping.observe(1.0, 1.0)
    stopping.observe(0.5, 0.0)
    assert stopping.best == 1


def test_too_few_draws_are_no_reason_to_stop_and_equals_are():
    stopping = Stopping(0.1)
    for _ in range(3):
        stopping.observe(1.0)
        assert not stopping.should_stop
        assert stopping.threshold == math.inf
    stopping.observe(1.0)
    assert stopping.should_stop
    assert (stopping.best, stopping.drawn, stopping.threshold) == (0, 4, 0.9)


@pytest.mark.parametrize("cost", [0, -1.0, math.nan, math.inf, "a"])
def test_a_cost_is_above_zero(cost):
    for make in (Stopping, lambda cost: stopping_threshold(0.0, 1.0, cost)):
        with pytest.raises(InputError, match="cost must be a finite number above 0"):
            make(cost)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Stopping(1.0, typical_std=0.0), "typical_std must be a finite number above 0"),
        (lambda: Stopping(1.0, k=-1.0), "k must be a finite number of at least 0"),
        (lambda: Stopping(1.0).observe(math.nan), "the reward of candidate 0 must be a finite number"),
        (lambda: Stopping(1.0).observe(0.0, -1.0), "the variance of candidate 0 must be a finite number of at least 0"),
        (lambda: Stopping(1.0).best, "no candidate was taken"),
        (lambda: stopping_threshold(math.nan, 1.0, 1.0), "mean must be a finite number"),
        (lambda: stopping_threshold(0.0, -1.0, 1.0), "std must be a finite number of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(act, message):
    with pytest.raises(InputError, match=message):
        act()
