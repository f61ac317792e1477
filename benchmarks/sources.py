"""How often `advice` takes candidates for those of several sources: where they are, and where one policy wrote them.

    python -m benchmarks.sources    # about a minute

Sets of candidates of known origin, read with MiniLM's tokenizer; no model runs. Half of HumanEval's tasks says which
threshold it would set; everything else is reported on the other half.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from bayesrm_fast.select.advice import APART, text_groups
from bayesrm_fast.text.encoder import TextEncoder
from benchmarks import machine
from benchmarks.data import RESULTS, embedded_encoder
from benchmarks.judged import alpaca_eval
from benchmarks.overoptimisation.tasks import HUMANEVAL, read

SIZES = (8, 12, 16, 32, 64, None)
"""Candidates of a set; None: all that a prompt has."""

DRAWS = 20
"""Sets of one policy from every task, since false alarms are rare. They overlap: their standard error is too small."""

STEPS = 20
"""Thresholds are multiples of one twentieth."""

FALSE_ALARMS = 0.01
"""Largest share of one policy's sets that a threshold may take for several sources where it is set."""

PROMPTS_SEEN = 60
"""Of AlpacaEval's split `dev`: `APART` was found with their answers, and they are not reported on."""

Texts = list[list[int]]
"""Token ids of the different responses to a prompt."""


def tokenized(rows: Sequence[dict[str, Any]], encoder: TextEncoder) -> list[Texts]:
    """The different responses of every row."""
    return [encoder.encode_responses(list(dict.fromkeys(r["text"] for r in row["responses"]))) for row in rows]


def sized(prompts: list[Texts], size: int | None) -> list[tuple[Texts, int]]:
    """The prompts with at least `size` responses, and how many to take."""
    return [(own, size or len(own)) for own in prompts if len(own) >= (size or 0)]


def of_one_prompt(prompts: list[Texts], size: int | None, lot: random.Random) -> list[Texts]:
    """Of every prompt that has as many, `size` responses."""
    return [lot.sample(own, n) for own, n in sized(prompts, size)]


def of_two_prompts(prompts: list[Texts], size: int | None, lot: random.Random) -> list[Texts]:
    """The same, half of them replaced by responses to one other prompt, or by all that it has."""
    sets = []
    for own, n in sized(prompts, size):
        other = lot.choice([texts for texts in prompts if texts is not own])
        sets.append(lot.sample(own, n - n // 2) + lot.sample(other, min(n // 2, len(other))))
    return sets


def with_strays(
    prompts: list[Texts], size: int | None, strays: list[Texts], parts: int, lot: random.Random
) -> list[Texts]:
    """The same, one of so many parts replaced by responses to any of the prompts `strays`."""
    return [
        lot.sample(own, n - n // parts) + [lot.choice(lot.choice(strays)) for _ in range(n // parts)]
        for own, n in sized(prompts, size)
    ]


def of_one_policy(tasks: list[Texts], size: int | None, lot: random.Random) -> list[Texts]:
    """`DRAWS` times `size` samples of every task that has as many; once all of them."""
    return [texts for _ in range(DRAWS if size else 1) for texts in of_one_prompt(tasks, size, lot)]


def similarities(sets: list[Texts]) -> list[float]:
    """What `advice` compares with `APART`; NaN, which raises no alarm, where there are no two groups."""
    return [text_groups(texts)[0] for texts in sets]


def largest_threshold(found: list[float]) -> float:
    """The largest multiple of 1 / `STEPS` that at most a share `FALSE_ALARMS` of the similarities is below."""
    shares = [sum(value < step / STEPS for value in found) / len(found) for step in range(STEPS + 1)]
    return max(step for step, share in enumerate(shares) if share <= FALSE_ALARMS) / STEPS


def alarms(found: list[float], threshold: float = APART) -> dict[str, float]:
    """How many sets have no two groups, how many raise an alarm, and their share of all with its binomial error."""
    count = sum(value < threshold for value in found)
    share = count / len(found)
    error = math.sqrt(share * (1 - share) / len(found))
    no_groups = sum(math.isnan(value) for value in found)
    return {"sets": len(found), "no_groups": no_groups, "alarms": count, "share": share, "standard_error": error}


def main(output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS) -> None:
    """Make the sets, and tell how many raise an alarm."""
    encoder = TextEncoder(AutoTokenizer.from_pretrained(embedded_encoder()), max_length=512)
    code = tokenized(read(HUMANEVAL), encoder)
    lot = random.Random(0)
    lot.shuffle(code)
    setting, code = code[: len(code) // 2], code[len(code) // 2 :]
    answers = tokenized(alpaca_eval("dev")[PROMPTS_SEEN:], encoder)
    talk = tokenized(read("mt_bench_gpt4_scores.jsonl.gz"), encoder)
    solutions = tokenized(read("gsm8k_candidates.jsonl.gz"), encoder)
    seen = [value for size in SIZES for value in similarities(of_one_policy(setting, size, lot))]
    found: dict[str, dict[str, list[float]]] = {}
    for size in SIZES:
        sets = {
            "one policy": of_one_policy(code, size, lot),
            "half another task's code": of_two_prompts(code, size, lot),
            "models, one AlpacaEval prompt": of_one_prompt(answers, size, lot),
            "models, one MT-Bench prompt": of_one_prompt(talk, size, lot),
            "models, two AlpacaEval prompts": of_two_prompts(answers, size, lot),
        }
        for name, strays in ("AlpacaEval", answers), ("MT-Bench", talk), ("GSM8K", solutions):
            sets |= {f"half {name}": with_strays(code, size, strays, 2, lot)}
            sets |= {f"a quarter {name}": with_strays(code, size, strays, 4, lot)}
        for name, made in sets.items():
            found.setdefault(name, {})[str(size or "all")] = similarities(made)
    rows = {name: {n: alarms(values) for n, values in row.items() if values} for name, row in found.items()}
    held_out = [value for values in found["one policy"].values() for value in values]
    chosen = largest_threshold(seen)
    results = {
        "command": "python -m benchmarks.sources",
        "machine": machine.describe(),
        "tasks": {"setting": len(setting), "reporting": len(code)},
        "one_policy": {
            f"threshold {threshold}": {"setting": alarms(seen, threshold), "reporting": alarms(held_out, threshold)}
            for threshold in (APART, chosen)
        },
        "threshold_of_the_setting_tasks": chosen,
        "rows": rows,
    }
    (output / "sources.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("", *(f"n = {size}" if size else "all" for size in SIZES), title="Share of sets with an alarm (sets)")
    for name, row in rows.items():
        cells = (row.get(str(size or "all")) for size in SIZES)
        table.add_row(name, *(f"{cell['share']:.3f} ({cell['sets']})" if cell else "" for cell in cells))
    Console(width=140).print(table)
    Console(width=140).print("All sizes of one policy together:", results["one_policy"])


if __name__ == "__main__":
    typer.run(main)
