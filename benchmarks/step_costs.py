"""What the variances of S segments cost, in plain forward passes of their row.

    python -m benchmarks.step_costs            # a minute on one core
    python -m benchmarks.step_costs --quick    # seconds; shows that everything runs

One row of random tokens, a quarter of it the prompt, in S = 8 segments of equal length; a Llama and a BERT with random
weights, LoRA on all linear layers, processor time of one thread. All ways take turns and give the same variances; one
backward pass gives that of an aggregate alone.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoConfig, AutoModelForTokenClassification

from bayesrm_fast.fit.fitting import fit_posterior
from bayesrm_fast.fit.options import FitOptions
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.lora import find_lora_taps
from bayesrm_fast.model.passes import Passes, unit_cotangent
from bayesrm_fast.model.readout import AggregateReadout, TokenReadout
from bayesrm_fast.model.shortcut_trials import RowFrame, find_shortcuts
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.model.token_budget import TokenBudget
from bayesrm_fast.posterior.base import ModelRecord, Posterior
from bayesrm_fast.score.joint import joint_rewards, joint_scores
from bayesrm_fast.score.variances import score_examples
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.examples import SegmentedRow, TokenizedRow
from benchmarks import machine
from benchmarks.data import RESULTS
from benchmarks.shapes import MAX_LENGTH, VOCABULARY, random_rows
from benchmarks.timing import medians, one_thread

SEGMENTS = 8
PROMPT = 1 / 4
LORA = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "bert": ["query", "key", "value", "dense"],
}


@dataclass(frozen=True)
class Scale:
    """How large a run is."""

    hidden: int
    layers: int
    tokens: int
    rounds: int


FULL = Scale(hidden=256, layers=4, tokens=512, rounds=5)
QUICK = Scale(hidden=64, layers=2, tokens=64, rounds=1)


def token_passes(kind: str, scale: Scale) -> Passes:
    """A token classifier with its LoRA layers tapped, and the shortcuts that are exact for it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=scale.hidden,
        intermediate_size=scale.hidden * 11 // 4,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.hidden // 32,
        max_position_embeddings=MAX_LENGTH,
        num_labels=1,
    )
    base = AutoModelForTokenClassification.from_config(config)
    model: nn.Module = get_peft_model(base, LoraConfig(r=8, target_modules=LORA[kind])).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    readout, collate = TokenReadout(torch.ones(1)), Collator(None, VOCABULARY, torch.device("cpu"))
    frame = RowFrame(is_told_where=True)
    shortcuts = find_shortcuts(model, readout, collate, max_length=MAX_LENGTH, frame=frame)
    taps = find_lora_taps(model)
    return Passes(TappedModel(Forward(model, readout, shortcuts), taps), collate, TokenBudget(4096))


def segmented(row: TokenizedRow) -> SegmentedRow:
    """A row in its segments, all steps correct."""
    tokens = len(row.input_ids)
    prompt = int(PROMPT * tokens)
    ends = [prompt + (tokens - prompt) * (k + 1) // SEGMENTS - 1 for k in range(SEGMENTS)]
    return SegmentedRow(row, ends, [True] * SEGMENTS)


def ways(passes: Passes, row: SegmentedRow, posteriors: Mapping[str, Posterior]) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""
    is_causal = passes.forward.shortcuts.no_mask
    whole, reads = row.whole(is_causal), row.reads(is_causal)
    batch = passes.collate([whole])

    def plain() -> None:
        with torch.no_grad():
            passes.forward.model(**batch.model_inputs())

    readout = passes.forward.readout
    assert isinstance(readout, TokenReadout)
    of_means = passes.forward.reading(AggregateReadout(readout, "mean", 1.0))
    aggregated = replace(passes, tapped=passes.tapped.with_forward(of_means))

    def variances(posterior: Posterior) -> torch.Tensor:
        (found,) = passes.over([whole], unit_cotangent, posterior.variance_consumer)
        return torch.cat([consumer.variance for consumer in found.consumers])

    found: dict[str, Callable[[], Any]] = {"plain forward": plain}
    for name, posterior in posteriors.items():
        found |= {
            f"{name}: variances, a backward pass each": lambda posterior=posterior: variances(posterior),
            f"{name}: covariance, a backward pass each": lambda posterior=posterior: (
                joint_scores(passes, [whole], posterior, "exact")[0].covariance
            ),
            f"{name}: covariance, a row each": lambda posterior=posterior: (
                joint_rewards(passes, reads, posterior, "exact").covariance
            ),
            f"{name}: variance of the mean, one backward pass": lambda posterior=posterior: score_examples(
                aggregated, [whole], posterior
            )[1],
        }
    return found


def of_model(kind: str, scale: Scale) -> dict[str, float]:
    """Median processor seconds of each way."""
    passes = token_passes(kind, scale)
    is_causal = passes.forward.shortcuts.no_mask
    rows = [segmented(row) for row in random_rows([scale.tokens] * 3)]
    steps = [step for row in rows[1:] for step in row.steps(is_causal)]
    record = ModelRecord("random", {}, include_head=False, output_weights=[1.0], max_length=MAX_LENGTH)
    posteriors = {
        structure: fit_posterior(passes, steps, None, FitOptions(structure, 64, 1.0), record)
        for structure in ("kfac", "ggn")
    }
    compared = ways(passes, rows[0], posteriors)
    for structure in posteriors:
        own = [compared[name]() for name in compared if name.startswith(structure)]
        torch.testing.assert_close(own[0], own[1].diagonal(), rtol=1e-3, atol=0)
        torch.testing.assert_close(own[1], own[2], rtol=1e-3, atol=1e-3 * float(own[1].max()))
        torch.testing.assert_close(own[1].mean()[None], own[3], rtol=1e-3, atol=0)
    return medians(compared, scale.rounds, clock=time.process_time)


def main(
    quick: Annotated[bool, typer.Option(help="Small; shows that everything runs.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Time all ways of both models."""
    scale = QUICK if quick else FULL
    with one_thread():
        seconds = {kind: of_model(kind, scale) for kind in LORA}
        about = machine.describe()
    results = {
        "command": "python -m benchmarks.step_costs" + " --quick" * quick,
        "machine": about,
        "scale": vars(scale) | {"segments": SEGMENTS, "prompt": PROMPT},
        "seconds": seconds,
    }
    (output / f"step_costs{'-quick' * quick}.json").write_text(json.dumps(results, indent=1) + "\n")
    table = Table("plain forward passes", *seconds, title=f"{SEGMENTS} segments of a row of {scale.tokens} tokens")
    for name in seconds["llama"]:
        table.add_row(name, *(f"{one[name] / one['plain forward']:.1f}" for one in seconds.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
