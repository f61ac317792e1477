"""Mean and variance under each structure of posterior, over LoRA and over virtual adapters, of many rows and of one."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bayesrm_fast.score import relative
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.relative import Comparison, Differences, score_differences
from bayesrm_fast.score.variances import score_examples
from benchmarks.baselines import empty_pass, our_batches, plain_forward
from benchmarks.scoring.llama import BATCH_TOKENS, LENGTH, OURS, PLAIN, ScoredLlama, shapes
from benchmarks.shapes import LlamaShape, fitted, passes_of, random_ggn, random_pairs, random_rows, virtual_passes_of
from benchmarks.timing import count_plain_forwards, in_turns, one_thread

GGN_RANK = 128


def structures_part(quick: bool) -> dict[str, Any]:
    """Mean and variance under kfac, rank 64, and ggn, K = 128; what it takes does not depend on the bases' values."""
    results = {}
    for hidden, layers, rows in shapes(quick):
        scored = ScoredLlama(hidden, layers, rows)
        over_lora = scored.formulations()
        formulations: dict[str, Callable[[], Any]] = {
            PLAIN: over_lora[PLAIN],
            "kfac": over_lora[OURS],
            "ggn": partial(score_examples, scored.passes, scored.rows, random_ggn(scored.posterior, GGN_RANK)),
        }
        timed = in_turns(formulations, 2 if quick else 7)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}"] = {
            "layers": layers,
            "rows": rows,
            "length": LENGTH,
            "formulations": timed,
            "ggn_over_kfac": timed["ggn"]["seconds"] / timed["kfac"]["seconds"],
        }
    return results


def one_row_part(quick: bool) -> dict[str, Any]:
    """One row alone, as a server gets it; processor time of one thread.

    Beside ggn what it cannot be less than: the pass that feeds no posterior, and reading the bases once.
    """
    results = {}
    for hidden, layers, _ in shapes(quick):
        scored = ScoredLlama(hidden, layers, rows=1)
        over_lora = scored.formulations()
        ggn = random_ggn(scored.posterior, GGN_RANK)
        narrow = {
            f"ggn, bases in {name}": partial(
                score_examples, scored.passes, scored.rows, random_ggn(scored.posterior, GGN_RANK, dtype)
            )
            for name, dtype in (("bfloat16", torch.bfloat16), ("int8", torch.int8))
        }
        formulations: dict[str, Callable[[], Any]] = {
            name: over_lora[name] for name in (PLAIN, "forward and backward by autograd", "ours, empty consumer")
        }
        formulations |= {
            "kfac": over_lora[OURS],
            "ggn": partial(score_examples, scored.passes, scored.rows, ggn),
            **narrow,
            "reading ggn's bases": lambda bases=ggn.bases: [basis.values.sum() for basis in bases.values()],
        }
        with one_thread():
            timed = in_turns(formulations, 2 if quick else 41, clock=time.process_time)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}"] = {
            "layers": layers,
            "length": LENGTH,
            "clock": "processor time of one thread",
            "bases_bytes": sum(basis.values.nbytes for basis in ggn.bases.values()),
            "formulations": timed,
        }
    return results


def dtypes_part(quick: bool) -> dict[str, Any]:
    """A model in bfloat16 beside the same in float32: forward, backward and taps; processor time of one thread."""
    results = {}
    for hidden, layers, count in shapes(quick):
        formulations: dict[str, Callable[[], Any]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = LlamaShape(hidden, layers).model(dtype=dtype)
            passes, rows = passes_of(model, BATCH_TOKENS), random_rows([LENGTH] * min(count, 16))
            kfac = fitted(passes, random_pairs(4, LENGTH))
            name = str(dtype).removeprefix("torch.")
            formulations |= {
                f"{name}, plain forward": partial(plain_forward, model, our_batches(passes, rows)),
                f"{name}, forward, backward and taps": partial(empty_pass, passes, rows),
                f"{name}, mean and variance, ggn": partial(
                    score_examples, passes, rows, random_ggn(kfac, GGN_RANK, dtype)
                ),
            }
        with one_thread():
            timed = in_turns(formulations, 2 if quick else 7, clock=time.process_time)
        count_plain_forwards(timed, "float32, plain forward")
        results[f"hidden {hidden}"] = {
            "layers": layers,
            "rows": len(rows),
            "length": LENGTH,
            "clock": "processor time of one thread",
            "formulations": timed,
        }
    return results


def relative_part(quick: bool) -> dict[str, Any]:
    """Mean and variance of the difference to the mean of the prompt's candidates, all rows being one prompt's.

    In one pass, and in the two that are taken where gradients do not fit in memory.
    """
    results = {}
    for hidden, layers, count in shapes(quick):
        scored = ScoredLlama(hidden, layers, count)
        own = list(range(count))
        comparison = Comparison(own, own)
        formulations: dict[str, Callable[[], Any]] = {PLAIN: scored.formulations()[PLAIN]}
        for name, posterior in (("kfac", scored.posterior), ("ggn", random_ggn(scored.posterior, GGN_RANK))):
            arguments = (scored.passes, scored.rows, [comparison], posterior)
            formulations |= {
                f"{name}, absolute": partial(score_examples, scored.passes, scored.rows, posterior),
                f"{name}, relative": partial(score_differences, *arguments),
                f"{name}, relative in two passes": partial(_without_memory, *arguments),
            }
        timed = in_turns(formulations, 2 if quick else 7)
        count_plain_forwards(timed, PLAIN)
        one_pass, two_passes = (
            found(scored.passes, scored.rows, [comparison], scored.posterior).variance
            for found in (score_differences, _without_memory)
        )
        results[f"hidden {hidden}"] = {
            "layers": layers,
            "rows": count,
            "length": LENGTH,
            "formulations": timed,
            "largest_relative_difference": float((one_pass / two_passes - 1).abs().max()),
        }
    return results


def _without_memory(*arguments: Any) -> Differences:
    kept, relative.SHARE_FOR_GRADIENTS = relative.SHARE_FOR_GRADIENTS, 0.0
    try:
        return score_differences(*arguments)
    finally:
        relative.SHARE_FOR_GRADIENTS = kept


def virtual_part(quick: bool) -> dict[str, Any]:
    """The merged model with virtual adapters of rank 8, over its own plain forward."""
    results = {}
    for hidden, layers, count in shapes(quick):
        model = LlamaShape(hidden, layers).model().merge_and_unload()
        pairs, rows = random_pairs(4, LENGTH), random_rows([LENGTH] * count)
        passes = virtual_passes_of(model, BATCH_TOKENS, pairs)
        kfac = fitted(passes, pairs)
        formulations: dict[str, Callable[[], Any]] = {
            PLAIN: partial(plain_forward, model, our_batches(passes, rows)),
            "ours, means": partial(rewards_of, passes, rows),
            "ours, mean and variance, kfac": partial(score_examples, passes, rows, kfac),
            "ours, mean and variance, ggn": partial(score_examples, passes, rows, random_ggn(kfac, GGN_RANK)),
        }
        timed = in_turns(formulations, 2 if quick else 7)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}"] = {"layers": layers, "rows": count, "length": LENGTH, "formulations": timed}
    return results
