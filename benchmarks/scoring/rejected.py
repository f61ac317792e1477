"""What was tried and did not pay: `benchmarks/README.md` says why there is no option for it."""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.score.means import rewards_of
from benchmarks.baselines import plain_forward
from benchmarks.scoring.llama import BATCH_TOKENS, LENGTH
from benchmarks.shapes import LlamaShape, passes_of, random_rows
from benchmarks.timing import in_turns


def compile_part(quick: bool) -> dict[str, Any]:
    """A forward pass without and with torch.compile, and ours: does compiling pay within 4,096 rows?"""
    hidden, layers, count = (64, 1, 8) if quick else (512, 4, 32)
    model = LlamaShape(hidden, layers).model()
    rows = random_rows([LENGTH] * count)
    batches = [{"input_ids": torch.tensor([row.input_ids for row in rows])}]
    passes = passes_of(model, BATCH_TOKENS)
    compiled = torch.compile(model, dynamic=True)
    results: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        plain_forward(compiled, batches)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    results["first_call_seconds"] = time.perf_counter() - start
    timed = in_turns(
        {
            "plain": partial(plain_forward, model, batches),
            "compiled": partial(plain_forward, compiled, batches),
            "ours, means": partial(rewards_of, passes, rows),
        },
        2 if quick else 5,
    )
    of_4096 = {name: row["seconds"] * 4096 / count for name, row in timed.items()}
    of_4096["compiled"] += results["first_call_seconds"]
    return results | {"formulations": timed, "seconds_of_4096_rows": of_4096}


def packing_part(quick: bool) -> dict[str, Any]:
    """The same rows side by side in one row with positions that start again, under transformers' block mask."""
    hidden, layers, count = (64, 1, 8) if quick else (512, 4, 32)
    model = LlamaShape(hidden, layers).model()
    results: dict[str, Any] = {}
    for length in (32, 128):
        ids = torch.tensor([row.input_ids for row in random_rows([length] * count)])
        packed, positions = ids.reshape(1, -1), torch.arange(length).repeat(count)[None]

        def side_by_side(packed: Tensor = packed, positions: Tensor = positions) -> None:
            with torch.no_grad():
                model.get_base_model().model(input_ids=packed, position_ids=positions, use_cache=False)

        rows = partial(plain_forward, model, [{"input_ids": ids}])
        timed = in_turns({"rows": rows, "packed": side_by_side}, 2 if quick else 5)
        ratio = timed["packed"]["seconds"] / timed["rows"]["seconds"]
        results[f"{count} rows of {length}"] = {"formulations": timed, "ratio": ratio}
    return results
