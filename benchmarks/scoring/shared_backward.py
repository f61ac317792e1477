"""What sharing a prompt's forward pass saves where every candidate has a backward pass of its own.

The prompt runs once, what follows it for each candidate, and every candidate's cotangents go through the prompt's graph
side by side (`bayesrm_fast/model/shared_backward.py`).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from bayesrm_fast.model import shared_backward
from bayesrm_fast.score.variances import score_examples
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.scoring.llama import BATCH_TOKENS
from benchmarks.scoring.posteriors import GGN_RANK
from benchmarks.shapes import LlamaShape, fitted, passes_of, random_ggn, random_pairs, random_rows
from benchmarks.timing import count_plain_forwards, in_turns, one_thread

SHAPES = (
    (256, 4, 512, 64, 8),
    (256, 4, 64, 64, 64),
    (256, 4, 2048, 256, 8),
    (1024, 2, 512, 64, 8),
    (1024, 2, 64, 64, 64),
)
"""Hidden size and layers, tokens of the prompt and of each response, and candidates."""
PLAIN = "plain forward of whole rows"


def shared_backward_part(quick: bool) -> dict[str, Any]:
    """Mean and variance under ggn, K = 128, beside those of whole rows; processor time of one thread."""
    results = {}
    for hidden, layers, prompt, response, count in ((64, 1, 32, 8, 4),) if quick else SHAPES:
        model = LlamaShape(hidden, layers).model()
        passes = passes_of(model, BATCH_TOKENS)
        posterior = random_ggn(fitted(passes, random_pairs(4, 32)), GGN_RANK)
        rows = random_rows([prompt + response] * count, prompt=prompt)
        score = partial(score_examples, passes, rows, posterior)
        formulations: dict[str, Callable[[], Any]] = {
            PLAIN: partial(plain_forward, model, our_batches(passes, rows)),
            "whole rows": partial(_sharing, False, score),
            "shared": partial(_sharing, True, score),
        }
        with one_thread():
            alike = formulations["shared"]()[1] / formulations["whole rows"]()[1]
            timed = in_turns(formulations, 1 if quick else 5, clock=time.process_time)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}, {prompt} + {response} × {count}"] = {
            "layers": layers,
            "clock": "processor time of one thread",
            "formulations": timed,
            "ratio": timed["shared"]["seconds"] / timed["whole rows"]["seconds"],
            "of_tokens": (prompt + count * (prompt + 2 * response)) / (2 * count * (prompt + response)),
            "largest_relative_difference": float((alike - 1).abs().max()),
        }
    return results


def _sharing(shares: bool, run: Callable[[], Any]) -> Any:
    """With every group sharing that could, or none."""
    with (
        patch.object(shared_backward, "WORTH_SHARING", 0.0 if shares else 2.0),
        patch.object(shared_backward, "LEAST_SAVED", 1),
    ):
        return run()
