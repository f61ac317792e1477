"""`bayesrm score`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output, Relative, Resume
from bayesrm_fast.cli.engines import EngineName, Workers, started
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.kept_columns import KeptColumns
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_summary
from bayesrm_fast.cli.work import Facts, Row

if TYPE_CHECKING:
    from bayesrm_fast.integrations.result_rows import Scoring
    from bayesrm_fast.reward_model import BayesianRewardModel


def score(
    model: Model,
    input_file: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses, of pairs or of steps.")
    ],
    output: Output,
    relative: Relative = False,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    engine: EngineName = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Reward, variance and std of every response, of the difference of every pair, or of every step of a response."""
    from bayesrm_fast.integrations.result_rows import TELLING_FORMS, scoring_of
    from bayesrm_fast.text.files import iter_rows

    check_output(output, input_file, model)
    first = next(iter_rows(input_file))
    sha256 = file_sha256(input_file)
    scoring = scoring_of(first, relative)
    records = partial(_records, scoring, input_file)
    total = sum(1 for _ in records())
    kept = KeptColumns(input_file, scoring.columns | TELLING_FORMS)
    kept.check_fit(output)
    work = Score(model, max_batch_tokens, relative, scoring)
    with started(work, engine, workers) as running:
        facts = running.facts(sha256)
        with ResumableOutput(output, facts.job, records(), resume) as results, progress_bar("scoring") as tell:
            for chunk, rows in running.results(results.chunks(), records, results.count):
                results.add(chunk, rows)
                tell(results.count, total)
            check_unchanged(input_file, sha256)
            cut = 0
            for row in results:
                truncated = row["truncated"]
                cut += any(truncated) if isinstance(truncated, list) else truncated
            results.finish(total, kept)
    show_summary({"output": str(output), "rows": results.count, "rows_with_cut_text": cut}, as_json)


def _records(scoring: "Scoring[Any, Any]", input_file: Path) -> Iterator[Any]:
    from bayesrm_fast.text.files import iter_rows

    return scoring.read(iter_rows(input_file), str(input_file))


@dataclass(frozen=True)
class Score:
    """The work of `bayesrm score`.

    Attributes:
        model, max_batch_tokens, relative: as for the command.
        scoring: of the rows' form.
    """

    model: Path
    max_batch_tokens: int | None
    relative: bool
    scoring: "Scoring[Any, Any]"

    def load(self) -> "LoadedScore":
        """With its model; raises InputError where it has no posterior, or does not score such rows."""
        loaded = load_fitted(self.model, self.max_batch_tokens)
        self.scoring.check(loaded)
        return LoadedScore(self, loaded)


@dataclass(frozen=True)
class LoadedScore:
    """The same with its model."""

    work: Score
    loaded: "BayesianRewardModel"

    def facts(self, input_sha256: str) -> Facts:
        """Of its work on this input."""
        options = {"max_batch_tokens": self.work.max_batch_tokens, "relative": self.work.relative}
        return Facts(job_of(self.loaded, input_sha256, {"command": "score", **options}))

    def results(self, chunks: Iterable[list[Any]]) -> Iterator[tuple[list[Any], list[Row]]]:
        """The results of each chunk's records, while those of the next are tokenized."""
        from bayesrm_fast.text.prefetching import prefetched

        scoring = self.work.scoring
        tokenized = ((chunk, scoring.tokenize(self.loaded, chunk)) for chunk in chunks)
        for chunk, rows in prefetched(tokenized):
            yield chunk, scoring.results(self.loaded, chunk, rows)
