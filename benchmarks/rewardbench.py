"""What the uncertainty of a reward model is worth on RewardBench: calibrated, selective, and for wrong answers.

    python -m benchmarks.rewardbench            # about half an hour on one core
    python -m benchmarks.rewardbench --quick    # a minute; shows that everything runs

MiniLM with LoRA learns from pairs of hh-rlhf (harmless), a ggn posterior is fitted on the same pairs, and λ and the
temperature are chosen by others. The rows are those of RewardBench as far as public sources have them, `math-prm` and
`xstest` by stand-ins, `refusals` not at all; pairs of hh-rlhf that were kept out are the subset in domain.
"""

import json
import random
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.evaluate.accuracy import ScoredRow
from bayesrm_fast.evaluate.figure import draw
from bayesrm_fast.evaluate.report import report
from bayesrm_fast.evaluate.rows import benchmark_rows
from bayesrm_fast.evaluate.scoring import scored_chunks
from bayesrm_fast.evaluate.uncertainty import auroc, decisions
from bayesrm_fast.text.files import read_rows
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks import machine
from benchmarks.data import RESULTS, data_folder, embedded_encoder

IN_DOMAIN = "hh-harmless"
"""Pairs of the training data's source that were kept out; no subset of RewardBench."""

STAND_INS = {
    "hep-*, llmbar-*": "the same rows as RewardBench's",
    "prmbench-math": "618 solutions of PRMBench, right against with a mistake, in place of math-prm",
    "gsm8k-math": "447 answers to GSM8K, right against wrong, in place of math-prm",
    "xstest-*": "131 and 113 pairs labelled by people, where RewardBench has 154 and 250",
    "donotanswer": "136 pairs labelled by people",
    "alpacaeval-*, mt-bench-*": "drawn by RewardBench's rule from public judgements, not checked by hand",
    "refusals-*": "absent",
}
"""How the rows differ from RewardBench's own."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Scale:
    """How large a run is; of `held_out_pairs` and `rows_of_a_subset` there may be fewer."""

    train_pairs: int
    calibration_pairs: int
    held_out_pairs: int
    rows_of_a_subset: int
    train_length: int
    max_length: int
    epochs: float


FULL = Scale(1150, 150, 200, rows_of_a_subset=10_000, train_length=256, max_length=512, epochs=2)
QUICK = Scale(24, 8, 8, rows_of_a_subset=2, train_length=64, max_length=64, epochs=1)


def hh_pairs(scale: Scale, apart_from: set[str]) -> tuple[list[Any], list[Any], list[Any]]:
    """Pairs to train on, to calibrate by and to hold out, by lot, none of which shares a prompt with the others."""
    by_prompt: dict[str, list[Any]] = {}
    for row in _read("hh_harmless_pairs.jsonl.gz"):
        if row["prompt"].strip() not in apart_from and row["chosen"] != row["rejected"]:
            by_prompt.setdefault(row["prompt"].strip(), []).append(row)
    prompts = list(by_prompt.values())
    random.Random(0).shuffle(prompts)
    pairs = [own[0] for own in prompts]
    ends = np.cumsum([scale.train_pairs, scale.calibration_pairs, scale.held_out_pairs])
    return pairs[: ends[0]], pairs[ends[0] : ends[1]], pairs[ends[1] : ends[2]]


def rewardbench_rows(scale: Scale) -> list[dict[str, Any]]:
    """The rows in place of RewardBench's own, at most so many of each subset."""
    taken: dict[str, int] = {}
    rows = []
    for row in _read("rewardbench_like.jsonl.gz"):
        taken[row["subset"]] = taken.get(row["subset"], 0) + 1
        if taken[row["subset"]] <= scale.rows_of_a_subset:
            rows.append(row)
    return rows


def _read(name: str) -> list[dict[str, Any]]:
    folder = data_folder()
    if folder is None:
        raise SystemExit(f"{name} is not here: set BAYESRM_DATA to the folder that holds it")
    return read_rows(folder / name)


def auroc_gains(rows: list[ScoredRow], temperature: float) -> dict[str, float]:
    """How much better the posterior's probability tells wrong answers than |Δ| does, with a bootstrap's 90 %."""
    made = decisions(1, rows, temperature)
    assert made is not None
    generator = torch.Generator().manual_seed(0)
    gains = []
    for _ in range(RESAMPLES):
        at = torch.randint(len(made.is_right), (len(made.is_right),), generator=generator)
        wrong = ~made.is_right[at]
        by_posterior, by_margin = auroc(-made.confidence[at], wrong), auroc(-made.margin[at], wrong)
        if by_posterior is not None and by_margin is not None:
            gains.append(by_posterior - by_margin)
    low, middle, high = np.quantile(gains, [0.05, 0.5, 0.95]).tolist()
    return {"low": low, "median": middle, "high": high}


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Train, fit, calibrate, score and tell."""
    quiet_transformers()
    scale = QUICK if quick else FULL
    rows = rewardbench_rows(scale)
    train, calibration, held_out = hh_pairs(scale, {row["prompt"].strip() for row in rows})
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            target_modules=["query", "value"],
            epochs=scale.epochs,
            learning_rate=1e-3,
            max_length=scale.train_length,
        )
        train_adapter(embedded_encoder(), train, folder, options)
        rm = BayesianRewardModel.from_pretrained(folder, device="cpu", max_length=scale.max_length)
    rm.fit(train)
    calibrated = rm.calibrate(calibration)
    columns = ("prompt", "chosen", "rejected")
    kept_out = [
        {**{name: pair[name] for name in columns}, "subset": IN_DOMAIN, "id": i} for i, pair in enumerate(held_out)
    ]
    found = benchmark_rows([*rows, *kept_out]).rows
    chunks = (found[start : start + 256] for start in range(0, len(found), 256))
    scored = [one for _, some in scored_chunks(rm, chunks) for one in some]
    told = report(1, scored, rm.fitted.temperature, [IN_DOMAIN])
    suffix = "-quick" * quick
    draw(told, output / f"rewardbench{suffix}.png")
    results = {
        "command": "python -m benchmarks.rewardbench" + " --quick" * quick,
        "machine": machine.describe(),
        "scale": asdict(scale),
        "stand_ins": STAND_INS,
        "prior_precision": calibrated.prior_precision,
        "temperature": calibrated.temperature,
        "auroc_of_posterior_less_margin": {
            "all rows": auroc_gains(scored, rm.fitted.temperature),
            **{
                name: auroc_gains([row for row in scored if (row.subset == IN_DOMAIN) == inside], rm.fitted.temperature)
                for name, inside in (("in domain", True), ("out of domain", False))
            },
        },
        "report": asdict(told),
    }
    (output / f"rewardbench{suffix}.json").write_text(json.dumps(results, indent=1) + "\n")
    _show(asdict(told))


def _show(told: dict[str, Any]) -> None:
    table = Table(
        "rows", "number", "accuracy", "NLL", "NLL, reward alone", "ECE", "ECE, alone", "AUROC P", "|Δ|", "std"
    )
    domains = told["domains"]
    groups = {"all": told["figures"], "in domain": domains["in_domain"], "out of domain": domains["out_of_domain"]}
    for name, one in (groups | told["by_subset"]).items():
        own = one["probabilities"]
        scores = [
            one["accuracy"],
            *(own[which][score] for score in ("nll", "ece") for which in ("posterior", "reward")),
        ]
        doubts = [one["auroc_for_wrong"][which] for which in ("probability", "margin", "std")]
        table.add_row(name, str(one["rows"]), *("" if value is None else f"{value:.3f}" for value in scores + doubts))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
