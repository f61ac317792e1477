"""`bayesrm score`."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow
    from bayesrm_fast.text.records import Candidates, PreferencePair


def score(
    model: Model,
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses or of pairs.")],
    output: Output,
    relative: Relative = False,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Reward, variance and std of every response, or of the difference of every pair."""
    from bayesrm_fast.text.files import iter_rows
    from bayesrm_fast.text.records import iter_candidate_sets, iter_preference_pairs

    check_output(output, input_file, model)
    first = next(iter_rows(input_file))
    sha256 = file_sha256(input_file)
    is_paired = "responses" not in first and "chosen" in first
    read: Any = iter_preference_pairs if is_paired else iter_candidate_sets
    total = sum(1 for _ in read(iter_rows(input_file), str(input_file)))
    if is_paired and relative:
        raise InputError("pairs are scored as differences already: --relative is for rows of responses")
    loaded = load_fitted(model, max_batch_tokens)
    job = job_of(loaded, sha256, {"command": "score", "max_batch_tokens": max_batch_tokens, "relative": relative})
    records = read(iter_rows(input_file), str(input_file))
    with ResumableOutput(output, job, records, resume) as results, progress_bar("scoring") as tell:
        left = results.chunks()
        for chunk, rows in _scored_pairs(loaded, left) if is_paired else _scored_candidates(loaded, left, relative):
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
