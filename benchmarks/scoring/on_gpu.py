"""Scoring on a GPU: the shapes of Llama-3.2-1B and Llama-3.1-8B in bfloat16, with random weights."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.variances import score_examples
from bayesrm_fast.select.choice import choose_each
from bayesrm_fast.select.rules import PenalisedReward
from bayesrm_fast.text.records import Candidates
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.scoring.prompts import WHOLE_ROWS
from benchmarks.shapes import LlamaShape, fitted, fitted_ggn, passes_of, random_pairs, random_rows
from benchmarks.timing import ceilings, count_plain_forwards, in_turns


@dataclass(frozen=True)
class Job:
    """A model, and how much of it is timed."""

    shape: LlamaShape
    candidates: int
    prompt: int = 512
    batch_tokens: int = 16_384
    rounds: int = 5
    rank: int = 128  # of ggn


JOBS = {
    "gpu_1b": Job(LlamaShape(2048, 16, intermediate=8192, heads=32, key_value_heads=8), 32),
    "gpu_8b": Job(LlamaShape(4096, 32, intermediate=14_336, heads=32, key_value_heads=8), 16),
}
SMALL = Job(LlamaShape(64, 2), 8, prompt=32, batch_tokens=4096, rounds=2, rank=8)


def gpu_part(job: Job, device: str = "cuda") -> dict[str, Any]:
    """Time in plain forwards, share of the matrix rate, and peak memory.

    Args:
        job: what is timed.
        device: another one only to see that everything runs.
    """
    found = measured(job, device)
    if device == "cuda":
        rates = ceilings(job.rounds)
        found |= rates | {"of_matrix_rate": found["plain_forward_flops_per_s"] / rates["bfloat16_flops_per_s"]}
        torch.cuda.empty_cache()
    return found


def measured(job: Job, device: str) -> dict[str, Any]:
    """One model and candidates with a shared prompt, of 64 to 512 tokens."""
    model = job.shape.model(device, torch.bfloat16)
    passes = passes_of(model, job.batch_tokens, device)
    start = time.perf_counter()
    kfac = fitted(passes, random_pairs(8, 128))
    kfac_fitted = time.perf_counter()
    ggn = fitted_ggn(passes, random_pairs(job.rank, 128), job.rank)
    fit_seconds = {"kfac, 8 pairs": kfac_fitted - start, f"ggn, {job.rank} pairs": time.perf_counter() - kfac_fitted}
    lengths = [job.prompt + 64 + (448 * i) // (job.candidates - 1) for i in range(job.candidates)]
    rows = random_rows(lengths, prompt=job.prompt)
    candidates = [Candidates("", [""] * job.candidates)]
    variances = 0

    def lazy() -> None:
        nonlocal variances
        (best,) = choose_each(passes, candidates, rows, ggn, PenalisedReward("std", 1.0))
        variances = best.variances_computed

    timed = in_turns(
        {
            WHOLE_ROWS: partial(plain_forward, model, our_batches(passes, rows)),
            "ours, means": partial(rewards_of, passes, rows),
            "ours, mean and variance by kfac": partial(score_examples, passes, rows, kfac),
            "ours, mean and variance by ggn": partial(score_examples, passes, rows, ggn),
            "ours, lazy best of n by ggn": lazy,
        },
        job.rounds,
        device,
    )
    count_plain_forwards(timed, WHOLE_ROWS)
    weights = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lora" not in n
    )
    found = {
        "candidates": job.candidates,
        "prompt": job.prompt,
        "batch_tokens": job.batch_tokens,
        "rank": {"kfac": 64, "ggn": job.rank},
        "fit_seconds": fit_seconds,
        "formulations": timed,
        "variances": variances,
        "plain_forward_flops_per_s": 2 * weights * sum(lengths) / timed[WHOLE_ROWS]["seconds"],
    }
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        score_examples(passes, rows, ggn)
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        found["weights_bytes"] = before
    return found
