"""What the uncertainty of steps is worth: labels of held-out steps, and the best of a problem's solutions.

    python -m benchmarks.steps                       # 20 minutes of one core
    python -m benchmarks.steps --part qa_feedback    # sentences of answers
    python -m benchmarks.steps --quick               # a minute; shows that everything runs

MiniLM with LoRA learns the labels of PRMBench's steps, whose wrong solutions are edits of right ones. Whole problems
are held out. The best of n is the solution with the largest aggregate of its steps; it is right where every step is.
Wrong solutions differ from right ones in length, so the one with the fewest steps stands beside. Penalties are by each
aggregate's own std, and by the std of its difference to the mean of the problem's solutions (`score_aggregates`), by
the posterior and by the prior alone.

Of qa_feedback the steps are the sentences of an answer, each correct where no error that people marked touches it. One
answer to each question is marked, so nothing is chosen there. The model sees the question, and not the passages.
"""

import json
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.evaluate.uncertainty import auroc
from bayesrm_fast.fit.reliability import Reliability, reliability
from bayesrm_fast.model.readout import OnePassAggregate
from bayesrm_fast.score.segments import Aggregate, SegmentScores
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.estimators import mean_and_standard_error
from bayesrm_fast.text.encoder import TextEncoder
from bayesrm_fast.text.segments import SegmentEncoder
from bayesrm_fast.text.steps import stepwise_responses
from bayesrm_fast.train.adapter import TrainOptions
from bayesrm_fast.train.steps import train_step_adapter
from benchmarks import machine
from benchmarks.data import RESULTS, embedded_encoder
from benchmarks.overoptimisation.steps import PRIOR
from benchmarks.overoptimisation.tasks import QA_FEEDBACK, read

SEPARATOR = "[SEP]"
"""BERT's tokenizers drop line breaks."""

FIGURES = ("accuracy", "nll", "brier", "ece")
AGGREGATES: tuple[Aggregate, ...] = ("mean", "last", "min", "product")
PENALTIES = (0.0, 0.5, 1.0, 2.0)
FEWEST_STEPS = "fewest steps"


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    problems: int
    held_out_problems: int
    epochs: int
    batch: int
    max_length: int
    seeds: int


QUICK = Scale(problems=4, held_out_problems=2, epochs=1, batch=4, max_length=128, seeds=1)

Rows = list[dict[str, Any]]


def solutions() -> list[Rows]:
    """PRMBench's solutions of each problem that has right and wrong ones."""
    by_prompt: dict[str, Rows] = {}
    for row in read("prm_steps.jsonl.gz"):
        by_prompt.setdefault(row["prompt"], []).append(row)
    return [rows for rows in by_prompt.values() if _has_both(rows)]


def answers() -> list[Rows]:
    """The marked answer to each question of qa_feedback, in sentences."""
    return [[in_sentences(row)] for row in read(QA_FEEDBACK)]


SENTENCE = re.compile(r"""\S.*?(?:[.!?]["')]*(?=\s|$)|$)""", re.DOTALL)


def in_sentences(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in trl's stepwise form; a sentence's label is whether no marked error touches it."""
    sentences = list(SENTENCE.finditer(row["responses"][0]))
    return {
        "prompt": row["question"],
        "completions": [one.group() for one in sentences],
        "labels": [
            all(error["end"] <= one.start() or one.end() <= error["start"] for error in row["spans"])
            for one in sentences
        ],
    }


def _has_both(rows: Rows) -> bool:
    """Whether some solutions are right, and some wrong."""
    return len({all(row["labels"]) for row in rows}) == 2


@dataclass(frozen=True)
class Part:
    """A data set.

    Attributes:
        groups: its problems, each with its solutions.
        keeps: whether a problem is of use with those of its solutions that are short enough.
        full: how large a run is.
        best_of_n: whether one of a problem's solutions is chosen.
    """

    groups: Callable[[], list[Rows]]
    keeps: Callable[[Rows], bool]
    full: Scale
    best_of_n: bool


class PartName(StrEnum):
    """What the steps are of."""

    PRM = "prm"
    QA_FEEDBACK = "qa_feedback"


PARTS = {
    PartName.PRM: Part(
        solutions,
        _has_both,
        Scale(problems=100, held_out_problems=60, epochs=4, batch=8, max_length=192, seeds=2),
        best_of_n=True,
    ),
    PartName.QA_FEEDBACK: Part(
        answers,
        bool,
        Scale(problems=300, held_out_problems=200, epochs=4, batch=8, max_length=256, seeds=2),
        best_of_n=False,
    ),
}


def that_fit(part: Part, count: int, max_length: int) -> list[Rows]:
    """Of problems in an order drawn by lot, the solutions that are short enough, until `count` problems are kept."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder())
    encoder = SegmentEncoder(TextEncoder(tokenizer, max_length), SEPARATOR)
    groups = part.groups()
    random.Random(0).shuffle(groups)
    found: list[Rows] = []
    for rows in groups:
        short = [row for row in rows if _fits(encoder, row)]
        if part.keeps(short):
            found.append(short)
        if len(found) == count:
            return found
    raise SystemExit(f"there are {len(found)} problems with solutions of {max_length} tokens, not {count}")


def _fits(encoder: SegmentEncoder, row: Any) -> bool:
    try:
        return not encoder.encode_steps(stepwise_responses([row], labelled=True))[0].row.truncated
    except InputError:
        return False


def trained(rows: Sequence[Any], scale: Scale, seed: int) -> BayesianRewardModel:
    """The encoder as a token classifier, with LoRA."""
    options = TrainOptions(
        target_modules=["query", "value"],
        epochs=scale.epochs,
        learning_rate=1e-3,
        batch_size=scale.batch,
        max_length=scale.max_length,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        train_step_adapter(embedded_encoder(), rows, folder, options, step_separator=SEPARATOR)
        return BayesianRewardModel.from_pretrained(folder, device="cpu", max_length=scale.max_length)


def of_labels(
    scores: Sequence[SegmentScores], rows: Sequence[Any], probability: Callable[[SegmentScores], Tensor]
) -> Reliability:
    """What the probabilities that were given to the labels are worth."""
    given = []
    for one, row in zip(scores, rows, strict=True):
        of_correct, labels = probability(one), torch.tensor(row["labels"])
        given.append(torch.where(labels, of_correct, 1 - of_correct))
    return reliability(torch.cat(given))


def best_of_n(
    groups: Sequence[Sequence[Any]], scores: Sequence[SegmentScores], relative: Mapping[str, RewardScores]
) -> dict[str, list[float]]:
    """Whether each problem's chosen solution is right, 0 or 1, by each aggregate and penalty; the share for chance."""
    moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for by in AGGREGATES:
        aggregates = [one.aggregate(by) for one in scores]
        moments[by] = np.array([one.mean for one in aggregates]), np.array([one.std for one in aggregates])
    for name, own in relative.items():
        moments[name] = own.mean.numpy(), own.std.numpy()
    found: dict[str, list[float]] = {
        "chance": [float(np.mean([all(row["labels"]) for row in rows])) for rows in groups],
        FEWEST_STEPS: [float(all(min(rows, key=lambda row: len(row["labels"]))["labels"])) for rows in groups],
    }
    for name, (mean, std) in moments.items():
        for k in PENALTIES:
            penalised, before = mean - k * std, 0
            for rows in groups:
                best = int(np.argmax(penalised[before : before + len(rows)]))
                found.setdefault(f"{name}, k = {k:g}", []).append(float(all(rows[best]["labels"])))
                before += len(rows)
    return found


def gained(seeds: Sequence[Any], name: str, base: str) -> tuple[float, float]:
    """Mean gain of one way to choose over another, and its standard error over problems (of each's mean of seeds)."""
    ours, theirs = (np.mean([one["best_of_n"][way] for one in seeds], 0) for way in (name, base))
    return mean_and_standard_error((ours - theirs).tolist())


def relative_scores(rm: BayesianRewardModel, rows: Sequence[Any]) -> dict[str, RewardScores]:
    """By each aggregate, and as a control by the prior alone, whose mean variance is made that of the posterior."""
    found: dict[str, RewardScores] = {}
    for by in get_args(OnePassAggregate):
        found[f"{by}, relative"] = own = rm.score_aggregates(rows, by, relative_to="prompt")
        precision, rm.fitted.prior_precision = rm.fitted.prior_precision, PRIOR
        prior = rm.score_aggregates(rows, by, relative_to="prompt").variance
        rm.fitted.prior_precision = precision
        found[f"{by}, relative, prior alone"] = replace(own, variance=prior * (own.variance.mean() / prior.mean()))
    return found


def one_seed(part: Part, scale: Scale, seed: int) -> dict[str, Any]:
    """Train, fit, score and tell."""
    groups = that_fit(part, scale.problems + scale.held_out_problems, scale.max_length)
    fitted, held_out = groups[: -scale.held_out_problems], groups[-scale.held_out_problems :]
    rows = [row for group in fitted for row in group]
    rm = trained(rows, scale, seed)
    rm.fit(rows, structure="ggn")
    tested = [row for group in held_out for row in group]
    scores = rm.score_steps(tested)
    is_correct = torch.tensor([label for row in tested for label in row["labels"]])
    labels = {
        "MAP": of_labels(scores, tested, lambda one: torch.sigmoid(one.mean)),
        "posterior": of_labels(scores, tested, lambda one: one.probability),
    }
    return {
        "steps": sum(len(row["labels"]) for row in tested),
        "auroc": auroc(torch.cat([one.mean for one in scores]), is_correct),
        "correct": float(is_correct.double().mean()),
        "prior_precision": rm.fitted.prior_precision,
        "labels": {name: {figure: getattr(one, figure) for figure in FIGURES} for name, one in labels.items()},
        "best_of_n": best_of_n(held_out, scores, relative_scores(rm, tested)) if part.best_of_n else None,
    }


def show(seeds: Sequence[Any], has_choices: bool) -> None:
    """Means of the seeds."""
    table = Table("", *FIGURES, title=f"{seeds[0]['steps']} held-out steps, mean of {len(seeds)} seeds")
    for name in seeds[0]["labels"]:
        table.add_row(name, *(f"{np.mean([one['labels'][name][figure] for one in seeds]):.3f}" for figure in FIGURES))
    Console(width=140).print(table)
    if not has_choices:
        return
    title = "share of right solutions among the best of n; gain over k = 0"
    table = Table("", *(f"k = {k:g}" for k in PENALTIES), title=title)
    for by in [name.removesuffix(", k = 0") for name in seeds[0]["best_of_n"] if name.endswith(", k = 0")]:
        first, *others = (f"{by}, k = {k:g}" for k in PENALTIES)
        shares = {name: f"{np.mean([one['best_of_n'][name] for one in seeds]):.3f}" for name in (first, *others)}
        gains = ("{:+.3f} ± {:.3f}".format(*gained(seeds, name, first)) for name in others)
        table.add_row(
            by, shares[first], *(f"{shares[name]} ({gain})" for name, gain in zip(others, gains, strict=True))
        )
    for name in (FEWEST_STEPS, "chance"):
        table.add_row(name, f"{np.mean([one['best_of_n'][name] for one in seeds]):.3f}")
    Console(width=140).print(table)


def main(
    part: Annotated[PartName, typer.Option(help="What the steps are of.")] = PartName.PRM,
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Every seed, and the mean of all."""
    quiet_transformers()
    asked = PARTS[part]
    scale = QUICK if quick else asked.full
    seeds = [one_seed(asked, scale, seed) for seed in range(scale.seeds)]
    of_part = "" if part is PartName.PRM else f"-{part}"
    results = {
        "command": f"python -m benchmarks.steps --part {part}" + " --quick" * quick,
        "machine": machine.describe(),
        "scale": vars(scale),
        "by_seed": seeds,
    }
    (output / f"steps{of_part}{'-quick' * quick}.json").write_text(json.dumps(results, indent=1) + "\n")
    show(seeds, asked.best_of_n)


if __name__ == "__main__":
    typer.run(main)
