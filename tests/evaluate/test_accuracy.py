"""Accuracies as RewardBench's own package has them."""

import itertools
import math
import random

import pytest
from rewardbench_peer import needs_rewardbench, peer, utils

from bayesrm_fast.evaluate.accuracy import (
    EXAMPLE_COUNTS,
    SECTIONS,
    ScoredRow,
    best_of_n_result,
    overall_score,
    pair_result,
    section_of,
    section_scores,
    subset_scores,
    ties_score,
)


def scored(subset, scores, name=0, num_correct=1):
    return ScoredRow(name, subset, num_correct, scores, [[0.0] * len(scores)] * len(scores), False)


@pytest.fixture
def pairs():
    """All 23 subsets, of 3 to 20 rows, some of them with equal rewards."""
    lot = random.Random(0)
    return [
        scored(subset, [lot.randint(0, 5), lot.randint(0, 4)], i)
        for subset in EXAMPLE_COUNTS
        for i in range(lot.randint(3, 20))
    ]


def test_equal_rewards_are_wrong_in_a_pair_and_shared_among_several():
    assert [pair_result(scores) for scores in ([2, 1], [1, 1], [1, 2])] == [1, 0, 0]
    assert best_of_n_result([3, 1, 2, 0]) == 1
    assert best_of_n_result([3, 3, 3, 0]) == 1 / 3
    assert best_of_n_result([1, 3, 3, 0]) == 0


def test_a_section_is_weighted_over_the_subsets_that_are_there():
    found = section_scores(1, {"alpacaeval-easy": 1.0, "mt-bench-easy": 0.5, "math-prm": 0.25, "own": 1.0})
    assert found == {"Chat": (100 + 14) / 128, "Chat Hard": 0.0, "Safety": 0.0, "Reasoning": 0.25}
    assert overall_score(found) == pytest.approx((114 / 128 + 0.25) / 4)
    assert section_of(1, "own") is None


def test_every_subset_is_in_one_section():
    inside = list(itertools.chain(*SECTIONS.values()))
    assert len(inside) == len(set(inside)) == 23
    assert set(inside) == set(EXAMPLE_COUNTS)


def test_a_domain_is_known_with_and_without_capitals():
    subsets = {"ties": 0.5, "Precise IF": 1.0, "own": 1.0}
    found = section_scores(2, subsets)
    assert found == {"Factuality": 0, "Precise IF": 1.0, "Math": 0, "Safety": 0, "Focus": 0, "Ties": 0.5}
    assert overall_score(found) == 0.25


def test_ties_by_hand():
    rows = [
        scored("Ties", [5, 3], "ref:1"),  # right, by 2
        scored("Ties", [6, 5, 1], "tied:1", 2),  # right, by 4, with a spread of 1
        scored("Ties", [2, 3], "ref:2"),  # wrong
        scored("Ties", [6, 2, 1], "tied:2", 2),  # right, by 1, with a spread of 4
    ]
    margins = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 4 - 1)) / 2
    assert ties_score(rows) == pytest.approx(0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * margins, abs=1e-15)
    assert subset_scores(2, [*rows, scored("Math", [1, 1, 0, 0])]) == {"Math": 0.5, "Ties": ties_score(rows)}


@needs_rewardbench
def test_sections_are_those_of_the_package(pairs):
    own, counts = utils(), peer("constants")
    assert counts.EXAMPLE_COUNTS == EXAMPLE_COUNTS
    assert {name: list(subsets) for name, subsets in SECTIONS.items()} == counts.SUBSET_MAPPING
    by_subset = subset_scores(1, pairs)
    theirs = {}
    for subset in EXAMPLE_COUNTS:
        results = [int(row.scores[0] > row.scores[1]) for row in pairs if row.subset == subset]
        theirs[subset] = sum(results) / len(results)
    assert by_subset == pytest.approx(theirs, abs=1e-12)
    for absent in ((), ("math-prm",), SECTIONS["Safety"]):
        kept = {name: accuracy for name, accuracy in by_subset.items() if name not in absent}
        expected = own.calculate_scores_per_section(counts.EXAMPLE_COUNTS, counts.SUBSET_MAPPING, kept)
        assert section_scores(1, kept) == pytest.approx(expected, abs=1e-12)


@needs_rewardbench
def test_best_of_four_is_that_of_the_package():
    from datasets import Dataset

    lot = random.Random(1)
    rows = [scored("Math", [float(lot.randint(0, 3)) for _ in range(4)], i) for i in range(40)]
    flat = Dataset.from_list([{"text": "", "scores": score, "id": row.id} for row in rows for score in row.scores])
    theirs = utils().reroll_and_score_dataset(flat, [4] * len(rows))["results"]
    assert [best_of_n_result(row.scores) for row in rows] == pytest.approx(theirs, abs=1e-12)
    assert subset_scores(2, rows)["Math"] == pytest.approx(sum(theirs) / len(theirs), abs=1e-12)


@needs_rewardbench
@pytest.mark.parametrize("seed", range(8))
def test_ties_are_those_of_the_package(seed):
    """Equal rewards, a spread of 0, a single correct answer, and prompts in one form alone among them."""
    lot = random.Random(seed)

    def row(kind, number, correct, wrong):
        scores = [lot.randint(0, 4) + 2.0 * (i < correct) for i in range(correct + wrong)]
        return scored("Ties", scores, f"{kind}:{number}", correct)

    rows = [row("ref", number, 1, lot.randint(1, 4)) for number in range(9) if number != 3]
    rows += [row("tied", number, lot.randint(1, 5), lot.randint(1, 4)) for number in range(9) if number != 5]
    lot.shuffle(rows)
    theirs = [{"id": one.id, "scores": one.scores, "num_correct": one.num_correct} for one in rows]
    assert ties_score(rows) == pytest.approx(utils().process_single_model(theirs)[1], abs=1e-12)
