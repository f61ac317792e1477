"""Real responses that a judge has rated: preference pairs of them, and candidates with distractors among them."""

import gzip
import json
import random
from typing import Any

import numpy as np

from benchmarks.data import data_folder

GAP = 0.2
"""Smallest difference of gold between the two responses of a pair."""

DISTRACTORS = 20


CANDIDATES = "alpaca_eval_candidates.jsonl.gz"

ATTACKERS = {"NullModel", "gpt4_gamed"}
"""Models whose answers are made to fool the judge: their gold says nothing."""


def alpaca_eval(split: str | None, name: str = CANDIDATES) -> list[dict[str, Any]]:
    """Prompts with responses of real models, those of `ATTACKERS` left out.

    Args:
        split: "train" or "dev"; None for every prompt of the file.
        name: of the file.
    """
    folder = data_folder()
    if folder is None or not (folder / name).is_file():
        raise SystemExit(f"{name} is not here: set BAYESRM_DATA to the folder that holds it")
    with gzip.open(folder / name, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        {**row, "responses": [r for r in row["responses"] if r["model"] not in ATTACKERS]}
        for row in rows
        if split is None or row["split"] == split
    ]


def preference_pairs(rows: list[dict[str, Any]], per_prompt: int, seed: int) -> list[dict[str, str]]:
    """Random pairs of a prompt's responses whose gold differs by at least `GAP`."""
    generator = random.Random(seed)
    pairs = []
    for row in rows:
        found = [
            (a, b)
            for i, a in enumerate(row["responses"])
            for b in row["responses"][i + 1 :]
            if abs(a["gold"] - b["gold"]) >= GAP and a["text"] != b["text"]
        ]
        for a, b in generator.sample(found, min(per_prompt, len(found))):
            better, worse = (a, b) if a["gold"] > b["gold"] else (b, a)
            pairs.append({"prompt": row["prompt"], "chosen": better["text"], "rejected": worse["text"]})
    return pairs


def with_distractors(rows: list[dict[str, Any]], candidates: int, seed: int) -> list[dict[str, Any]]:
    """Candidates of each prompt, then responses that answer other prompts, whose gold here is 0."""
    generator = random.Random(seed)
    sets = []
    for row in rows:
        own = row["responses"][:candidates]
        others = [other for other in rows if other is not row]
        strays = [generator.choice(generator.choice(others)["responses"])["text"] for _ in range(DISTRACTORS)]
        sets.append(
            {
                "prompt": row["prompt"],
                "texts": [response["text"] for response in own] + strays,
                "gold": np.array([response["gold"] for response in own] + [0.0] * DISTRACTORS),
                "own": len(own),
            }
        )
    return sets
