"""Train a reward model, fit its posterior, save and load it, and choose among candidates: `python -m demo`.

The reward model learns one thing, that a passage of the Python language reference is better than a damaged copy of it.
On held-out prompts it is then shown what it has never seen: other subjects, source code, echoes, repetitions.
"""

import random
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import progress_bar, quiet_transformers
from bayesrm_fast.select.rules import KnownCandidates, PenalisedReward, first_best
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.data import embedded_encoder
from benchmarks.estimators import auroc
from demo.passages import IN_DISTRIBUTION, Passage, candidates, preference_pairs, split
from demo.report import draw

FOLDER = Path(__file__).resolve().parent
PAIRS, PROMPTS = 400, 40
RULE = PenalisedReward("std", 1.0)


def show_prompt(console: Console, passage: Passage, texts: list[tuple[str, str]], rm: BayesianRewardModel) -> None:
    """Every candidate of one prompt, with the choices of both rules."""
    best = rm.best_of_n(passage.prompt, [text for _, text in texts], RULE, relative=False, exhaustive=True)
    by_mean = first_best(best.mean)
    table = Table("candidate", "reward", "std", "reward − std", "chosen by", title=f"“{passage.prompt[:90]}…”")
    for i, (kind, _) in enumerate(texts):
        chosen = [name for name, index in (("MAP", by_mean), ("penalty", best.index)) if index == i]
        row = (best.mean[i], best.variance[i].sqrt(), best.scores[i])
        table.add_row(kind, *(f"{value:.2f}" for value in row), " and ".join(chosen))
    console.print(table)


def main() -> None:
    """Run the whole job; it takes a few minutes on two cores."""
    start = time.perf_counter()
    console = Console()
    quiet_transformers()
    warnings.filterwarnings("ignore", category=FutureWarning)
    train, held_out = split()
    pairs = preference_pairs(train, PAIRS)
    console.print(f"{len(pairs)} pairs from {len(train)} passages; {len(held_out)} passages of other topics held out")

    adapter, model = FOLDER / "adapter", FOLDER / "model"
    for folder in (adapter, model):
        shutil.rmtree(folder, ignore_errors=True)
    options = TrainOptions(target_modules=["query", "value"], epochs=2, learning_rate=7e-4, max_length=128)
    with progress_bar("training", console) as tell:
        log = train_adapter(embedded_encoder(), pairs, adapter, options, tell)
    console.print(f"trained: loss {log[-1]['loss']:.2f}, accuracy {log[-1]['accuracy']:.2f} ({elapsed(start)})")

    rm = BayesianRewardModel.from_pretrained(adapter, max_length=128)
    with progress_bar("fitting the posterior", console) as tell:
        rm.fit(pairs, structure="ekfac", rank=64, prior_precision="evidence", progress=tell)
    rm.save_pretrained(model)
    rm = BayesianRewardModel.from_pretrained(model)
    console.print(
        f"fitted, saved and loaded: λ = {rm.fitted.prior_precision:.3g} by evidence, "
        f"{rm.fitted.effective_parameters():.0f} of {rm.fitted.parameters} weights determined ({elapsed(start)})"
    )

    chosen = random.Random(1).sample(held_out, PROMPTS)
    sets = [candidates(passage, held_out) for passage in chosen]
    with progress_bar("scoring", console) as tell:
        scores = rm.score(
            [passage.prompt for passage, texts in zip(chosen, sets, strict=True) for _ in texts],
            [text for texts in sets for _, text in texts],
            progress=tell,
        )
    kinds = np.array([[kind for kind, _ in texts] for texts in sets])
    mean, variance = scores.mean.view(kinds.shape), scores.variance.view(kinds.shape)
    after = RULE.scores(KnownCandidates(mean, variance))
    wins = {
        name: [kinds[i, first_best(values[i])] for i in range(PROMPTS)]
        for name, values in (("MAP", mean), ("penalty", after))
    }
    changed = [i for i in range(PROMPTS) if first_best(mean[i]) != first_best(after[i])]
    shown = changed[0] if changed else 0
    console.print(f"the penalty changes the choice at {len(changed)} of {PROMPTS} prompts, such as this one:")
    show_prompt(console, chosen[shown], sets[shown], rm)

    table = Table(
        "candidate", "reward", "std", "reward − std", "MAP wins", "penalised wins", title=f"{PROMPTS} held-out prompts"
    )
    for kind in dict.fromkeys(kinds[0]):
        here = torch.from_numpy(kinds == kind)
        row = (mean[here].mean(), variance[here].sqrt().mean(), after[here].mean())
        counts = (str(wins[name].count(kind)) for name in ("MAP", "penalty"))
        table.add_row(kind, *(f"{value:.2f}" for value in row), *counts)
    console.print(table)

    std = variance.sqrt().numpy()
    inside = np.isin(kinds, IN_DISTRIBUTION)
    separation = auroc(std[inside], std[~inside])
    console.print(f"AUROC of the std, in-distribution against off-distribution text: {separation:.2f}")
    draw(kinds, mean.numpy(), std, wins, separation, FOLDER / "report.png")
    console.print(f"wrote demo/report.png; the whole took {elapsed(start)}")


def elapsed(start: float) -> str:
    """Time since `start`, for a person."""
    seconds = round(time.perf_counter() - start)
    return f"{seconds // 60} min {seconds % 60:02d} s"


if __name__ == "__main__":
    main()
