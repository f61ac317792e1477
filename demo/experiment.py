"""Train on noisy labels, fit, save, load, choose; and what each rule's choice is worth by the number of candidates."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from bayesrm_fast import BayesianRewardModel, Candidates
from bayesrm_fast.cli.terminal import progress_bar
from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.estimators import expected_best_of_n, sizes_up_to
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.data import embedded_encoder
from demo.task import Task, agreement

MAP, DEFAULT = "reward alone (MAP)", "reward − relative std (default)"
MAX_LENGTH = 64


@dataclass(frozen=True)
class Scale:
    """How much there is of everything."""

    pairs: int = 160
    noise: float = 0.4
    epochs: int = 4
    prompts: int = 40
    candidates: int = 64


@dataclass(frozen=True)
class Outcome:
    """What one seed's reward model chooses.

    Attributes:
        rm: the fitted model, as it was loaded.
        sets: prompts with their candidates and gold.
        best: the default's choice for each prompt.
        curves: by rule the expected gold of its best of n, prompts × `sizes_up_to(candidates)`.
    """

    rm: BayesianRewardModel
    sets: list[Candidates]
    best: list[BestOfN]
    curves: dict[str, Tensor]


def run(seed: int, scale: Scale, folder: Path, console: Console) -> Outcome:
    """The whole job, with everything drawn by the seed; adapter and fitted model are left in `folder`."""
    task = Task(seed)
    pairs = task.pairs(scale.pairs, scale.noise)
    adapter, model = folder / "adapter", folder / "model"
    for old in (adapter, model):
        shutil.rmtree(old, ignore_errors=True)
    options = TrainOptions(
        target_modules=["query", "value"],
        epochs=scale.epochs,
        learning_rate=1e-3,
        max_length=MAX_LENGTH,
        seed=seed,
    )
    with progress_bar("training", console) as tell:
        train_adapter(embedded_encoder(), pairs, adapter, options, tell)

    rm = BayesianRewardModel.from_pretrained(adapter, max_length=MAX_LENGTH)
    with progress_bar("fitting the posterior", console) as tell:
        rm.fit(pairs, progress=tell)
    rm.save_pretrained(model)
    rm = BayesianRewardModel.from_pretrained(model)

    sets = []
    for prompt in task.held_out[: scale.prompts]:
        texts = task.candidates(prompt, scale.candidates)
        sets.append(Candidates(prompt.text, texts, gold=task.gold(prompt, texts)))
    with progress_bar("choosing", console) as tell:
        best = rm.best_of_each(sets, progress=tell)
    return Outcome(rm, sets, best, {name: expected_gold(of, sets) for name, of in scores(sets, best).items()})


def scores(sets: list[Candidates], best: list[BestOfN]) -> dict[str, list[Tensor]]:
    """Of every rule, for each prompt's candidates: the two to compare, controls that use no reward, and the gold."""
    return {
        MAP: [one.mean for one in best],
        DEFAULT: [one.scores for one in best],
        "control: smallest relative std": [-one.variance for one in best],
        "control: most words in common (MBR)": [torch.tensor(agreement(one.responses)) for one in sets],
        "oracle": [torch.tensor(one.gold) for one in sets],
    }


def expected_gold(scored: list[Tensor], sets: list[Candidates]) -> Tensor:  # shape: (prompts, sizes)
    """Expected gold of best-of-n by these scores."""
    rows = []
    for values, one in zip(scored, sets, strict=True):
        gold = torch.tensor(one.gold, dtype=torch.float64)
        rows.append([expected_best_of_n(values, gold, n) for n in sizes_up_to(len(gold))])
    return torch.tensor(rows, dtype=torch.float64)
