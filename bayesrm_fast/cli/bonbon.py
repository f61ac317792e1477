"""`bayesrm bonbon`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output, Relative, Resume, number
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_line, show_summary
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.select.rules import Rule
    from bayesrm_fast.text.records import Candidates


def bonbon(
    model: Model,
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses.")],
    output: Output,
    rule: Annotated[str, typer.Option(help="mean, std or variance.")] = "std",
    k: Annotated[str, typer.Option("--k", help="Weight of the rule's penalty: a number, or tuned.")] = "1",
    relative: Relative = True,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Write the best and the worst response of every prompt as preference pairs, to train a policy on."""
    from bayesrm_fast.select.rules import rule_of
    from bayesrm_fast.text.prefetching import prefetched
    from bayesrm_fast.train.bonbon import best_and_worst_of_each

    weight = k if k == "tuned" else number("k", k)
    asked = rule_of(rule, 1.0 if isinstance(weight, str) else weight)
    check_output(output, input_file, model)
    sha256 = file_sha256(input_file)
    total = sum(1 for _ in _checked_sets(input_file, asked))
    loaded = load_fitted(model, max_batch_tokens)
    used = loaded.penalty_weight(weight, relative, rule)
    asked = rule_of(rule, used)
    options = {"max_batch_tokens": max_batch_tokens, "rule": rule, "k": used, "relative": relative}
    job = job_of(loaded, sha256, {"command": "bonbon", **options})
    pairs_of_n: Counter[int] = Counter()
    with (
        ResumableOutput(output, job, _checked_sets(input_file, asked), resume) as results,
        progress_bar("choosing") as tell,
    ):
        for chunk in prefetched(results.chunks()):
            rows = best_and_worst_of_each(loaded, chunk, asked, relative=relative)
            results.add(chunk, [row or {} for row in rows])
            tell(results.count, total)
        check_unchanged(input_file, sha256)
        for row in results:
            pairs_of_n[row["n"]] += 1
        if not pairs_of_n:
            raise InputError(
                f"{input_file}: no row has candidates of different scores, so there is no pair to train on"
            )
        results.finish(total)
    pairs = pairs_of_n.total()
    if len(pairs_of_n) > 1:
        show_line("the rows have different n, and so a different beta: train on the rows of one n at a time")
    told = {"prompts": total, "pairs": pairs, "prompts_of_equal_candidates": total - pairs}
    counts = {str(n): count for n, count in sorted(pairs_of_n.items())}
    show_summary({"output": str(output), **told, "pairs_of_n": counts}, as_json)


def _checked_sets(input_file: Path, rule: "Rule") -> Iterator["Candidates"]:
    """The rows of the input; raises InputError for one that the rule or a best and worst cannot be had of."""
    from bayesrm_fast.select.choice import check_needs
    from bayesrm_fast.text.files import iter_rows
    from bayesrm_fast.text.records import iter_candidate_sets
    from bayesrm_fast.train.bonbon import check_count

    for one in iter_candidate_sets(iter_rows(input_file), str(input_file)):
        check_count(one)
        check_needs(rule, [one])
        yield one
