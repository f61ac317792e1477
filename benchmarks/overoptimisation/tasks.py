"""Prompts with several samples of one policy and what each is worth, and the noisy pairs that a reward model learns."""

import gzip
import json
import random
from dataclasses import dataclass
from typing import Any

from benchmarks.data import data_folder
from benchmarks.judged import alpaca_eval, preference_pairs

HUMANEVAL = "humaneval_codegen16b_100.jsonl.gz"
QA_FEEDBACK = "qa_feedback_dev.jsonl.gz"
PAIRS_A_TASK = 10
PAIRS_A_QUESTION = 2

Pairs = list[dict[str, str]]


@dataclass(frozen=True)
class Task:
    """A prompt with its samples.

    Attributes:
        name: of the task.
        prompt: the task.
        texts: distinct samples `[U]`.
        samples: of each of N samples its place in `texts`.
        gold: what each sample is worth `[N]`.
    """

    name: str
    prompt: str
    texts: list[str]
    samples: list[int]
    gold: list[float]


def read(name: str) -> list[dict[str, Any]]:
    """The rows of one of the files of `BAYESRM_DATA`."""
    folder = data_folder()
    if folder is None or not (folder / name).is_file():
        raise SystemExit(f"{name} is not here: set BAYESRM_DATA to the folder that holds it")
    with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def humaneval(
    training_tasks: int, test_tasks: int | None, samples: int, seed: int, noise: float
) -> tuple[Pairs, list[Task]]:
    """Pairs of right and wrong samples of some tasks, and others with their first samples: gold is that tests pass.

    Only tasks of which 3 to 97 of the 100 samples are right: of others a choice says nothing.
    """
    rows = [row for row in read(HUMANEVAL) if 3 <= sum(sample["gold"] for sample in row["responses"]) <= 97]
    lot = random.Random(seed)
    lot.shuffle(rows)
    pairs = []
    for row in rows[:training_tasks]:
        right = [sample["text"] for sample in row["responses"] if sample["gold"]]
        wrong = [sample["text"] for sample in row["responses"] if not sample["gold"]]
        pairs += [pair_of(row["prompt"], lot.choice(right), lot.choice(wrong), noise, lot) for _ in range(PAIRS_A_TASK)]
    stop = None if test_tasks is None else training_tasks + test_tasks
    tasks = [
        task_of(row["id"], row["prompt"], [(sample["text"], sample["gold"]) for sample in row["responses"][:samples]])
        for row in rows[training_tasks:stop]
    ]
    return pairs, tasks


def qa_feedback(training_tasks: int, test_tasks: int | None, seed: int, noise: float) -> tuple[Pairs, list[Task]]:
    """People's preferences among 4 answers to a question: gold is the share of them that an answer wins.

    An answer that is compared with no other has ½, and questions of which all answers are worth the same are left out
    of the tasks.
    """
    rows = [row for row in read(QA_FEEDBACK) if row["preferred_pairs"]]
    lot = random.Random(seed)
    lot.shuffle(rows)
    pairs = [
        pair_of(row["question"], row["responses"][better], row["responses"][worse], noise, lot)
        for row in rows[:training_tasks]
        for better, worse in lot.sample(row["preferred_pairs"], min(PAIRS_A_QUESTION, len(row["preferred_pairs"])))
    ]
    tasks = []
    for row in rows[training_tasks:]:
        won = [sum(better == i for better, _ in row["preferred_pairs"]) for i in range(len(row["responses"]))]
        lost = [sum(worse == i for _, worse in row["preferred_pairs"]) for i in range(len(row["responses"]))]
        others = len(row["responses"]) - 1
        gold = [0.5 + (a - b) / (2 * others) for a, b in zip(won, lost, strict=True)]
        if len(set(gold)) > 1:
            tasks.append(task_of(row["id"], row["question"], list(zip(row["responses"], gold, strict=True))))
    return pairs, tasks[:test_tasks]


def pool(training_tasks: int, test_tasks: int, samples: int, seed: int, noise: float) -> tuple[Pairs, list[Task]]:
    """Answers of up to as many models to AlpacaEval's prompts, each judged by GPT-4; the pairs have two each.

    Candidates of different sources, where what is far from the mean is often what is best.
    """
    lot = random.Random(seed)
    pairs = [
        pair_of(pair["prompt"], pair["chosen"], pair["rejected"], noise, lot)
        for pair in preference_pairs(alpaca_eval("train")[:training_tasks], 2, seed)
    ]
    rows = [row for row in alpaca_eval("dev") if len(row["responses"]) >= samples][:test_tasks]
    judged = [[(answer["text"], answer["gold"]) for answer in row["responses"][:samples]] for row in rows]
    return pairs, [task_of(row["prompt"], row["prompt"], answers) for row, answers in zip(rows, judged, strict=True)]


def pair_of(prompt: str, better: str, worse: str, noise: float, lot: random.Random) -> dict[str, str]:
    """A pair, whose label is flipped with the probability `noise`."""
    if lot.random() < noise:
        better, worse = worse, better
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def task_of(name: object, prompt: str, judged: list[tuple[str, float]]) -> Task:
    """A task of samples and what each is worth."""
    texts = sorted({text for text, _ in judged})
    place = {text: i for i, text in enumerate(texts)}
    return Task(str(name), prompt, texts, [place[text] for text, _ in judged], [float(gold) for _, gold in judged])
