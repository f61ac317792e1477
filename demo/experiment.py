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
SMALLEST_STD, MBR = "control: smallest relative std", "control: most words in common (MBR)"
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
        sets: prompts with their candidates.
        gold: of each prompt's candidates, prompts × candidates.
        best: the default's choice for each prompt.
        curves: by rule the expected gold of its best of n, prompts × `sizes_up_to(candidates)`.
    """

    rm: BayesianRewardModel
    sets: list[Candidates]
    gold: Tensor
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

    prompts = task.held_out[: scale.prompts]
    sets = [Candidates(prompt.text, task.candidates(prompt, scale.candidates)) for prompt in prompts]
    gold = [task.gold(prompt, texts_of(one)) for prompt, one in zip(prompts, sets, strict=True)]
    with progress_bar("choosing", console) as tell:
        best = rm.best_of_each(sets, progress=tell)
    return outcome_of(rm, sets, torch.tensor(gold, dtype=torch.float64), best)


def texts_of(one: Candidates) -> list[str]:
    """The candidates, which are plain texts here."""
    return [str(text) for text in one.responses]


def outcome_of(
    rm: BayesianRewardModel,
    sets: list[Candidates],
    gold: Tensor,  # shape: (prompts, candidates)
    best: list[BestOfN],
) -> Outcome:
    """With the curves of the two rules to compare, of controls that use no reward, and of the gold itself."""
    scores = {
        MAP: torch.stack([one.mean for one in best]),
        DEFAULT: torch.stack([one.scores for one in best]),
        SMALLEST_STD: -torch.stack([one.variance for one in best]),
        MBR: torch.tensor([agreement(texts_of(one)) for one in sets]),
        "oracle": gold,
    }
    return Outcome(rm, sets, gold, best, {name: expected_gold(values, gold) for name, values in scores.items()})


def expected_gold(
    scores: Tensor,  # shape: (prompts, candidates)
    gold: Tensor,  # shape: (prompts, candidates)
) -> Tensor:  # shape: (prompts, sizes)
    """Expected gold of the best of 1, 2, 4, … by these scores."""
    sizes = sizes_up_to(gold.shape[1])
    rows = [[expected_best_of_n(values, worth, n) for n in sizes] for values, worth in zip(scores, gold, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)
