"""Every rule by its name."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rule_cases import known_candidates

from bayesrm_fast.select.named_rules import RULES, rule_of


@pytest.mark.parametrize("rule", RULES)
def test_rule(benchmark: BenchmarkFixture, rule: str) -> None:
    """Scores of 100 candidates."""
    benchmark(rule_of(rule).scores, known_candidates(100))
