"""Train a reward model, fit its posterior, save and load it, and choose among candidates: `python -m demo`.

A reward model that learns from few and noisy labels over-optimises: the more candidates it chooses from, the worse its
choice. The default of `best_of_n` subtracts what it does not know. `demo/task.py` says what is right here.
"""

import time
import warnings
from pathlib import Path

from rich.console import Console

from bayesrm_fast.cli.terminal import quiet_transformers
from demo.experiment import Scale, run
from demo.report import differing_prompts, draw, gold_table, prompt_table

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Run the whole job; it takes a few minutes on two cores."""
    start = time.perf_counter()
    console = Console()
    quiet_transformers()
    warnings.filterwarnings("ignore", category=FutureWarning)
    scale = Scale()
    console.print(
        f"{scale.pairs} pairs of continuations of the Python reference, {scale.noise:.0%} of the labels wrong; "
        f"{scale.prompts} prompts of other articles with {scale.candidates} candidates each; "
        "gold is the share of a text's long words that the article has"
    )
    outcome = run(0, scale, FOLDER, console)
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
    draw(outcome, shown, FOLDER / "report.png")
    seconds = round(time.perf_counter() - start)
    console.print(f"wrote demo/report.png; the whole took {seconds // 60} min {seconds % 60:02d} s")


if __name__ == "__main__":
    main()
