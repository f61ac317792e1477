"""HumanEval: 100 samples of one policy for each task, gold is whether the task's own tests pass."""

import gzip
import json
import random
from dataclasses import dataclass
from typing import Any

from benchmarks.data import data_folder

FILE = "humaneval_codegen16b_100.jsonl.gz"
TRAINING_TASKS = 45
PAIRS_A_TASK = 10


@dataclass(frozen=True)
class Task:
    """A prompt with its samples.

    Attributes:
        name: of the task.
        prompt: the task.
        texts: distinct samples `[U]`.
        samples: of each of N samples its place in `texts`.
        gold: whether each sample is right `[N]`.
    """

    name: str
    prompt: str
    texts: list[str]
    samples: list[int]
    gold: list[float]


def mixed_tasks() -> list[dict[str, Any]]:
    """The tasks of which 3 to 97 samples are right: of others a choice says nothing."""
    folder = data_folder()
    if folder is None or not (folder / FILE).is_file():
        raise SystemExit(f"{FILE} is not here: set BAYESRM_DATA to the folder that holds it")
    with gzip.open(folder / FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if 3 <= sum(sample["gold"] for sample in row["responses"]) <= 97]


def split(
    seed: int, noise: float, training_tasks: int, test_tasks: int | None
) -> tuple[list[dict[str, str]], list[Task]]:
    """Pairs of some tasks, a share of their labels flipped, and other tasks to choose on; drawn by the seed."""
    rows = mixed_tasks()
    lot = random.Random(seed)
    lot.shuffle(rows)
    pairs = []
    for row in rows[:training_tasks]:
        right = [sample["text"] for sample in row["responses"] if sample["gold"]]
        wrong = [sample["text"] for sample in row["responses"] if not sample["gold"]]
        for _ in range(PAIRS_A_TASK):
            chosen, rejected = lot.choice(right), lot.choice(wrong)
            if lot.random() < noise:
                chosen, rejected = rejected, chosen
            pairs.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    stop = None if test_tasks is None else training_tasks + test_tasks
    return pairs, [_task(row) for row in rows[training_tasks:stop]]


def _task(row: dict[str, Any]) -> Task:
    texts = sorted({sample["text"] for sample in row["responses"]})
    place = {text: i for i, text in enumerate(texts)}
    samples = [place[sample["text"]] for sample in row["responses"]]
    return Task(str(row["id"]), row["prompt"], texts, samples, [float(sample["gold"]) for sample in row["responses"]])
