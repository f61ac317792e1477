"""Train a reward model, fit its posterior, save and load it, and choose among candidates.

    python -m demo            # an encoder judges what a Markov chain writes; a few minutes on two cores
    python -m demo --gemma    # Gemma 3 270M writes and judges, under Gemma's terms; 20 minutes of one core

A reward model that learns from few and noisy labels over-optimises: the more candidates it chooses from, the worse its
choice. The default of `best_of_n` subtracts what it does not know. `demo/task.py` says what is right here.
"""

import time
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bayesrm_fast.cli.terminal import quiet_transformers, show_in_any_encoding
from bayesrm_fast.errors import InputError
from bayesrm_fast.plots import new_figure
from benchmarks.data import GEMMA_TERMS, embedded_decoder
from demo import experiment
from demo.experiment import GEMMA_SCALE, Learner, Scale, minilm, run
from demo.policy import Decoder
from demo.report import course_of_map, differing_prompts, draw, gold_table, prompt_table
from demo.task import Task

FOLDER = Path(__file__).resolve().parent


def main(
    gemma: Annotated[
        bool, typer.Option("--gemma", help="Gemma 3 270M, under Gemma's terms of use, as policy and as reward model.")
    ] = False,
) -> None:
    """Run the whole job and tell."""
    new_figure(1, 1)  # which raises where the extra is not installed, before the work
    console = Console()
    quiet_transformers()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if gemma:
        console.print(GEMMA_TERMS)
        with console.status("reading the weights, which takes a minute or two the first time"):
            base = embedded_decoder()
            task = Task(0, Decoder(base))
        show(task, experiment.gemma(base), GEMMA_SCALE, FOLDER / "gemma", console)
    else:
        show(Task(0), minilm(), Scale(), FOLDER, console)


def show(task: Task, learner: Learner, scale: Scale, folder: Path, console: Console) -> None:
    """What is done, the tables, and the picture, which is left in `folder` beside the model."""
    start = time.perf_counter()
    console.print(
        f"{scale.pairs} pairs of continuations of the Python reference, {scale.noise:.0%} of the labels wrong; "
        f"{scale.prompts} prompts of other articles with {scale.candidates} candidates each; "
        "gold is the share of a text's long words that the article has"
    )
    outcome = run(task, learner, scale, folder, console)
    fitted = outcome.rm.fitted
    console.print(
        f"trained, fitted, saved and loaded: λ = {fitted.prior_precision:.3g} by evidence, "
        f"{fitted.effective_parameters():.0f} of {fitted.parameters} weights determined"
    )
    differing = differing_prompts(outcome)
    shown = differing[0] if differing else 0
    console.print(f"MAP and the default choose texts of different gold at {len(differing)} prompts, such as this one:")
    console.print(prompt_table(outcome, shown))
    console.print(gold_table(outcome))
    console.print(course_of_map(outcome))
    picture = folder / "report.png"
    draw(outcome, shown, picture)
    seconds = round(time.perf_counter() - start)
    console.print(
        f"wrote {picture.relative_to(FOLDER.parent)}; the whole took {seconds // 60} min {seconds % 60:02d} s"
    )


if __name__ == "__main__":
    show_in_any_encoding()
    try:
        typer.run(main)
    except (InputError, OSError) as error:
        raise SystemExit(f"demo: {error}") from error
