"""Gold that a model gives: the protocol of Gao et al. (arXiv 2210.10760) and of Coste et al. (arXiv 2310.02743).

    python -m benchmarks.overoptimisation.synthetic    # trains the gold model and tells how often it is right

A gold model learns what GPT-4 has judged. Proxies learn from what it says of the answers of half of the judged models,
a share of the labels flipped, and choose among answers of other models to other prompts.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import progress_bar, quiet_transformers
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.data import ROOT, embedded_encoder
from benchmarks.judged import alpaca_eval, preference_pairs
from benchmarks.overoptimisation.tasks import Pairs, Task, pair_of, task_of

POOL = "alpaca_eval_pool_120x225.jsonl.gz"
FIRST_JUDGEMENTS = "alpaca_eval_v1_gpt4.jsonl.gz"
PAIRS_A_PROMPT = 6
"""Of each of the two files of judgements."""

OPTIONS = TrainOptions(
    lora_rank=32, lora_alpha=64, target_modules=("query", "key", "value", "dense"), epochs=2, learning_rate=5e-4,
    max_length=128,
)  # fmt: skip
FOLDER = ROOT / "build" / "synthetic-gold"


def judged_pairs(split: str) -> Pairs:
    """What GPT-4 prefers, by both files of its judgements."""
    rows = alpaca_eval(split)
    prompts = {row["prompt"] for row in rows}
    first = [row for row in alpaca_eval(None, FIRST_JUDGEMENTS) if row["prompt"] in prompts]
    return [pair for own in (rows, first) for pair in preference_pairs(own, PAIRS_A_PROMPT, seed=0)]


def gold_model(folder: Path = FOLDER) -> BayesianRewardModel:
    """The model whose rewards are gold, trained where the folder does not hold it."""
    if not (folder / "adapter_config.json").exists():
        with progress_bar("training the gold model") as tell:
            train_adapter(embedded_encoder(), judged_pairs("train"), folder, OPTIONS, tell)
    return BayesianRewardModel.from_pretrained(folder, max_length=OPTIONS.max_length, device="cpu", dtype=torch.float32)


def gold_of(prompts: Sequence[str], texts: Sequence[str], folder: Path = FOLDER) -> list[float]:
    """The gold model's reward of `texts[i]` as an answer to `prompts[i]`; what it has said once is kept."""
    kept = folder / "gold.json"
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    keys = [hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in zip(prompts, texts, strict=True)]
    absent = [i for i, key in enumerate(keys) if key not in known]
    if absent:
        said = gold_model(folder).rewards([prompts[i] for i in absent], [texts[i] for i in absent])
        known |= zip([keys[i] for i in absent], said.tolist(), strict=True)
        kept.write_text(json.dumps(known))
    return [known[key] for key in keys]


def synthetic(
    training_prompts: int, test_prompts: int, samples: int, seed: int, noise: float
) -> tuple[Pairs, list[Task]]:
    """Two pairs of each training prompt, and the test prompts with answers of models that the pairs do not have.

    Gold is in std of that of all answers of the tasks, and its mean is 0.
    """
    lot = random.Random(seed)
    rows = alpaca_eval("train")[:training_prompts]
    models = sorted({answer["model"] for row in rows for answer in row["responses"]})
    learnt_from = set(lot.sample(models, len(models) // 2))
    drawn = [
        (row["prompt"], lot.sample([one["text"] for one in row["responses"] if one["model"] in learnt_from], 4))
        for row in rows
    ]
    said = iter(gold_of([prompt for prompt, texts in drawn for _ in texts], [text for _, own in drawn for text in own]))
    pairs = []
    for prompt, texts in drawn:
        judged = [(next(said), text) for text in texts]
        for first, second in (judged[:2], judged[2:]):
            (_, worse), (_, better) = sorted((first, second))
            pairs.append(pair_of(prompt, better, worse, noise, lot))
    unseen = _unseen(test_prompts, samples, learnt_from, lot)
    gold = torch.tensor(
        gold_of([prompt for prompt, own in unseen for _ in own], [text for _, own in unseen for text in own])
    )
    scaled = ((gold - gold.mean()) / gold.std()).view(len(unseen), samples).tolist()
    return pairs, [
        task_of(prompt, prompt, list(zip(own, worth, strict=True)))
        for (prompt, own), worth in zip(unseen, scaled, strict=True)
    ]


def _unseen(test_prompts: int, samples: int, learnt_from: set[str], lot: random.Random) -> list[tuple[str, list[str]]]:
    found = []
    for row in _pool():
        own = [one["text"] for one in row["responses"] if one["model"] not in learnt_from]
        if len(own) >= samples:
            found.append((row["prompt"], lot.sample(own, samples)))
    return found[:test_prompts]


@cache
def _pool() -> list[dict[str, Any]]:
    return alpaca_eval(None, POOL)


def main() -> None:
    """Train the gold model, and tell its accuracy on judged pairs of other prompts."""
    quiet_transformers()
    model = gold_model()
    pairs = judged_pairs("dev")
    prompts = [pair["prompt"] for pair in pairs]
    better, worse = (model.rewards(prompts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
    right = (better > worse).double()
    error = right.std() / len(pairs) ** 0.5
    print(f"right of {len(pairs)} judged pairs of unseen prompts: {right.mean():.3f} ± {error:.3f}")


if __name__ == "__main__":
    main()
