"""Scoring on a GPU: the shapes of Llama-3.2-1B and Llama-3.1-8B in bfloat16, with random weights."""

from functools import partial
from typing import Any

import torch

from bayesrm_fast.model.passes import Passes
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.variances import score_examples
from bayesrm_fast.select.choice import choose_each
from bayesrm_fast.select.rules import PenalisedReward
from bayesrm_fast.text.records import Candidates
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.scoring.prompts import WHOLE_ROWS
from benchmarks.shapes import LlamaShape, fitted, passes_of, random_pairs, random_rows
from benchmarks.timing import ceilings, count_plain_forwards, in_turns

SHAPES = {
    "Llama-3.2-1B": LlamaShape(2048, 16, intermediate=8192, heads=32, key_value_heads=8),
    "Llama-3.1-8B": LlamaShape(4096, 32, intermediate=14_336, heads=32, key_value_heads=8),
}
SMALL = {"small": LlamaShape(64, 2)}
PROMPT = 512


def gpu_part(quick: bool, device: str = "cuda") -> dict[str, Any]:
    """Time in plain forwards, share of the matrix rate, peak memory and the largest batch.

    Args:
        quick: a small shape and few candidates.
        device: another one only to see that everything runs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here")
    rounds, count, prompt, batch_tokens = (2, 8, 32, 4096) if quick else (5, 256, PROMPT, 16_384)
    rates = ceilings(rounds) if device == "cuda" else {}
    results: dict[str, Any] = {}
    for name, shape in (SMALL if quick else SHAPES).items():
        results[name] = measured(shape, count, prompt, batch_tokens, rounds, device)
        if device == "cuda":
            rate = results[name]["plain_forward_flops_per_s"]
            results[name]["of_matrix_rate"] = rate / rates["bfloat16_flops_per_s"]
            torch.cuda.empty_cache()
    return results | rates


def measured(shape: LlamaShape, count: int, prompt: int, batch_tokens: int, rounds: int, device: str) -> dict[str, Any]:
    """One model and `count` candidates with a shared prompt."""
    model = shape.model(device, torch.bfloat16)
    passes = passes_of(model, batch_tokens, device)
    posterior = fitted(passes, random_pairs(8, 128))
    lengths = [prompt + 64 + (448 * i) // max(count - 1, 1) for i in range(count)]
    rows = random_rows(lengths, prompt=prompt)
    candidates = [Candidates("", [""] * count)]
    variances = 0
    everything = partial(score_examples, passes, rows, posterior)

    def lazy() -> None:
        nonlocal variances
        (best,) = choose_each(passes, candidates, rows, posterior, PenalisedReward("std", 1.0))
        variances = best.variances_computed

    timed = in_turns(
        {
            WHOLE_ROWS: partial(plain_forward, model, our_batches(passes, rows)),
            "ours, means": partial(rewards_of, passes, rows),
            "ours, mean and variance": everything,
            "ours, lazy best of n": lazy,
        },
        rounds,
        device,
    )
    count_plain_forwards(timed, WHOLE_ROWS)
    weights = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lora" not in n
    )
    found = {
        "candidates": count,
        "prompt": prompt,
        "formulations": timed,
        "variances": variances,
        "plain_forward_flops_per_s": 2 * weights * sum(lengths) / timed[WHOLE_ROWS]["seconds"],
    }
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        everything()
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        found["weights_bytes"] = before
        found["batch_tokens"] = passes.budget.batch_tokens
        found["largest_batch_tokens"] = largest_batch(passes, posterior)
    return found


def largest_batch(passes: Passes, posterior: Posterior) -> int:
    """Tokens of the largest batch, in powers of two, of which mean and variance fit in memory."""
    tokens = 4096
    while tokens < 2**20:
        passes.budget.batch_tokens = 2 * tokens
        rows = random_rows([1024] * (2 * tokens // 1024))
        score_examples(passes, rows, posterior)
        if passes.budget.batch_tokens < 2 * tokens:  # it did not fit, and was halved
            break
        tokens *= 2
    return tokens
