"""`bayesrm best-of-n`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesrm_fast.cli.arguments import AsJson, MaxBatchTokens, Model, Output, Relative, Resume
from bayesrm_fast.cli.candidate_bars import CandidateBars
from bayesrm_fast.cli.choosing import Choosing, Completion, Policy, RuleText, Similarity, Weight
from bayesrm_fast.cli.jobs import check_unchanged, file_sha256, job_of
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.places import check_output
from bayesrm_fast.cli.resumable import ResumableOutput
from bayesrm_fast.cli.terminal import progress_bar, show_summary, stdout
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.select.choice import BestOfN
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
    as_json: AsJson = False,
) -> None:
    """Pick the best response of every prompt by its reward less the uncertainty of the choice, or by another rule."""
    from bayesrm_fast.text.files import iter_rows
    from bayesrm_fast.text.prefetching import prefetched
    from bayesrm_fast.text.records import iter_candidate_sets

    if explain and not (relative and rule == "std"):
        raise InputError("--explain is about the relative std: it goes with --rule std and --relative")
    choosing = Choosing(rule, k, relative, similarity, policy)
    check_output(output, input_file, model)
    sha256 = file_sha256(input_file)
    total = choosing.checked(iter_candidate_sets(iter_rows(input_file), str(input_file)))
    loaded = load_fitted(model, max_batch_tokens)
    used = choosing.of(loaded)
    complete = Completion(choosing)
    options = {"max_batch_tokens": max_batch_tokens, **choosing.options(used), "explain": explain}
    job = job_of(loaded, sha256, {"command": "best-of-n", **options, **complete.weights})
    tally = dict.fromkeys(("candidates", "variances_computed", "choices_changed_by_the_penalty"), 0)
    warned = 0
    bars = CandidateBars()
    sets = iter_candidate_sets(iter_rows(input_file), str(input_file))
    with ResumableOutput(output, job, sets, resume) as results, progress_bar("choosing") as tell:
        for chunk in prefetched(results.chunks()):
            best = loaded.best_of_each(complete(chunk), used, relative=relative)
            rows = [_chosen_row(used, one, found) for one, found in zip(chunk, best, strict=True)]
            if explain:
                for row, one, found in zip(rows, chunk, best, strict=True):
                    row["advice"] = _advice(loaded, one, found)
            results.add(chunk, rows)
            for one, found in zip(chunk, best, strict=True):
                bars.add(one, found)
            tell(results.count, total)
        check_unchanged(input_file, sha256)
        for row in results:
            tally["candidates"] += row["candidates"]
            tally["variances_computed"] += row["variances_computed"]
            tally["choices_changed_by_the_penalty"] += row["index"] != row["index_by_mean"]
            warned += explain and bool(row["advice"]["warnings"])
        results.finish(total)
    if stdout.is_terminal and not as_json:
        bars.show(stdout)
    told = {"prompts_with_warnings": warned, "k_by_tuning": _tuned(loaded)} if explain else {}
    show_summary({"output": str(output), "prompts": results.count, **tally, **told}, as_json)


def _chosen_row(rule: "Rule", one: "Candidates", best: "BestOfN") -> dict[str, Any]:
    from bayesrm_fast.select.rules import StochasticRule, first_best

    i = best.index
    drawn_by = {"probabilities": best.scores.tolist()} if isinstance(rule, StochasticRule) else {}
    return {
        "prompt": one.prompt,
        "index": i,
        "response": best.response,
        "score": best.scores[i].item(),
        "mean": best.mean[i].item(),
        "baseline": best.baseline,
        "std": best.variance[i].sqrt().item(),
        "index_by_mean": first_best(best.mean),
        "candidates": len(one.responses),
        "variances_computed": best.variances_computed,
    } | drawn_by


def _advice(loaded: "BayesianRewardModel", one: "Candidates", best: "BestOfN") -> dict[str, Any]:
    from bayesrm_fast.select.advice import advise

    tokens = loaded.encoder.encode_responses(one.responses)
    return advise(best.mean, best.variance.sqrt(), tokens).columns()


def _tuned(loaded: "BayesianRewardModel") -> float | str:
    penalty = loaded.fitted.penalty
    return "not tuned" if penalty is None else penalty.k
