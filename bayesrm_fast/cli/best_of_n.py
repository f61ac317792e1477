"""`bayesrm best-of-n`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output, Relative, Resume
from bayesrm_fast.cli.candidate_bars import CandidateBars
from bayesrm_fast.cli.choosing import Choosing, Completion, Policy, RuleText, Similarity, Weight
from bayesrm_fast.cli.engines import EngineName, Workers, started
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.kept_columns import KeptColumns
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_summary, stdout
from bayesrm_fast.cli.work import Facts, Row
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.select.rules import Rule
    from bayesrm_fast.text.records import Candidates


def best_of_n(
    model: Model,
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses.")],
    output: Output,
    rule: RuleText = "std",
    k: Weight = None,
    relative: Relative = True,
    explain: Annotated[bool, typer.Option("--explain", help="Add to every row what the penalty does there.")] = False,
    similarity: Similarity = None,
    policy: Policy = None,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    engine: EngineName = "local",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Pick the best response of every prompt by its reward less the uncertainty of the choice, or by another rule."""
    from bayesrm_fast.integrations.result_rows import OF_CANDIDATES

    if explain and not (relative and rule == "std"):
        raise InputError("--explain is about the relative std: it goes with --rule std and --relative")
    choosing = Choosing(rule, k, relative, similarity, policy)
    check_output(output, input_file, model)
    sha256 = file_sha256(input_file)
    records = partial(_records, input_file)
    total = choosing.checked(records())
    kept = KeptColumns(input_file, OF_CANDIDATES)
    kept.check_fit(output)
    tally = dict.fromkeys(("candidates", "variances_computed", "choices_changed_by_the_penalty"), 0)
    warned = 0
    bars = CandidateBars() if stdout.is_terminal and not as_json and engine == "local" else None
    with started(Choose(model, max_batch_tokens, choosing, explain, bars), engine, workers) as running:
        facts = running.facts(sha256)
        with ResumableOutput(output, facts.job, records(), resume) as results, progress_bar("choosing") as tell:
            for chunk, rows in running.results(results.chunks(), records, results.count):
                results.add(chunk, rows)
                tell(results.count, total)
            check_unchanged(input_file, sha256)
            for row in results:
                tally["candidates"] += row["candidates"]
                tally["variances_computed"] += row["variances_computed"]
                tally["choices_changed_by_the_penalty"] += row["index"] != row["index_by_mean"]
                warned += explain and bool(row["advice"]["warnings"])
            results.finish(total, kept)
    if bars is not None:
        bars.show(stdout)
    told = {"prompts_with_warnings": warned, **facts.told} if explain else {}
    show_summary({"output": str(output), "prompts": results.count, **tally, **told}, as_json)


def _records(input_file: Path) -> "Iterator[Candidates]":
    from bayesrm_fast.text.files import iter_rows
    from bayesrm_fast.text.records import iter_candidate_sets

    return iter_candidate_sets(iter_rows(input_file), str(input_file))


@dataclass(frozen=True)
class Choose:
    """The work of `bayesrm best-of-n`.

    Attributes:
        model, max_batch_tokens, explain: as for the command.
        choosing: what is asked for.
        bars: that keep some prompts, where the work is done in this process.
    """

    model: Path
    max_batch_tokens: int | None
    choosing: Choosing
    explain: bool
    bars: CandidateBars | None = None

    def load(self) -> "LoadedChoose":
        """With its models; raises InputError where one cannot be loaded, or has no posterior or no tuned penalty."""
        loaded = load_fitted(self.model, self.max_batch_tokens)
        return LoadedChoose(self, loaded, self.choosing.of(loaded), Completion(self.choosing))


@dataclass(frozen=True)
class LoadedChoose:
    """The same with its models."""

    work: Choose
    loaded: "BayesianRewardModel"
    rule: "Rule"
    complete: Completion

    def facts(self, input_sha256: str) -> Facts:
        """Of its work on this input."""
        options = {"max_batch_tokens": self.work.max_batch_tokens, **self.work.choosing.options(self.rule)}
        options |= {"explain": self.work.explain, **self.complete.weights}
        penalty = self.loaded.fitted.penalty
        told = {"k_by_tuning": "not tuned" if penalty is None else penalty.k}
        return Facts(job_of(self.loaded, input_sha256, {"command": "best-of-n", **options}), told)

    def results(self, chunks: "Iterable[list[Candidates]]") -> "Iterator[tuple[list[Candidates], list[Row]]]":
        """The results of each chunk's records, while the next one is read."""
        from bayesrm_fast.integrations.result_rows import chosen_rows
        from bayesrm_fast.text.prefetching import prefetched

        for chunk in prefetched(chunks):
            completed = self.complete(chunk)
            relative, explain = self.work.choosing.relative, self.work.explain
            best = self.loaded.best_of_each(completed, self.rule, relative=relative)
            if self.work.bars is not None:
                for one, found in zip(completed, best, strict=True):
                    self.work.bars.add(one, found)
            yield chunk, chosen_rows(self.loaded, completed, self.rule, best, explain=explain)
