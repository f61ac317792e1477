"""`bayesrm score`."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output, Relative, Resume
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_summary
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.text.examples import SegmentedRow, TokenizedPair, TokenizedRow
    from bayesrm_fast.text.records import Candidates, PreferencePair
    from bayesrm_fast.text.steps import StepwiseResponse


def score(
    model: Model,
    input_file: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses, of pairs or of steps.")
    ],
    output: Output,
    relative: Relative = False,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Reward, variance and std of every response, of the difference of every pair, or of every step of a response."""
    from bayesrm_fast.text.files import iter_rows
    from bayesrm_fast.text.records import iter_candidate_sets, iter_preference_pairs
    from bayesrm_fast.text.steps import is_stepwise, iter_stepwise_responses

    check_output(output, input_file, model)
    first = next(iter_rows(input_file))
    sha256 = file_sha256(input_file)
    in_steps = is_stepwise(first)
    is_paired = not in_steps and "responses" not in first and "chosen" in first
    read: Any = iter_preference_pairs if is_paired else iter_candidate_sets
    if in_steps:
        read = functools.partial(iter_stepwise_responses, labelled=False)
    total = sum(1 for _ in read(iter_rows(input_file), str(input_file)))
    if is_paired and relative:
        raise InputError("pairs are scored as differences already: --relative is for rows of responses")
    if in_steps and relative:
        raise InputError("a step's score is the log-odds of its own label: --relative is for rows of responses")
    loaded = load_fitted(model, max_batch_tokens)
    if in_steps:
        loaded.segment_encoder  # noqa: B018  (raises for a model that scores whole responses)
    job = job_of(loaded, sha256, {"command": "score", "max_batch_tokens": max_batch_tokens, "relative": relative})
    records = read(iter_rows(input_file), str(input_file))
    with ResumableOutput(output, job, records, resume) as results, progress_bar("scoring") as tell:
        left = results.chunks()
        found: Iterator[tuple[list[Any], list[dict[str, Any]]]]
        if in_steps:
            found = _scored_steps(loaded, left)
        else:
            found = _scored_pairs(loaded, left) if is_paired else _scored_candidates(loaded, left, relative)
        for chunk, rows in found:
            results.add(chunk, rows)
            tell(results.count, total)
        check_unchanged(input_file, sha256)
        cut = 0
        for row in results:
            truncated = row["truncated"]
            cut += any(truncated) if isinstance(truncated, list) else truncated
        results.finish(total)
    show_summary({"output": str(output), "rows": results.count, "rows_with_cut_text": cut}, as_json)


def _scored_candidates(
    loaded: "BayesianRewardModel", chunks: "Iterable[list[Candidates]]", relative: bool
) -> "Iterator[tuple[list[Candidates], list[dict[str, Any]]]]":
    from bayesrm_fast.score.relative import within_prompts
    from bayesrm_fast.text.prefetching import prefetched

    def tokenized() -> "Iterator[tuple[list[Candidates], list[TokenizedRow]]]":
        for chunk in chunks:
            yield chunk, loaded.tokenize_candidates(chunk)

    for chunk, rows in prefetched(tokenized()):
        ends = [0, *itertools.accumulate(len(one.responses) for one in chunk)]
        places = [range(start, stop) for start, stop in itertools.pairwise(ends)]
        scores = loaded.score_differences(rows, within_prompts(places)) if relative else loaded.score_tokenized(rows)
        columns = {name: values.tolist() for name, values in scores.columns().items()}
        yield (
            chunk,
            [
                {"prompt": one.prompt, **{name: [values[i] for i in own] for name, values in columns.items()}}
                for one, own in zip(chunk, places, strict=True)
            ],
        )


def _scored_pairs(
    loaded: "BayesianRewardModel", chunks: "Iterable[list[PreferencePair]]"
) -> "Iterator[tuple[list[PreferencePair], list[dict[str, Any]]]]":
    from bayesrm_fast.text.prefetching import prefetched

    def tokenized() -> "Iterator[tuple[list[PreferencePair], list[TokenizedPair]]]":
        for chunk in chunks:
            yield chunk, loaded.encoder.encode_pairs(chunk)

    for chunk, pairs in prefetched(tokenized()):
        columns = {name: values.tolist() for name, values in loaded.score_tokenized_pairs(pairs).columns().items()}
        yield (
            chunk,
            [
                {"prompt": pair.prompt, **{name: values[i] for name, values in columns.items()}}
                for i, pair in enumerate(chunk)
            ],
        )


def _scored_steps(
    loaded: "BayesianRewardModel", chunks: "Iterable[list[StepwiseResponse]]"
) -> "Iterator[tuple[list[StepwiseResponse], list[dict[str, Any]]]]":
    from bayesrm_fast.score.segments import Aggregate
    from bayesrm_fast.text.prefetching import prefetched

    def tokenized() -> "Iterator[tuple[list[StepwiseResponse], list[SegmentedRow]]]":
        for chunk in chunks:
            yield chunk, loaded.tokenize_steps(chunk)

    for chunk, rows in prefetched(tokenized()):
        scores = loaded.score_tokenized_segments(rows)
        yield (
            chunk,
            [
                {
                    "prompt": response.prompt,
                    "mean": one.mean.tolist(),
                    "variance": one.variance.tolist(),
                    "std": one.std.tolist(),
                    "probability": one.probability.tolist(),
                    "first_error": one.first_error().tolist(),
                    "aggregates": {by: vars(one.aggregate(by)) for by in get_args(Aggregate)},
                    "truncated": one.truncated,
                }
                for response, one in zip(chunk, scores, strict=True)
            ],
        )
