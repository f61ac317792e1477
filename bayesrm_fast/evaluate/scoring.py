"""A model's rewards of benchmark rows, with the variances of their differences."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.evaluate.accuracy import ScoredRow
from bayesrm_fast.evaluate.report import Report, check_in_domain, report
from bayesrm_fast.evaluate.rows import BenchmarkRow, benchmark_rows
from bayesrm_fast.fitted_model import FittedRewardModel
from bayesrm_fast.model.exclusive import exclusively
from bayesrm_fast.score.joint import joint_rewards
from bayesrm_fast.score.relative import within_prompts
from bayesrm_fast.text.examples import TokenizedRow
from bayesrm_fast.text.prefetching import prefetched

CHUNK = 64
"""Rows that are tokenized together."""


def tokenize(model: FittedRewardModel, rows: Sequence[BenchmarkRow]) -> list[list[TokenizedRow]]:
    """The responses of each row; raises InputError for what cannot be written as text."""
    prompts = [row.prompt for row in rows for _ in row.responses]
    responses = [response for row in rows for response in row.responses]
    where = [f"{row.where}: response {i}" for row in rows for i in range(1, len(row.responses) + 1)]
    found = iter(model.encoder.encode(prompts, responses, where))
    return [[next(found) for _ in row.responses] for row in rows]


def score_rows(
    model: FittedRewardModel, rows: Sequence[BenchmarkRow], tokenized: Sequence[Sequence[TokenizedRow]]
) -> list[ScoredRow]:
    """Score rows of one version: pairs in common batches, longer rows by the joint posterior of each one's responses.

    Args:
        model: with a posterior.
        rows: at least one.
        tokenized: of `tokenize`.

    Raises:
        InputError: no posterior, or a reward that is NaN or infinite, by its row.
    """
    are_pairs = all(len(row.responses) == 2 for row in rows)
    scores, variances = _of_pairs(model, tokenized) if are_pairs else _of_several(model, tokenized)
    return [
        ScoredRow(
            row.id,
            row.subset,
            row.num_correct,
            score.tolist(),
            variance.tolist(),
            any(one.truncated for one in own),
        )
        for row, own, score, variance in zip(rows, tokenized, scores, variances, strict=True)
    ]


def _of_pairs(
    model: FittedRewardModel, tokenized: Sequence[Sequence[TokenizedRow]]
) -> tuple[Tensor, Tensor]:  # shapes: (N, 2), (N, 2, 2)
    flat = [one for own in tokenized for one in own]
    found = model.score_differences(flat, within_prompts([range(i, i + 2) for i in range(0, len(flat), 2)]))
    assert found.baseline is not None
    # Either reward is half of the difference away from their mean, and its variance is a quarter of the difference's.
    variance = 4 * found.variance.double()[::2]
    unequal = 1 - torch.eye(2, dtype=torch.float64, device="cpu")
    scores = (found.mean.double() + found.baseline.double()).reshape(-1, 2)
    return scores, variance[:, None, None] * unequal


def _of_several(
    model: FittedRewardModel, tokenized: Sequence[Sequence[TokenizedRow]]
) -> tuple[list[Tensor], list[Tensor]]:  # shapes of each: (n,), (n, n)
    scores, variances = [], []
    with exclusively(model.model):
        passes, posterior = model.passes(), model.fitted
        for own in tokenized:
            joint = joint_rewards(passes, own, posterior)
            covariance = joint.covariance.double()
            diagonal = covariance.diagonal()
            scores.append(joint.mean.double())
            variances.append((diagonal[:, None] + diagonal - 2 * covariance).clamp(min=0))
    return scores, variances


def scored_chunks(
    model: FittedRewardModel, chunks: Iterable[list[BenchmarkRow]]
) -> Iterator[tuple[list[BenchmarkRow], list[ScoredRow]]]:
    """Each chunk with its scores; its texts are tokenized in a thread, beside the model."""

    def tokenized() -> Iterator[tuple[list[BenchmarkRow], list[list[TokenizedRow]]]]:
        for chunk in chunks:
            yield chunk, tokenize(model, chunk)

    for chunk, rows in prefetched(tokenized()):
        yield chunk, score_rows(model, chunk, rows)


def rewardbench(model: FittedRewardModel, rows: Iterable[Any], in_domain: Sequence[str] = ()) -> Report:
    """A model on RewardBench 1 or 2.

    Args:
        model: with a posterior, calibrated where probabilities are to be believed.
        rows: as `benchmark_rows` takes them.
        in_domain: subsets that are like what the model was trained on; the others are compared with them.

    Raises:
        InputError: no posterior, rows that cannot be read, a subset that is not there, or a reward that is NaN.
    """
    found = benchmark_rows(rows)
    check_in_domain(in_domain, sorted({row.subset for row in found.rows}))
    chunks = (found.rows[start : start + CHUNK] for start in range(0, len(found.rows), CHUNK))
    scored = [one for _, some in scored_chunks(model, chunks) for one in some]
    return report(found.version, scored, model.fitted.temperature, in_domain)
