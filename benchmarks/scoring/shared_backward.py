"""What sharing a prompt's forward pass saves where every candidate has a backward pass of its own.

The prompt runs once, what follows it for each candidate, and every candidate's cotangents go through the prompt's graph
side by side (`bayesrm_fast/model/shared_backward.py`).
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from unittest.mock import patch

from bayesrm_fast.model import shared_backward
from bayesrm_fast.model.passes import KeptGradients, unit_cotangent
from bayesrm_fast.model.shared_backward import over_examples
from bayesrm_fast.score.variances import score_examples
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.scoring.llama import BATCH_TOKENS
from benchmarks.scoring.posteriors import GGN_RANK
from benchmarks.shapes import LlamaShape, fitted, passes_of, random_ggn, random_pairs, random_rows
from benchmarks.timing import count_plain_forwards, in_turns, one_thread

SHAPES = ((512, 64, 8), (64, 64, 64), (2048, 256, 8))
"""Tokens of the prompt and of each response, and candidates."""
PLAIN = "plain forward of whole rows"


def shared_backward_part(quick: bool) -> dict[str, Any]:
    """Beside whole rows: gradients that are kept, as a relative score keeps them, and variances under ggn."""
    shapes = ((32, 8, 4),) if quick else SHAPES
    results = {}
    for hidden, layers in ((64, 1),) if quick else ((256, 4), (1024, 2)):
        model = LlamaShape(hidden, layers).model()
        passes = passes_of(model, BATCH_TOKENS)
        posterior = random_ggn(fitted(passes, random_pairs(4, 32)), GGN_RANK)
        for prompt, response, count in shapes:
            rows = random_rows([prompt + response] * count, prompt=prompt)
            kept = partial(_exhausted, over_examples, passes, rows, unit_cotangent, KeptGradients)
            variances = partial(score_examples, passes, rows, posterior)
            formulations: dict[str, Callable[[], Any]] = {
                PLAIN: partial(plain_forward, model, our_batches(passes, rows)),
                "whole rows, gradients": partial(_sharing, False, kept),
                "shared, gradients": partial(_sharing, True, kept),
                "whole rows, ggn": partial(_sharing, False, variances),
                "shared, ggn": partial(_sharing, True, variances),
            }
            with one_thread():
                alike = formulations["shared, ggn"]()[1] / formulations["whole rows, ggn"]()[1]
                timed = in_turns(formulations, 1 if quick else 5, clock=time.process_time)
            count_plain_forwards(timed, PLAIN)
            results[f"hidden {hidden}, {prompt} + {response} × {count}"] = {
                "layers": layers,
                "clock": "processor time of one thread",
                "formulations": timed,
                "ratio": timed["shared, ggn"]["seconds"] / timed["whole rows, ggn"]["seconds"],
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


def _exhausted(over: Callable[..., Iterable[Any]], *arguments: Any) -> None:
    for _ in over(*arguments):
        pass
