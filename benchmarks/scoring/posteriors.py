"""Mean and variance under each structure of posterior, over LoRA and over virtual adapters."""

from collections.abc import Callable
from functools import partial
from typing import Any

from bayesrm_fast.score import relative
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.relative import Comparison, Differences, score_differences
from bayesrm_fast.score.variances import score_examples
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.scoring.llama import BATCH_TOKENS, LENGTH, OURS, PLAIN, ScoredLlama, shapes
from benchmarks.shapes import LlamaShape, fitted, random_ggn, random_pairs, random_rows, virtual_passes_of
from benchmarks.timing import count_plain_forwards, in_turns

GGN_RANK = 128


def structures_part(quick: bool) -> dict[str, Any]:
    """Mean and variance under kfac, rank 64, and ggn, K = 128; what it takes does not depend on the bases' values.

    Of many rows, and of one alone, as a server gets them.
    """
    results = {}
    for hidden, layers, rows in ((*shape, count) for *shape, many in shapes(quick) for count in (many, 1)):
        scored = ScoredLlama(hidden, layers, rows)
        over_lora = scored.formulations()
        formulations: dict[str, Callable[[], Any]] = {
            PLAIN: over_lora[PLAIN],
            "kfac": over_lora[OURS],
            "ggn": partial(score_examples, scored.passes, scored.rows, random_ggn(scored.posterior, GGN_RANK)),
        }
        timed = in_turns(formulations, 2 if quick else 7 if rows > 1 else 51)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}" + ", one row" * (rows == 1)] = {
            "layers": layers,
            "rows": rows,
            "length": LENGTH,
            "formulations": timed,
            "ggn_over_kfac": timed["ggn"]["seconds"] / timed["kfac"]["seconds"],
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
            "ours, means": partial(rewards_of, passes, rows, range(count)),
            "ours, mean and variance, kfac": partial(score_examples, passes, rows, kfac),
            "ours, mean and variance, ggn": partial(score_examples, passes, rows, random_ggn(kfac, GGN_RANK)),
        }
        timed = in_turns(formulations, 2 if quick else 7)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}"] = {"layers": layers, "rows": count, "length": LENGTH, "formulations": timed}
    return results
