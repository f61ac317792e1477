"""The engine beside offline scoring on the same texts: requests of one sample, many in flight, and of one prompt each.

`python -m benchmarks.engine [--rounds 5] [--output FILE]`: MiniLM with LoRA on a CPU, made texts of ragged lengths. The
formulations take turns; a number is a median over the rounds.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.engine import AsyncScorer
from benchmarks.data import embedded_encoder
from benchmarks.machine import describe
from benchmarks.timing import in_turns

WORDS = ["reward", "model", "prompt", "answer", "token", "batch", "queue", "the", "a", "of", "and", "to", "in", "is"]
PROMPTS, RESPONSES, IN_FLIGHT = 64, 8, 256


def model() -> BayesianRewardModel:
    """MiniLM with a LoRA adapter and a posterior."""
    folder = embedded_encoder()
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    lora = LoraConfig(r=8, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
    rm = BayesianRewardModel(get_peft_model(base, lora), AutoTokenizer.from_pretrained(folder))
    lot = random.Random(1)
    pairs = [{"prompt": text(lot, 20), "chosen": text(lot, 20), "rejected": text(lot, 21)} for _ in range(16)]
    return rm.fit(pairs, structure="ekfac", rank=8, prior_precision=1.0)


def text(lot: random.Random, most: int) -> str:
    """Up to so many words."""
    return " ".join(lot.choices(WORDS, k=lot.randint(1, most)))


async def in_flight(requests: list[Callable[[], Awaitable[Any]]], seconds: list[float]) -> None:
    """All requests, at most `IN_FLIGHT` of them at a time; appends what each took."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(request: Callable[[], Awaitable[Any]]) -> None:
        async with room:
            start = time.perf_counter()
            await request()
            seconds.append(time.perf_counter() - start)

    await asyncio.gather(*map(one, requests))


def run(rounds: int, prompts: int = PROMPTS) -> dict[str, Any]:
    """Seconds of each formulation, and what the engine tells of its batches."""
    rm, lot = model(), random.Random(0)
    sets = [(text(lot, 60), [text(lot, 120) for _ in range(RESPONSES)]) for _ in range(prompts)]
    rows = [(prompt, response) for prompt, responses in sets for response in responses]
    latencies: list[float] = []
    told: dict[str, Any] = {}

    def offline() -> None:
        rm.score([prompt for prompt, _ in rows], [response for _, response in rows])

    def by_engine(name: str, asked: list[tuple[str, list[str]]]) -> Callable[[], None]:
        async def main() -> None:
            async with AsyncScorer(rm) as scorer:
                await in_flight([lambda one=one: scorer.score(*one) for one in asked], latencies)
                told[name] = vars(scorer.stats())

        return lambda: asyncio.run(main())

    formulations = {
        "offline": offline,
        "engine, one sample a request": by_engine("one sample", [(prompt, [response]) for prompt, response in rows]),
        "engine, one prompt a request": by_engine("one prompt", sets),
    }
    timed = in_turns(formulations, rounds)
    return {
        "machine": describe(),
        "rows": len(rows),
        "in_flight": IN_FLIGHT,
        "formulations": timed,
        "of_offline": {name: timed["offline"]["seconds"] / one["seconds"] for name, one in timed.items()},
        "seconds_of_a_request": {f"p{100 * q // 20}": cut for q, cut in _quantiles(latencies)},
        "engine": told,
    }


def _quantiles(seconds: list[float]) -> list[tuple[int, float]]:
    cuts = statistics.quantiles(seconds, n=20)
    return [(q, cuts[q - 1]) for q in (10, 19)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    found = json.dumps(run(given.rounds, given.prompts), indent=1)
    print(found)
    if given.output is not None:
        given.output.write_text(found + "\n")


if __name__ == "__main__":
    main()
