"""Means of candidates that share a prompt, whose beginning runs once."""

from functools import partial
from typing import Any

from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.text.batches import plan_batches
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.scoring.llama import BATCH_TOKENS
from benchmarks.shapes import LlamaShape, passes_of, random_rows
from benchmarks.timing import in_turns

WHOLE_ROWS = "plain forward of whole rows"
MEANS = "ours, means"


def prompts_part(quick: bool) -> dict[str, Any]:
    """Means of candidates that share a prompt, over the plain forward of their whole rows."""
    hidden, layers, count = (64, 1, 8) if quick else (512, 4, 64)
    model = LlamaShape(hidden, layers).model()
    passes = passes_of(model, BATCH_TOKENS)
    results = {}
    for prompt in (16, 64, 512):
        rows = random_rows([prompt + 64] * count, prompt=prompt)
        formulations = {
            WHOLE_ROWS: partial(plain_forward, model, our_batches(passes, rows)),
            MEANS: partial(rewards_of, passes, rows),
        }
        timed = in_turns(formulations, 2 if quick else 5)
        order = [i for batch in plan_batches(rows, BATCH_TOKENS) for i in batch]
        plain, ours = (run() for run in formulations.values())
        results[f"prompt of {prompt} tokens"] = {
            "responses": f"{count} of 64 tokens",
            "formulations": timed,
            "ratio": timed[MEANS]["seconds"] / timed[WHOLE_ROWS]["seconds"],
            "largest_difference": float((plain - ours[order]).abs().max()),
        }
    return results
