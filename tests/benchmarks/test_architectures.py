"""A sample of the sweep over transformers' sequence classifiers, and its table."""

import pytest

from benchmarks.architectures import ARCHITECTURES, Outcome, table, tried

SERVED = ["camembert", "deepseek_v3", "ctrl", "fnet", "gpt_neo", "longformer", "mt5", "phi3", "plbart"]


@pytest.mark.parametrize("name", SERVED)
def test_rewards_are_those_of_rows_alone_and_variances_those_of_autograd(name):
    outcome = tried(name)
    assert outcome.served, outcome.told
    assert outcome.is_right, outcome


def test_layers_that_are_called_twice_are_refused_by_name():
    outcome = tried("albert")
    assert not outcome.served
    assert not outcome.crashed
    assert "does not call exactly once: albert.encoder" in outcome.told


def test_the_table_has_errors_and_refusals():
    outcomes = [Outcome("one", True, "padded", 1e-9, 2e-3), Outcome("two", False, "a | reason")]
    written = table(outcomes)
    assert "Of 2, 1 are served, 1 of them with an error above 1e-05" in written
    assert "| one | 1e-09 | 2e-03 | padded |" in written
    assert "| two | a / reason |" in written
    assert not outcomes[0].is_right
    assert {"llama", "bert", "t5"} <= set(ARCHITECTURES)
