"""Tasks and pairs of the experiments on real samples."""

import statistics

import pytest
import torch

from benchmarks.data import data_folder
from benchmarks.judged import alpaca_eval
from benchmarks.overoptimisation import synthetic
from benchmarks.overoptimisation.parts import PARTS
from benchmarks.overoptimisation.tasks import task_of

pytestmark = pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")


@pytest.fixture(autouse=True)
def _gold_without_a_model(monkeypatch):
    monkeypatch.setattr(synthetic, "gold_of", lambda prompts, texts: [len(text) % 97 / 97 for text in texts])


@pytest.mark.parametrize("name", PARTS)
def test_tasks_are_not_those_of_the_pairs_and_their_gold_differs(name):
    pairs, tasks = PARTS[name].split(0, 0.25)
    assert not {pair["prompt"] for pair in pairs} & {task.prompt for task in tasks}
    assert len(pairs) >= 240
    assert len(tasks) >= 40
    for task in tasks:
        assert len(task.samples) == len(task.gold)
        assert set(task.samples) == set(range(len(task.texts)))
        assert name == "synthetic" or all(0 <= gold <= 1 for gold in task.gold)
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
    task = task_of(3, "p", [("b", 1.0), ("a", 0.0), ("b", 1.0)])
    assert (task.name, task.texts, task.samples, task.gold) == ("3", ["a", "b"], [1, 0, 1], [1.0, 0.0, 1.0])


def test_synthetic_gold_labels_the_pairs_and_is_standardised_over_the_tasks():
    pairs, tasks = synthetic.synthetic(20, 10, 16, seed=1, noise=0.0)
    assert len(pairs) == 40
    assert all(len(pair["chosen"]) % 97 >= len(pair["rejected"]) % 97 for pair in pairs)
    gold = [value for task in tasks for value in task.gold]
    assert abs(statistics.fmean(gold)) < 1e-6
    assert abs(statistics.stdev(gold) - 1) < 1e-6


def test_no_model_that_answers_in_the_pairs_answers_in_the_tasks():
    pairs, tasks = synthetic.synthetic(40, 10, 16, seed=0, noise=0.0)
    texts = {(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")}
    learnt_from = {
        models.copy().pop()
        for key, models in _models(alpaca_eval("train")).items()
        if key in texts and len(models) == 1
    }
    answering = _models(alpaca_eval(None, synthetic.POOL))
    assert not [task.name for task in tasks for text in task.texts if answering[task.prompt, text] <= learnt_from]


def _models(rows):
    found = {}
    for row in rows:
        for answer in row["responses"]:
            found.setdefault((row["prompt"], answer["text"]), set()).add(answer["model"])
    return found


def test_what_the_gold_model_has_said_is_not_asked_again(monkeypatch, tmp_path):
    asked = []

    class Model:
        def rewards(self, prompts, texts):
            asked.append(list(texts))
            return torch.tensor([float(len(text)) for text in texts])

    monkeypatch.undo()
    monkeypatch.setattr(synthetic, "gold_model", lambda folder: Model())
    assert synthetic.gold_of(["p", "p"], ["a", "bb"], tmp_path) == [1.0, 2.0]
    assert synthetic.gold_of(["p", "p", "q"], ["bb", "ccc", "a"], tmp_path) == [2.0, 3.0, 1.0]
    assert asked == [["a", "bb"], ["ccc", "a"]]
