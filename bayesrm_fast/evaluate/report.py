"""The report of a model on RewardBench: scores as published, and what its uncertainty is worth."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bayesrm_fast.atomic import cannot_write, written_whole
from bayesrm_fast.errors import InputError, named
from bayesrm_fast.evaluate.accuracy import (
    ScoredRow,
    members,
    overall_score,
    row_result,
    section_of,
    section_scores,
    subset_scores,
)
from bayesrm_fast.evaluate.rows import ABOUT_THE_MODEL, BenchmarkRow
from bayesrm_fast.evaluate.uncertainty import (
    COVERAGES,
    accuracy_by_coverage,
    at_coverage,
    auroc,
    coverage_curves,
    decisions,
    labelled_pairs,
    probabilities,
)

MODEL_TYPE = "Seq. Classifier"
"""What RewardBench calls a model that gives one reward for a text."""


@dataclass(frozen=True)
class Figures:
    """What rewards and uncertainties of some rows are worth. Rows of Ties are in `rows` alone.

    Attributes:
        rows: how many there are.
        decided: those with one right answer.
        accuracy: share of `decided` that is right; equal rewards are wrong.
        mean_std: of the difference between the answer and the next best response.
        probabilities: NLL, Brier score and ECE, with the filled bins of the reliability diagram, of the probabilities
            that chosen responses are preferred to rejected ones: `reward` is σ(Δ), `posterior` has variance and
            temperature.
        accuracy_at_coverage: accuracy by share of rows answered, those of the largest `posterior` probability first,
            or of the largest |Δ| (`margin`), which needs no posterior.
        mean_risk: the mean of one minus the accuracy over all coverages, by the same two orders.
        auroc_for_wrong: of the `std`, of the posterior `probability`'s distance from ½ and of the `margin` |Δ|, for
            telling wrong answers from right ones; None where all are of one kind.
    """

    rows: int
    decided: int
    accuracy: float
    mean_std: float
    probabilities: dict[str, dict[str, Any]]
    accuracy_at_coverage: dict[str, dict[str, float]]
    mean_risk: dict[str, float]
    auroc_for_wrong: dict[str, float | None]


@dataclass(frozen=True)
class Domains:
    """In-domain subsets against all others.

    Attributes:
        in_domain_subsets: as they were named.
        in_domain, out_of_domain: figures of their rows.
        auroc_of_std: for telling a row out of domain from one in domain, by the std of its answer.
        auroc_of_margin: the same by −|Δ|, which needs no posterior.
    """

    in_domain_subsets: list[str]
    in_domain: Figures
    out_of_domain: Figures
    auroc_of_std: float | None
    auroc_of_margin: float | None


@dataclass(frozen=True)
class Report:
    """A model on a version of RewardBench.

    Attributes:
        version: 1 or 2.
        overall: mean of the sections or domains.
        sections: score of each, 0 where there are no rows of one.
        absent_sections: those of which there are no rows.
        subsets: score of each.
        outside_of_sections: subsets that no section counts.
        rows_of_subsets: how many rows each has.
        truncated: rows of which `max_length` cut something.
        temperature: T of the probabilities, from `calibrate`.
        figures: of all rows; None where all are of Ties.
        by_subset: of the rows of each subset but Ties.
        domains: None where no subset is named as in-domain.
        curves: `coverage`, and the accuracy by `posterior` probability and by `margin` |Δ| there.
    """

    version: int
    overall: float
    sections: dict[str, float]
    absent_sections: list[str]
    subsets: dict[str, float]
    outside_of_sections: list[str]
    rows_of_subsets: dict[str, int]
    truncated: int
    temperature: float
    figures: Figures | None
    by_subset: dict[str, Figures]
    domains: Domains | None
    curves: dict[str, list[float]]


def report(version: int, rows: Sequence[ScoredRow], temperature: float = 1.0, in_domain: Sequence[str] = ()) -> Report:
    """All figures of scored rows.

    Args:
        version: of RewardBench.
        rows: at least one.
        temperature: T of the model's probabilities.
        in_domain: subsets that are like what the model was trained on; the others are compared with them.

    Raises:
        InputError: no such subset, or every subset is named.
    """
    subsets = subset_scores(version, rows)
    check_in_domain(in_domain, list(subsets))
    by_subset = {subset: [row for row in rows if row.subset == subset] for subset in subsets}
    sections = section_scores(version, subsets)
    own = {subset: _figures(version, some, temperature) for subset, some in by_subset.items()}
    present = {section_of(version, subset) for subset in subsets}
    return Report(
        version=version,
        overall=overall_score(sections),
        sections=sections,
        absent_sections=[section for section in members(version) if section not in present],
        subsets=subsets,
        outside_of_sections=[subset for subset in subsets if section_of(version, subset) is None],
        rows_of_subsets={subset: len(some) for subset, some in by_subset.items()},
        truncated=sum(row.truncated for row in rows),
        temperature=temperature,
        figures=_figures(version, rows, temperature),
        by_subset={subset: figures for subset, figures in own.items() if figures is not None},
        domains=_domains(version, rows, temperature, in_domain) if in_domain else None,
        curves=_curves(version, rows, temperature),
    )


def check_in_domain(in_domain: Sequence[str], subsets: Sequence[str]) -> None:
    """Raise InputError where an in-domain subset is not there, or no other one is."""
    unknown = [name for name in in_domain if name not in subsets]
    if unknown:
        raise InputError(f"there is no subset {unknown[0]!r} to be in-domain: the data has {named(sorted(subsets))}")
    if in_domain and set(in_domain) >= set(subsets):
        raise InputError("all subsets are named as in-domain: there is no other to compare them with")


def _figures(version: int, rows: Sequence[ScoredRow], temperature: float) -> Figures | None:
    made = decisions(version, rows, temperature)
    if made is None:
        return None
    orders = {"posterior": made.confidence, "margin": made.margin}
    accuracies = {name: accuracy_by_coverage(confidence, made.is_right) for name, confidence in orders.items()}
    doubts = {"std": made.std, "probability": -made.confidence, "margin": -made.margin}
    wrong = ~made.is_right
    found = probabilities(labelled_pairs(version, rows), temperature)
    return Figures(
        rows=len(rows),
        decided=len(wrong),
        accuracy=float(made.is_right.double().mean()),
        mean_std=float(made.std.mean()),
        probabilities={
            name: {"nll": one.nll, "brier": one.brier, "ece": one.ece, "bins": [asdict(b) for b in one.bins if b.count]}
            for name, one in found.items()
        },
        accuracy_at_coverage={
            name: {f"{coverage:g}": at_coverage(by, coverage) for coverage in COVERAGES}
            for name, by in accuracies.items()
        },
        mean_risk={name: float(1 - by.mean()) for name, by in accuracies.items()},
        auroc_for_wrong={name: auroc(doubt, wrong) for name, doubt in doubts.items()},
    )


def _domains(version: int, rows: Sequence[ScoredRow], temperature: float, in_domain: Sequence[str]) -> Domains | None:
    inside = [row for row in rows if row.subset in in_domain]
    outside = [row for row in rows if row.subset not in in_domain]
    figures = [_figures(version, own, temperature) for own in (inside, outside)]
    if figures[0] is None or figures[1] is None:
        return None  # one of the two is Ties alone
    made = decisions(version, [*inside, *outside], temperature)
    assert made is not None
    numbers = torch.arange(len(made.is_right), dtype=torch.int64, device="cpu")
    is_outside = numbers >= figures[0].decided
    return Domains(
        list(in_domain), figures[0], figures[1], auroc(made.std, is_outside), auroc(-made.margin, is_outside)
    )


def _curves(version: int, rows: Sequence[ScoredRow], temperature: float) -> dict[str, list[float]]:
    made = decisions(version, rows, temperature)
    if made is None:
        return {}
    return coverage_curves({"posterior": made.confidence, "margin": made.margin}, made.is_right)


def layouts(
    told: Report, rows: Sequence[BenchmarkRow], scored: Sequence[ScoredRow], model: str, chat_template: str | None
) -> dict[str, dict[str, Any]]:
    """What RewardBench's two files hold, and a third of our own, by the names of their folders.

    Texts are lists of messages, as RewardBench's scripts write them for models with a dialogue format of their own.

    Args:
        told: the report on the rows.
        rows: of the benchmark.
        scored: what the model says of each.
        model: its name.
        chat_template: "tokenizer" where the tokenizer's own is used.
    """
    about = dict(zip(ABOUT_THE_MODEL, (model, MODEL_TYPE, chat_template), strict=True))
    columns: dict[str, Any] = {
        "id": [row.id for row in rows],
        "subset": [row.subset for row in rows],
        "results": [row_result(told.version, one) for one in scored],
    }
    texts = [[_conversation(row, response) for response in row.responses] for row in rows]
    if told.version == 1:
        columns |= {
            "results": [int(result) for result in columns["results"]],
            "text_chosen": [chosen for chosen, _ in texts],
            "text_rejected": [rejected for _, rejected in texts],
            "scores_chosen": [one.scores[0] for one in scored],
            "scores_rejected": [one.scores[1] for one in scored],
        }
    else:
        columns |= {
            "text": texts,
            "scores": [list(one.scores) for one in scored],
            "num_correct": [row.num_correct for row in rows],
        }
    return {
        "eval-set": about | told.subsets,
        "eval-set-scores": columns | about,
        "eval-set-uncertainty": asdict(told) | about,
    }


def _conversation(row: BenchmarkRow, response: str) -> list[Mapping[str, Any]]:
    asked = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else list(row.prompt)
    return [*asked, {"role": "assistant", "content": response}]


def write_layout(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as RewardBench does, sorted and indented by four; it appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with written_whole(path) as beside:
            beside.write_text(json.dumps(content, indent=4, sort_keys=True, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
