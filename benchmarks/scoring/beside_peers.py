"""Mean and variance beside the peers': time in turns, memory in a process for each, and how far the numbers agree."""

import importlib.util
import json
from typing import Any

from bayesrm_fast.score.variances import score_examples
from benchmarks import peers
from benchmarks.memory import limit, peak_of, report_peak
from benchmarks.scoring.llama import BATCH_TOKENS, LENGTH, OURS, PATIENCE, PLAIN, ScoredLlama, shapes
from benchmarks.shapes import fitted
from benchmarks.timing import count_plain_forwards, in_turns

PEER_BATCHES = (1, 8, 16)
MEMORY_ROWS = 16


def shapes_part(quick: bool) -> dict[str, Any]:
    """Every formulation on the Llama shapes: time in turns, memory at one batch."""
    results = {}
    for hidden, layers, rows in shapes(quick):
        scored = ScoredLlama(hidden, layers, rows)
        memory = {
            f"{name}, batch of {batch}": memory_of(hidden, layers, name, batch)
            for name in ("ours", "laplace-torch", "bayesian-lora")
            for batch in ((8,) if quick else PEER_BATCHES)
            if name != "bayesian-lora" or importlib.util.find_spec("bayesian_lora")
        }
        formulations = scored.formulations()
        laplace = scored.laplace_torch()
        formulations |= {
            row: scored.peer(*_name_and_batch(row), posterior=laplace)
            for row, peak in memory.items()
            if not row.startswith("ours") and "failed" not in peak
        }
        timed = in_turns(formulations, 2 if quick else 5, patience=PATIENCE)
        count_plain_forwards(timed, PLAIN)
        for name, peak in memory.items():
            timed.setdefault(name, {})["memory"] = peak
        results[f"hidden {hidden}"] = {"layers": layers, "rows": rows, "length": LENGTH, "formulations": timed}
        if hidden in (64, 256):
            results[f"hidden {hidden}"]["agreement_with_laplace_torch"] = agreement(scored)
    return results


def best_batches_part(quick: bool) -> dict[str, Any]:
    """The peers at small batches, where they are at their best."""
    results = {}
    for hidden, layers, rows in shapes(quick):
        scored = ScoredLlama(hidden, layers, rows)
        without_peers = scored.formulations()
        laplace = scored.laplace_torch()
        formulations = {name: without_peers[name] for name in (PLAIN, OURS)}
        formulations |= {f"laplace-torch, batch of {n}": scored.peer("laplace-torch", n, laplace) for n in (1, 2, 4)}
        if importlib.util.find_spec("bayesian_lora"):
            formulations |= {f"bayesian-lora, batch of {n}": scored.peer("bayesian-lora", n) for n in (2, 4)}
        timed = in_turns(formulations, 2 if quick else 5, patience=PATIENCE)
        count_plain_forwards(timed, PLAIN)
        results[f"hidden {hidden}"] = {"layers": layers, "rows": rows, "length": LENGTH, "formulations": timed}
    return results


def _name_and_batch(row: str) -> tuple[str, int]:
    name, batch = row.split(", batch of ")
    return name, int(batch)


def agreement(scored: ScoredLlama) -> dict[str, float]:
    """How far our numbers are from laplace-torch's on the same pairs, once its factor of two is taken out."""
    posterior = fitted(scored.passes, scored.pairs, rank=None)
    mean, variance = score_examples(scored.passes, scored.rows[:4], posterior)
    peer = scored.laplace_torch()
    for values in peer.H.eigenvalues:
        values[0].mul_(0.5)
    peer_mean, peer_variance = peers.laplace_torch_scores(peer, scored.ids[:4], 1)
    return {
        "mean_absolute": float((mean - peer_mean).abs().max()),
        "variance_relative": float((variance / peer_variance - 1).abs().max()),
    }


def memory_of(hidden: int, layers: int, name: str, batch: int) -> dict[str, Any]:
    """Peak of one formulation in a process of its own, which runs `report_memory`."""
    return peak_of("benchmarks.scoring", "--child", json.dumps([hidden, layers, name, batch]))


def report_memory(job: str) -> None:
    """What `memory_of` starts."""
    hidden, layers, name, batch = json.loads(job)
    limit()
    is_ours = name == "ours"
    scored = ScoredLlama(hidden, layers, MEMORY_ROWS, batch * LENGTH if is_ours else BATCH_TOKENS)
    if is_ours:
        report_peak(lambda: score_examples(scored.passes, scored.rows, scored.posterior))
    else:
        report_peak(scored.peer(name, batch))
