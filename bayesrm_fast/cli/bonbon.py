"""`bayesrm bonbon`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output, Relative, Resume
from bayesrm_fast.cli.choosing import Choosing, Completion, Policy, RuleText, Similarity, Weight
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_line, show_summary
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.text.records import Candidates


def bonbon(
    model: Model,
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows of prompt, responses.")],
    output: Output,
    rule: RuleText = "std",
    k: Weight = "1",
    relative: Relative = True,
    similarity: Similarity = None,
    policy: Policy = None,
    resume: Resume = False,
    max_batch_tokens: MaxBatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """Write the best and the worst response to every prompt as preference pairs, to train a policy on."""
    from bayesrm_fast.text.prefetching import prefetched
    from bayesrm_fast.train.bonbon import best_and_worst_of_each, check_scores

    choosing = Choosing(rule, k, relative, similarity, policy)
    check_scores(choosing.asked(1.0))
    check_output(output, input_file, model)
    sha256 = file_sha256(input_file)
    total = choosing.checked(_sets_of_two_or_more(input_file))
    loaded = load_fitted(model, max_batch_tokens)
    used = choosing.of(loaded)
    complete = Completion(choosing)
    options = {"max_batch_tokens": max_batch_tokens, **choosing.options(used)}
    job = job_of(loaded, sha256, {"command": "bonbon", **options, **complete.weights})
    pairs_of_n: Counter[int] = Counter()
    sets = _sets_of_two_or_more(input_file)
    with ResumableOutput(output, job, sets, resume) as results, progress_bar("choosing") as tell:
        for chunk in prefetched(results.chunks()):
            rows = best_and_worst_of_each(loaded, complete(chunk), used, relative=relative)
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


def _sets_of_two_or_more(input_file: Path) -> "Iterator[Candidates]":
    from bayesrm_fast.text.files import iter_rows
    from bayesrm_fast.text.records import iter_candidate_sets
    from bayesrm_fast.train.bonbon import check_count

    for one in iter_candidate_sets(iter_rows(input_file), str(input_file)):
        check_count(one)
        yield one
