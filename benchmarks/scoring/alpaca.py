"""Scoring real candidates with a trained encoder: MiniLM, judged AlpacaEval responses and off-prompt distractors."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.terminal import quiet_transformers
from bayesrm_fast.text.batches import plan_batches
from bayesrm_fast.text.records import Candidates
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.baselines import our_batches, plain_forward
from benchmarks.calibration import FULL, QUICK, TARGETS
from benchmarks.data import embedded_encoder
from benchmarks.judged import alpaca_eval, preference_pairs, with_distractors
from benchmarks.scoring.llama import OURS, PLAIN
from benchmarks.timing import count_plain_forwards, in_turns

TIMED_PROMPTS = 3
MAX_LENGTH = 512
PADDED = "transformers, batches of 32 in input order"
LAZY = "ours, lazy best of n"
RELATIVE = "ours, relative best-of-n, std, k = 1"
OTHER_PRECISIONS = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Trained:
    """A reward model with its pairs and the candidates that it scores."""

    rm: BayesianRewardModel
    pairs: list[dict[str, str]]
    candidates: list[Candidates]


def trained(quick: bool) -> Trained:
    """MiniLM with LoRA on query and value, and a kfac posterior."""
    quiet_transformers()
    scale = QUICK if quick else replace(FULL, train_prompts=360, dev_prompts=120)
    pairs = preference_pairs(alpaca_eval("train")[: scale.train_prompts], scale.pairs_per_prompt, seed=0)
    sets = with_distractors(alpaca_eval("dev")[: scale.dev_prompts], scale.candidates, seed=0)
    if quick:
        sets = [{**s, "texts": s["texts"][:6]} for s in sets[:3]]
    candidates = [Candidates(s["prompt"], s["texts"]) for s in sets]
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        options = TrainOptions(
            target_modules=TARGETS, epochs=scale.epochs, learning_rate=1e-3, max_length=scale.max_length
        )
        train_adapter(str(embedded_encoder()), pairs, adapter, options, None)
        rm = BayesianRewardModel.from_pretrained(adapter, max_length=scale.max_length, device="cpu")
        rm.fit(pairs, structure="kfac", rank=64, prior_precision="evidence")
        rm.save_pretrained(adapter)
        rm = BayesianRewardModel.from_pretrained(adapter, max_length=MAX_LENGTH, device="cpu")
    return Trained(rm, pairs, candidates)


def alpaca_part(quick: bool) -> dict[str, Any]:
    """Plain padded forward, plain forward over our batches, mean and variance of all, and lazy best-of-n."""
    subject = trained(quick)
    rm, timed = subject.rm, subject.candidates[:TIMED_PROMPTS]
    return {
        "pairs": len(subject.pairs),
        "prior_precision": rm.fitted.prior_precision,
        "shortcuts": rm.shortcuts.told(),
        "padding": padding(rm, subject.candidates),
        **timings(rm, timed, quick, {"transformers, the pipeline": by_pipeline(rm, timed)}),
        "variances_by_prior_precision": needed(rm, timed[: 1 if quick else TIMED_PROMPTS]),
    }


def alpaca_virtual_part(quick: bool) -> dict[str, Any]:
    """The same of the merged model with virtual adapters, λ by margins, over its own plain forward."""
    subject = trained(quick)
    merged = BayesianRewardModel(
        subject.rm.model.merge_and_unload(),
        subject.rm.tokenizer,
        virtual_rank=8,
        virtual_targets=TARGETS,
        max_length=MAX_LENGTH,
    )
    merged.fit(subject.pairs)
    return {
        "pairs": len(subject.pairs),
        "prior_precision": merged.fitted.prior_precision,
        **timings(merged, subject.candidates[:TIMED_PROMPTS], quick, {}),
    }


def by_pipeline(rm: BayesianRewardModel, candidates: list[Candidates]) -> Callable[[], Any]:
    """What transformers' pipeline does with the same rows."""
    from transformers import pipeline

    assert isinstance(rm.model, PeftModel)
    pipe = pipeline(
        "text-classification", model=rm.model.get_base_model(), tokenizer=rm.tokenizer, batch_size=32, device="cpu"
    )
    rows = [{"text": one.prompt, "text_pair": text} for one in candidates for text in one.responses]
    return lambda: list(pipe((row for row in rows), truncation=True, max_length=MAX_LENGTH, function_to_apply="none"))


def padding(rm: BayesianRewardModel, candidates: list[Candidates]) -> dict[str, Any]:
    """Share of padding in our batches of all candidates, and in batches of 32 in input order."""
    prompts = [one.prompt for one in candidates for _ in one.responses]
    rows = rm.tokenize(prompts, [text for one in candidates for text in one.responses])
    lengths = [len(row.input_ids) for row in rows]

    def share(plan: list[list[int]]) -> float:
        padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan)
        return 1 - sum(lengths) / padded

    in_order = [list(range(start, min(start + 32, len(lengths)))) for start in range(0, len(lengths), 32)]
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "our_batches": share(plan_batches(rows, rm.passes().budget.batch_tokens)),
        "batches_of_32_in_input_order": share(in_order),
    }


def timings(
    rm: BayesianRewardModel, candidates: list[Candidates], quick: bool, others: dict[str, Callable[[], Any]]
) -> dict[str, Any]:
    """All formulations in turns, others' among them."""
    prompts = [one.prompt for one in candidates for _ in one.responses]
    texts = [text for one in candidates for text in one.responses]
    rows = rm.tokenize(prompts, texts)
    passes = rm.passes()
    found: dict[str, Any] = {}

    def as_transformers_users_do() -> None:
        batches = (
            rm.tokenizer(
                prompts[start : start + 32],
                texts[start : start + 32],
                truncation=True,
                max_length=MAX_LENGTH,
                padding=True,
                return_tensors="pt",
            )
            for start in range(0, len(texts), 32)
        )
        found["padded"] = plain_forward(rm.model, batches)

    def everything() -> None:
        found["everything"] = rm.score(prompts, texts)

    def lazily() -> None:
        found["lazy"] = rm.best_of_each(candidates, relative=False)

    formulations: dict[str, Callable[[], Any]] = {
        PADDED: as_transformers_users_do,
        **others,
        PLAIN: lambda: plain_forward(rm.model, our_batches(passes, rows)),
        OURS: everything,
        LAZY: lazily,
        RELATIVE: lambda: rm.best_of_each(candidates),
    }
    timed = in_turns(formulations, 1 if quick else 5)
    count_plain_forwards(timed, PLAIN)
    exhaustive = rm.best_of_each(candidates, relative=False, exhaustive=True)
    whole = ~found["everything"].truncated  # transformers cuts long texts by a rule of its own
    lengths = torch.tensor([len(row.input_ids) for row in rows], dtype=torch.float32)
    needed_rows = torch.cat([~best.variance.isnan() for best in found["lazy"]])
    return {
        "prompts": len(candidates),
        "rows": len(texts),
        "formulations": timed,
        "lazy_over_padded_transformers": timed[LAZY]["seconds"] / timed[PADDED]["seconds"],
        "variances": [best.variances_computed for best in found["lazy"]],
        "same_winners": [best.index for best in exhaustive] == [best.index for best in found["lazy"]],
        "tokens_of_a_row": float(lengths.mean()),
        "tokens_of_a_row_whose_variance_is_needed": float(lengths[needed_rows].mean()),
        "largest_difference_of_means_of_rows_not_cut": float(
            (found["everything"].mean - found["padded"])[whole].abs().max()
        ),
        "rows_cut": int(found["everything"].truncated.sum()),
    }


def needed(rm: BayesianRewardModel, candidates: list[Candidates]) -> dict[str, float]:
    """Share of the candidates whose variance the std penalty, k = 1, needs at other prior precisions."""
    before = rm.fitted.prior_precision
    shares = {}
    for precision in (before, *OTHER_PRECISIONS):
        rm.fitted.prior_precision = precision
        best = rm.best_of_each(candidates, relative=False)
        shares[f"{precision:.3g}"] = sum(b.variances_computed for b in best) / sum(len(b.mean) for b in best)
    rm.fitted.prior_precision = before
    return shares
