"""Tasks and pairs of the experiments on real samples."""

import pytest

from benchmarks.data import data_folder
from benchmarks.overoptimisation.parts import PARTS
from benchmarks.overoptimisation.tasks import _task

pytestmark = pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")


@pytest.mark.parametrize("name", PARTS)
def test_tasks_are_not_those_of_the_pairs_and_their_gold_differs(name):
    pairs, tasks = PARTS[name].split(0, 0.25)
    assert not {pair["prompt"] for pair in pairs} & {task.prompt for task in tasks}
    assert len(pairs) >= 240
    assert len(tasks) >= 40
    for task in tasks:
        assert len(task.samples) == len(task.gold)
        assert set(task.samples) == set(range(len(task.texts)))
        assert all(0 <= gold <= 1 for gold in task.gold)
    assert sum(len(set(task.gold)) > 1 for task in tasks) > 0.9 * len(tasks)


@pytest.mark.parametrize("name", PARTS)
def test_the_share_of_the_labels_that_is_flipped_is_what_was_asked_for(name):
    clean, noisy = (PARTS[name].split(0, noise)[0] for noise in (0.0, 0.25))
    flipped = sum(
        (one["chosen"], one["rejected"]) == (other["rejected"], other["chosen"])
        for one, other in zip(clean, noisy, strict=True)
    )
    kept = sum(one == other for one, other in zip(clean, noisy, strict=True))
    assert flipped + kept >= len(clean)  # equal texts count on either side
    share = flipped / len(clean)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(clean)) ** 0.5


def test_equal_samples_are_one_text():
    task = _task(3, "p", [("b", 1.0), ("a", 0.0), ("b", 1.0)])
    assert (task.name, task.texts, task.samples, task.gold) == ("3", ["a", "b"], [1, 0, 1], [1.0, 0.0, 1.0])
