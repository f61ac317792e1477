"""The rules as the benchmark writes them for all seeds at once, and the gold of their choices."""

import numpy as np
import pytest
import torch

from bayesrm_fast.select.rules import KnownCandidates, rule_of
from benchmarks.gold import CHOSEN, POSTERIORS, PRECISIONS, Scored, differences, ensemble_rules, gold_table, rules

SEEDS, OWN, DISTRACTORS = 2, 56, 4
N = OWN + DISTRACTORS


def scored(seed):
    generator = np.random.default_rng(seed)
    variance = generator.uniform(0.1, 1, (SEEDS, len(POSTERIORS), 1 + len(PRECISIONS), N))
    return Scored(generator.normal(size=(SEEDS, N)), variance)


SETS = [
    {
        "prompt": "p",
        "texts": ["t"] * N,
        "gold": np.concatenate([np.random.default_rng(seed).uniform(size=OWN), np.zeros(DISTRACTORS)]),
        "own": OWN,
    }
    for seed in range(3)
]
SCORED = [scored(seed) for seed in range(3)]


@pytest.mark.parametrize(("name", "rule", "k"), [("std k=2", "std", 2.0), ("variance k=0.5", "variance", 0.5)])
def test_penalties_are_the_packages(name, rule, k):
    one = SCORED[0]
    known = KnownCandidates(
        torch.from_numpy(one.mean[1]), torch.from_numpy(one.variance[1, POSTERIORS.index("ggn"), 0])
    )
    found = rules(1)[f"ggn, {name}, λ={CHOSEN}"](one.mean, one.variance)
    np.testing.assert_allclose(found, rule_of(rule, k).scores(known).numpy())


@pytest.mark.parametrize(
    ("name", "rule"), [("ensemble, worst", "worst"), ("ensemble, uncertainty k=0.5", "uncertainty")]
)
def test_ensembles_are_the_packages(name, rule):
    one = SCORED[0]
    members = torch.from_numpy(one.mean)
    found = ensemble_rules()[name](one.mean, one.variance)
    np.testing.assert_allclose(found, rule_of(rule, 0.5).scores(KnownCandidates(members.mean(0), members=members)))


def test_no_choice_is_better_than_the_oracles_and_all_are_alike_among_one():
    for distractors in (False, True):
        table = gold_table(SETS, SCORED, distractors)
        oracle = [row["gold"] for row in table["gold oracle"]]
        for rows in table.values():
            assert rows[0]["gold"] == pytest.approx(oracle[0], abs=2e-5)  # of rounded figures
            assert all(row["gold"] <= best + 2e-5 for row, best in zip(rows, oracle, strict=True))


def test_map_gains_nothing_over_itself():
    found = differences(SETS, SCORED, ["MAP", "ensemble, mean"], distractors=True)
    assert found["MAP"] == {"gain": 0.0, "standard_error": 0.0}
    assert found["ensemble, mean"]["standard_error"] > 0
