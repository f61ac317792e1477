"""A seed's reward models and all that rules need to know of its tasks, kept in a folder task by task."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import progress_bar
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.overoptimisation.caution import caution
from benchmarks.overoptimisation.parts import Part
from benchmarks.overoptimisation.steps import Arrays, OfTask, joint, member, structures, virtual
from benchmarks.overoptimisation.tasks import Pairs, Task

MEMBERS = 5
"""Of the largest ensemble; the first is the model itself."""


def measured(
    part: Part, seed: int, noise: float, folder: Path, further: bool, ensembles: bool
) -> tuple[list[Task], list[Arrays]]:
    """Every task with its arrays; what the folder holds is not computed again.

    Args:
        part, seed, noise: what is measured.
        folder: of all that is kept.
        further: with the joint posterior and virtual adapters.
        ensembles: with four more reward models, trained on the same pairs from other beginnings.
    """
    folder = folder / f"seed{seed}-noise{noise:g}"
    pairs, tasks = part.split(seed, noise)
    load = partial(_reward_model, part, pairs, folder)
    steps: dict[str, Callable[[], OfTask]] = {
        "structures": lambda: structures(load(seed), pairs),
        "caution": lambda: caution(load(seed), pairs),
    }
    if further:
        steps["joint"] = lambda: joint(load(seed), pairs)
        steps["virtual"] = lambda: virtual(load(seed), pairs, list(part.target_modules))
    if ensembles:
        for number in range(1, MEMBERS):
            steps[f"member{number}"] = lambda number=number: member(load(1000 * number + seed), number)
    found: list[Arrays] = [{} for _ in tasks]
    for name, step in steps.items():
        for arrays, more in zip(found, _of_each(step, tasks, folder / name), strict=True):
            arrays.update(more)
    return tasks, found


def _reward_model(part: Part, pairs: Pairs, folder: Path, seed: int) -> BayesianRewardModel:
    adapter = folder / f"adapter-{seed}"
    if not (adapter / "adapter_config.json").exists():
        options = TrainOptions(
            target_modules=part.target_modules,
            epochs=part.epochs,
            learning_rate=5e-4,
            max_length=part.max_length,
            seed=seed,
        )
        with progress_bar(f"training {adapter.name}") as tell:
            train_adapter(part.base(), pairs, adapter, options, tell)
    return BayesianRewardModel.from_pretrained(adapter, max_length=part.max_length, device="cpu", dtype=torch.float32)


def _of_each(step: Callable[[], OfTask], tasks: list[Task], folder: Path) -> list[Arrays]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.npz" for number in range(len(tasks))]
    absent = [i for i, path in enumerate(paths) if not path.exists()]
    if absent:
        of_task = step()
        with progress_bar(f"{folder.parent.name} {folder.name}") as tell:
            for done, i in enumerate(absent):
                writing = paths[i].with_suffix(".writing.npz")
                np.savez(writing, **of_task(tasks[i]))  # type: ignore[arg-type]
                writing.rename(paths[i])
                tell(done + 1, len(absent))
    return [dict(np.load(path)) for path in paths]
