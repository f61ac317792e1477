"""The ways to the variances of segments that are timed against each other."""

import pytest

from benchmarks.step_costs import LORA, QUICK, of_model


@pytest.mark.parametrize("kind", LORA)
def test_all_ways_give_the_same_and_are_timed(kind):
    """`of_model` compares them before it times them."""
    seconds = of_model(kind, QUICK)
    assert len(seconds) == 1 + 2 * 4
    assert all(one >= 0 for one in seconds.values())
