"""What rewards with uncertainty cost, beside the reward alone and beside the peers.

    python -m benchmarks.scoring                    # all parts, 80 minutes on two cores
    python -m benchmarks.scoring --part shapes      # one of the parts below, or gpu
    python -m benchmarks.scoring --quick            # a minute; shows that everything runs

Formulations take turns in one process; memory is measured in a process for each. `benchmarks/peers.py` says what a peer
needs to run at all; `tests/peers.txt` installs them.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bayesrm_fast.model.passes import Passes, unit_cotangent
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.variances import score_examples
from bayesrm_fast.text.batches import plan_batches
from benchmarks import machine, peers
from benchmarks.alpaca import alpaca_part, alpaca_virtual_part
from benchmarks.data import RESULTS
from benchmarks.memory import limit, peak_of, report_peak
from benchmarks.on_gpu import gpu_part
from benchmarks.shapes import (
    LlamaShape,
    fitted,
    passes_of,
    random_ggn,
    random_pairs,
    random_rows,
    virtual_passes_of,
)
from benchmarks.timing import in_turns

LENGTH = 128
SHAPES = {  # hidden size: layers, rows
    256: (4, 64),
    512: (4, 32),
    1024: (2, 16),
}
PEER_BATCHES = (1, 8, 16)
GGN_RANK = 128
PATIENCE = 40.0
"""Seconds of one formulation; a slower one gets fewer than the five rounds, and its row says how many."""


class Nothing:
    """A consumer that leaves the price of the pass alone."""

    gradients_alone = True

    def consume(self, site: Any, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Do nothing."""


class Subject:
    """A model of known shape with a fitted posterior, and every formulation of scoring its rows."""

    def __init__(self, hidden: int, layers: int, rows: int, batch_tokens: int = 4096) -> None:
        self.model = LlamaShape(hidden, layers).model()
        self.pairs = random_pairs(4, LENGTH)
        self.rows = random_rows([LENGTH] * rows)
        self.ids = torch.tensor([row.input_ids for row in self.rows])
        self.passes: Passes = passes_of(self.model, batch_tokens)
        self.posterior = fitted(self.passes, self.pairs)

    def batches(self) -> list[dict[str, Tensor]]:
        """The inputs of our batches."""
        plan = plan_batches(self.rows, self.passes.budget.batch_tokens)
        return [self.passes.collate([self.rows[i] for i in batch]).model_inputs() for batch in plan]

    def formulations(self) -> dict[str, Callable[[], Any]]:
        """Those that need no peer."""
        batches = self.batches()

        def plain_in_input_order() -> None:
            with torch.no_grad():
                for part in self.ids.split(32):
                    self.model(input_ids=part, attention_mask=torch.ones_like(part)).logits  # noqa: B018

        def plain_over_our_batches() -> None:
            with torch.no_grad():
                for inputs in batches:
                    self.model(**inputs).logits  # noqa: B018

        def autograd() -> None:
            peers.train_lora_alone(self.model)
            for inputs in batches:
                self.model(**inputs).logits.sum().backward()
            self.model.zero_grad()

        def empty_consumer() -> None:
            for _ in self.passes.over(self.rows, unit_cotangent, Nothing):
                pass

        return {
            "plain forward, batches of 32": plain_in_input_order,
            "plain forward, our batches": plain_over_our_batches,
            "forward and backward by autograd": autograd,
            "ours, empty consumer": empty_consumer,
            "ours, means": lambda: rewards_of(self.passes, self.rows, range(len(self.rows))),
            "ours, mean and variance": lambda: score_examples(self.passes, self.rows, self.posterior),
            "a loop over rows": lambda: peers.loop_scores(self.model, self.ids, self._weigh),
            **{f"an ensemble of {n}": self._ensemble(n) for n in (3, 5)},
        }

    def _weigh(self, gradients: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for tap in self.passes.tapped.taps:
            for site, name in zip(tap.sites, ("lora_A", "lora_B"), strict=True):
                gradient = gradients[f"base_model.model.{tap.name}.{name}.default.weight"]
                gradient = gradient if name == "lora_A" else gradient.T
                block, (weight, residual) = self.posterior.blocks[site.name], self.posterior.weights(site.name)
                rotated = block.basis_p.T @ gradient
                inside = rotated @ block.basis_q
                outside = rotated - inside @ block.basis_q.T
                total = total + (weight * inside.square()).sum() + residual @ outside.square().sum(1)
        return total

    def _ensemble(self, members: int) -> Callable[[], Any]:
        # On a model of its own: peft's further adapters would be found by the taps of this one.
        model = LlamaShape(self.model.config.hidden_size, self.model.config.num_hidden_layers).model()
        names = ["default", *(f"member{i}" for i in range(1, members))]
        for name in names[1:]:
            model.add_adapter(name, model.peft_config["default"])
        model.eval()
        return lambda: peers.ensemble_scores(model, names, self.ids, 32)

    def laplace_torch(self) -> Any:
        """The peer's posterior of the same pairs."""
        pairs = torch.tensor([[row.input_ids for row in pair.rows] for pair in self.pairs])
        return peers.laplace_torch(self.model, pairs, self.posterior.prior_precision)

    def peer(self, name: str, batch: int, posterior: Any = None) -> Callable[[], tuple[Tensor, Tensor]]:
        """A peer over our rows."""
        if name == "laplace-torch":
            fitted_peer = self.laplace_torch() if posterior is None else posterior
            return lambda: peers.laplace_torch_scores(fitted_peer, self.ids, batch)
        peers.train_lora_alone(self.model)
        factors = peers.random_factors(self.model, 10)
        return lambda: peers.bayesian_lora_scores(self.model, factors, self.ids, batch)


def agreement(subject: Subject) -> dict[str, float]:
    """How far our numbers are from laplace-torch's on the same pairs, once its factor of two is taken out."""
    posterior = fitted(subject.passes, subject.pairs, rank=None)
    few = subject.rows[:4]
    mean, variance = score_examples(subject.passes, few, posterior)
    peer = subject.laplace_torch()
    for values in peer.H.eigenvalues:
        values[0].mul_(0.5)
    peer_mean, peer_variance = peers.laplace_torch_scores(peer, subject.ids[:4], 1)
    return {
        "mean_absolute": float((mean - peer_mean).abs().max()),
        "variance_relative": float((variance / peer_variance - 1).abs().max()),
    }


def memory_of(hidden: int, layers: int, rows: int, name: str, batch: int) -> dict[str, Any]:
    """Peak of one formulation in a process of its own."""
    return peak_of("benchmarks.scoring", "--child", json.dumps([hidden, layers, rows, name, batch]))


def child(job: str) -> None:
    """What `memory_of` starts."""
    hidden, layers, rows, name, batch = json.loads(job)
    limit()
    subject = Subject(hidden, layers, rows, batch * LENGTH if name == "ours" else 4096)
    if name == "ours":
        run: Callable[[], Any] = lambda: score_examples(  # noqa: E731
            subject.passes, subject.rows, subject.posterior
        )
    else:
        run = subject.peer(name, batch)
    report_peak(run)


def shapes_part(quick: bool) -> dict[str, Any]:
    """Every formulation on the Llama shapes: time in turns, memory at one batch."""
    results = {}
    for hidden, (layers, rows) in ({64: (1, 16)} if quick else SHAPES).items():
        subject = Subject(hidden, layers, rows)
        memory = {
            f"{name}, batch of {batch}": memory_of(hidden, layers, 16, name, batch)
            for name in ("ours", "laplace-torch", "bayesian-lora")
            for batch in ((8,) if quick else PEER_BATCHES)
            if name != "bayesian-lora" or importlib.util.find_spec("bayesian_lora")
        }
        formulations = subject.formulations()
        laplace = subject.laplace_torch()
        formulations |= {
            row: subject.peer(*_name_and_batch(row), posterior=laplace)
            for row, peak in memory.items()
            if not row.startswith("ours") and "failed" not in peak
        }
        timed = in_turns(formulations, 2 if quick else 5, patience=PATIENCE)
        plain = timed["plain forward, our batches"]["seconds"]
        for measured in timed.values():
            measured["plain_forwards"] = measured["seconds"] / plain
        for name, peak in memory.items():
            timed.setdefault(name, {})["memory"] = peak
        results[f"hidden {hidden}"] = {"layers": layers, "rows": rows, "length": LENGTH, "formulations": timed}
        if hidden in (64, 256):
            results[f"hidden {hidden}"]["agreement_with_laplace_torch"] = agreement(subject)
    return results


def best_batches_part(quick: bool) -> dict[str, Any]:
    """The peers at small batches, where they are at their best."""
    results = {}
    for hidden, (layers, rows) in ({64: (1, 16)} if quick else SHAPES).items():
        subject = Subject(hidden, layers, rows)
        ours = subject.formulations()
        laplace = subject.laplace_torch()
        formulations = {name: ours[name] for name in ("plain forward, our batches", "ours, mean and variance")}
        formulations |= {f"laplace-torch, batch of {n}": subject.peer("laplace-torch", n, laplace) for n in (1, 2, 4)}
        if importlib.util.find_spec("bayesian_lora"):
            formulations |= {f"bayesian-lora, batch of {n}": subject.peer("bayesian-lora", n) for n in (2, 4)}
        timed = in_turns(formulations, 2 if quick else 5, patience=PATIENCE)
        for row in timed.values():
            row["plain_forwards"] = row["seconds"] / timed["plain forward, our batches"]["seconds"]
        results[f"hidden {hidden}"] = {"layers": layers, "rows": rows, "length": LENGTH, "formulations": timed}
    return results


def _name_and_batch(row: str) -> tuple[str, int]:
    name, batch = row.split(", batch of ")
    return name, int(batch)


def structures_part(quick: bool) -> dict[str, Any]:
    """Mean and variance under kfac, rank 64, and ggn, K = 128; what it takes does not depend on the bases' values."""
    results = {}
    for hidden, (layers, rows) in ({64: (1, 16)} if quick else SHAPES).items():
        subject = Subject(hidden, layers, rows)
        ours = subject.formulations()
        ggn = random_ggn(subject.posterior, GGN_RANK)
        formulations = {
            "plain forward, our batches": ours["plain forward, our batches"],
            "kfac": ours["ours, mean and variance"],
            "ggn": lambda subject=subject, ggn=ggn: score_examples(subject.passes, subject.rows, ggn),
        }
        timed = in_turns(formulations, 2 if quick else 7)
        for row in timed.values():
            row["plain_forwards"] = row["seconds"] / timed["plain forward, our batches"]["seconds"]
        results[f"hidden {hidden}"] = {
            "layers": layers,
            "rows": rows,
            "length": LENGTH,
            "formulations": timed,
            "ggn_over_kfac": timed["ggn"]["seconds"] / timed["kfac"]["seconds"],
        }
    return results


def virtual_part(quick: bool) -> dict[str, Any]:
    """The merged model with virtual adapters of rank 8, over its own plain forward."""
    results = {}
    for hidden, (layers, count) in ({64: (1, 16)} if quick else SHAPES).items():
        model = LlamaShape(hidden, layers).model().merge_and_unload()
        pairs, rows = random_pairs(4, LENGTH), random_rows([LENGTH] * count)
        passes = virtual_passes_of(model, 4096, pairs)
        kfac = fitted(passes, pairs)
        ggn = random_ggn(kfac, GGN_RANK)
        plan = plan_batches(rows, 4096)
        batches = [passes.collate([rows[i] for i in batch]).model_inputs() for batch in plan]

        def plainly(model: Any = model, batches: list[dict[str, Tensor]] = batches) -> None:
            with torch.no_grad():
                for inputs in batches:
                    model(**inputs).logits  # noqa: B018

        def scored(posterior: Posterior, passes: Passes = passes, rows: list[Any] = rows) -> Callable[[], Any]:
            return lambda: score_examples(passes, rows, posterior)

        formulations: dict[str, Callable[[], Any]] = {
            "plain forward, our batches": plainly,
            "ours, means": lambda passes=passes, rows=rows: rewards_of(passes, rows, range(len(rows))),
            "ours, mean and variance, kfac": scored(kfac),
            "ours, mean and variance, ggn": scored(ggn),
        }
        timed = in_turns(formulations, 2 if quick else 7)
        for row in timed.values():
            row["plain_forwards"] = row["seconds"] / timed["plain forward, our batches"]["seconds"]
        results[f"hidden {hidden}"] = {"layers": layers, "rows": count, "length": LENGTH, "formulations": timed}
    return results


def prompts_part(quick: bool) -> dict[str, Any]:
    """Means of candidates that share a prompt, over the plain forward of their whole rows."""
    hidden, layers, count = (64, 1, 8) if quick else (512, 4, 64)
    model = LlamaShape(hidden, layers).model()
    passes = passes_of(model, 4096)
    results = {}
    for prompt in (16, 64, 512):
        rows = random_rows([prompt + 64] * count, prompt=prompt)
        plan = plan_batches(rows, 4096)
        batches = [passes.collate([rows[i] for i in batch]).model_inputs() for batch in plan]
        outputs: dict[str, Tensor] = {}

        def plainly(
            batches: list[dict[str, Tensor]] = batches,
            plan: list[list[int]] = plan,
            outputs: dict[str, Tensor] = outputs,
        ) -> None:
            with torch.no_grad():
                found = torch.cat([model(**inputs).logits[:, 0] for inputs in batches])
            outputs["plain"] = torch.empty_like(found)
            outputs["plain"][[i for batch in plan for i in batch]] = found

        def ours(rows: list[Any] = rows, outputs: dict[str, Tensor] = outputs) -> None:
            outputs["ours"] = rewards_of(passes, rows, [0] * len(rows))

        timed = in_turns({"plain forward of whole rows": plainly, "ours, means": ours}, 2 if quick else 5)
        results[f"prompt of {prompt} tokens"] = {
            "responses": f"{count} of 64 tokens",
            "formulations": timed,
            "ratio": timed["ours, means"]["seconds"] / timed["plain forward of whole rows"]["seconds"],
            "largest_difference": float((outputs["plain"] - outputs["ours"]).abs().max()),
        }
    return results


def fit_part(quick: bool) -> dict[str, Any]:
    """A kfac fit over the forward and backward pass of the same pairs by autograd."""
    hidden, layers, count = (64, 1, 4) if quick else (512, 4, 64)
    model = LlamaShape(hidden, layers).model()
    passes = passes_of(model, 4096)
    pairs = random_pairs(count, LENGTH)
    plan = plan_batches(pairs, 4096)
    batches = [passes.collate([pairs[i] for i in batch]).model_inputs() for batch in plan]

    def autograd() -> None:
        peers.train_lora_alone(model)
        for inputs in batches:
            rewards = model(**inputs).logits[:, 0]
            (-torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2])).sum().backward()
        model.zero_grad()

    class Moments:
        gradients_alone = False

        def consume(self, site: Any, p: Tensor, q: Tensor, offsets: Tensor) -> None:
            pass

    def empty() -> None:
        for _ in passes.over(pairs, unit_cotangent, Moments):
            pass

    timed = in_turns(
        {
            "forward and backward by autograd": autograd,
            "ours, empty consumer": empty,
            "ours, kfac fit": lambda: fitted(passes, pairs),
        },
        2 if quick else 5,
    )
    ratio = timed["ours, kfac fit"]["seconds"] / timed["forward and backward by autograd"]["seconds"]
    return {"hidden": hidden, "pairs": f"{count} of 2 × {LENGTH} tokens", "formulations": timed, "ratio": ratio}


def memory_part(quick: bool) -> dict[str, Any]:
    """Peak memory of a stream of many rows over that of few."""
    peaks = {n: peak_of("benchmarks.stream_memory", str(n), "128", "2") for n in ((8, 64) if quick else (64, 4096))}
    few, many = (peak["before_bytes"] + peak["peak_bytes"] for peak in peaks.values())
    return {"rows": {str(n): peak for n, peak in peaks.items()}, "ratio": many / few}


def compile_part(quick: bool) -> dict[str, Any]:
    """A forward pass without and with torch.compile, and ours: does compiling pay within 4,096 rows?"""
    import time

    hidden, layers, count = (64, 1, 8) if quick else (512, 4, 32)
    model = LlamaShape(hidden, layers).model()
    rows = random_rows([LENGTH] * count)
    ids = torch.tensor([row.input_ids for row in rows])
    passes = passes_of(model, 4096)
    compiled = torch.compile(model, dynamic=True)
    results: dict[str, Any] = {}

    def forward(module: Any) -> None:
        with torch.no_grad():
            module(input_ids=ids).logits  # noqa: B018

    start = time.perf_counter()
    try:
        forward(compiled)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    results["first_call_seconds"] = time.perf_counter() - start
    timed = in_turns(
        {
            "plain": lambda: forward(model),
            "compiled": lambda: forward(compiled),
            "ours, means": lambda: rewards_of(passes, rows, range(count)),
        },
        2 if quick else 5,
    )
    of_4096 = {name: row["seconds"] * 4096 / count for name, row in timed.items()}
    of_4096["compiled"] += results["first_call_seconds"]
    return results | {"formulations": timed, "seconds_of_4096_rows": of_4096}


def packing_part(quick: bool) -> dict[str, Any]:
    """The same rows side by side in one row with positions that start again, under transformers' block mask."""
    hidden, layers, rows = (64, 1, 8) if quick else (512, 4, 32)
    model = LlamaShape(hidden, layers).model()
    batches = {length: torch.tensor([r.input_ids for r in random_rows([length] * rows)]) for length in (32, 128)}
    results: dict[str, Any] = {}
    for length, ids in batches.items():
        packed = ids.reshape(1, -1)
        positions = torch.arange(length).repeat(rows)[None]

        def in_rows(ids: Tensor = ids) -> None:
            with torch.no_grad():
                model(input_ids=ids).logits  # noqa: B018

        def side_by_side(packed: Tensor = packed, positions: Tensor = positions) -> None:
            with torch.no_grad():
                model.get_base_model().model(input_ids=packed, position_ids=positions, use_cache=False)

        timed = in_turns({"rows": in_rows, "packed": side_by_side}, 2 if quick else 5)
        ratio = timed["packed"]["seconds"] / timed["rows"]["seconds"]
        results[f"{rows} rows of {length}"] = {"formulations": timed, "ratio": ratio}
    return results


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "shapes": shapes_part,
    "best_batches": best_batches_part,
    "structures": structures_part,
    "virtual": virtual_part,
    "prompts": prompts_part,
    "fit": fit_part,
    "memory": memory_part,
    "packing": packing_part,
    "compile": compile_part,
    "alpaca": alpaca_part,
    "alpaca_virtual": alpaca_virtual_part,
}


def print_part(name: str, part: dict[str, Any], console: Console) -> None:
    """Times as a table, everything else as it is."""
    has_titles = name in ("shapes", "best_batches", "structures", "virtual", "prompts", "packing", "gpu")
    for title, job in part.items() if has_titles else [(name, part)]:
        table = Table("formulation", "seconds", "rounds", "plain forwards", "peak MiB", title=title)
        for row, values in job.get("formulations", {}).items() if isinstance(job, dict) else ():
            peak = values.get("memory", {})
            table.add_row(
                row,
                f"{values['seconds']:.3g}" if "seconds" in values else "",
                str(values.get("rounds", "")),
                f"{values['plain_forwards']:.2f}" if "plain_forwards" in values else "",
                peak.get("failed") or (f"{peak['peak_bytes'] / 2**20:.0f}" if peak else ""),
            )
        console.print(table)
        console.print({key: value for key, value in job.items() if key != "formulations"})


def main(
    part: Annotated[str, typer.Option(help="all, or one of the parts.")] = "all",
    quick: Annotated[bool, typer.Option(help="Small shapes: shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
    child_job: Annotated[str, typer.Option("--child", hidden=True)] = "",
) -> None:
    """Measure, print the tables and write the JSON file; a part that is measured again replaces itself there."""
    if child_job:
        child(child_job)
        return
    console = Console(width=160)
    device = "cuda" if part == "gpu" else "cpu"
    name = "scoring" + ("-gpu" if part == "gpu" else "") + ("-quick" if quick else "")
    path = output / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() and part != "all" else {}
    results = {"command": "python -m benchmarks.scoring", "parts": before.get("parts", {})}
    for chosen in PARTS if part == "all" else [part]:
        found = gpu_part(quick) if chosen == "gpu" else PARTS[chosen](quick)
        found["machine"] = machine.describe(device)
        print_part(chosen, {k: v for k, v in found.items() if k != "machine"}, console)
        results["parts"][chosen] = found
        path.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
