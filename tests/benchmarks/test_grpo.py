"""What the benchmark of training goes by."""

import pytest

from benchmarks.grpo.__main__ import summary
from benchmarks.grpo.experiment import Look, worth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("expression " * 5, 0.1),  # said five times, counted once, over at least ten words
        ("expression, Expression. statement", 0.2),
        ("of " * 20 + "generator", 1 / 21),
    ],
)
def test_gold_counts_different_long_words(text, expected):
    assert worth(text) == pytest.approx(expected)


def test_a_summary_is_the_mean_over_seeds():
    def course(golds):
        return [Look(step, gold, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0) for step, gold in enumerate(golds)]

    found = summary([course([0.1, 0.4, 0.2]), course([0.1, 0.2, 0.4])])
    assert found["gold"] == pytest.approx([0.1, 0.3, 0.3])
    assert found["gold_at_the_end"]["mean"] == pytest.approx(0.3)
    assert found["gold_at_the_end"]["standard_error"] == pytest.approx(0.1)
    assert found["gold_at_its_best"]["mean"] == pytest.approx(0.4)
