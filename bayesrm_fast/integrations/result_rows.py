"""What rows of a file or of a dataset become: the form of their results, whoever runs the model on them."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from bayesrm_fast.errors import InputError
from bayesrm_fast.text.records import Candidates, PreferencePair, iter_candidate_sets, iter_preference_pairs
from bayesrm_fast.text.steps import StepwiseResponse, is_stepwise, iter_stepwise_responses

if TYPE_CHECKING:  # files are checked before torch is loaded
    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.select.choice import BestOfN
    from bayesrm_fast.select.rules import Rule
    from bayesrm_fast.text.examples import SegmentedRow, TokenizedPair, TokenizedRow

Row = dict[str, Any]
R = TypeVar("R")
T = TypeVar("T")

# Columns that are read. Results keep all others.
OF_CANDIDATES = frozenset({"prompt", "responses", "tools", "log_probabilities", "similarities"})
OF_PAIRS = frozenset({"prompt", "chosen", "rejected", "tools"})
OF_STEPS = frozenset({"prompt", "completions"})

TELLING_FORMS = frozenset({"baseline", "first_error", "aggregates"})
"""Columns by which the forms of results are told apart: an input's own would make results look like others."""


@dataclass(frozen=True)
class Scoring(Generic[R, T]):
    """How rows of one form are scored; it can be pickled.

    Attributes:
        columns: that are read.
        read: the records of rows, given the rows and what errors call them.
        tokenize: records with a model's tokenizer, which may run in another thread than the model.
        results: of tokenized records, one each.
        check: raises InputError for a model that does not score such rows.
    """

    columns: frozenset[str]
    read: Callable[[Iterable[Any], str], Iterator[R]]
    tokenize: Callable[["BayesianRewardModel", list[R]], T]
    results: Callable[["BayesianRewardModel", list[R], T], list[Row]]
    check: Callable[["BayesianRewardModel"], None]

    def __call__(self, rm: "BayesianRewardModel", records: list[R]) -> list[Row]:
        """Results of records, one each.

        Raises:
            InputError: a reward or a variance that is NaN or infinite, by its record.
        """
        return self.results(rm, records, self.tokenize(rm, records))


def scoring_of(first: Mapping[str, Any], relative: bool) -> Scoring[Any, Any]:
    """How rows like the first one are scored: candidates of a prompt, pairs, or responses in steps.

    Args:
        first: a row.
        relative: whether candidates' means and variances are of the difference to the mean of their prompt's.

    Raises:
        InputError: `relative` of rows that are not candidates.
    """
    if is_stepwise(first):
        if relative:
            raise InputError("a step's score is the log-odds of its own label: relative is for rows of responses")
        read = functools.partial(iter_stepwise_responses, labelled=False)
        return Scoring(OF_STEPS, read, _tokenized_steps, _scored_steps, _check_steps)
    if "responses" not in first and "chosen" in first:
        if relative:
            raise InputError("pairs are scored as differences already: relative is for rows of responses")
        return Scoring(OF_PAIRS, iter_preference_pairs, _tokenized_pairs, _scored_pairs, _check_whole)
    results = functools.partial(_scored_candidates, relative=relative)
    return Scoring(OF_CANDIDATES, iter_candidate_sets, _tokenized_candidates, results, _check_whole)


def other_columns(row: Mapping[str, Any], read: Iterable[str]) -> Row:
    """Those of a row that are not read, and stay beside its results."""
    return {name: value for name, value in row.items() if name not in read}


def _check_steps(rm: "BayesianRewardModel") -> None:
    rm.segment_encoder  # noqa: B018  (raises for a model that scores whole responses)


def _check_whole(rm: "BayesianRewardModel") -> None:
    """Encoding refuses a token classifier by itself."""


def _tokenized_candidates(rm: "BayesianRewardModel", records: list[Candidates]) -> "list[TokenizedRow]":
    return rm.tokenize_candidates(records)


def _scored_candidates(
    rm: "BayesianRewardModel", records: list[Candidates], rows: "list[TokenizedRow]", *, relative: bool
) -> list[Row]:
    from bayesrm_fast.score.relative import within_prompts

    ends = [0, *itertools.accumulate(len(one.responses) for one in records)]
    places = [range(start, stop) for start, stop in itertools.pairwise(ends)]
    scores = rm.score_differences(rows, within_prompts(places)) if relative else rm.score_tokenized(rows)
    columns = {name: values.tolist() for name, values in scores.columns().items()}
    return [
        {"prompt": one.prompt, **{name: [values[i] for i in own] for name, values in columns.items()}}
        for one, own in zip(records, places, strict=True)
    ]


def _tokenized_pairs(rm: "BayesianRewardModel", records: list[PreferencePair]) -> "list[TokenizedPair]":
    return rm.encoder.encode_pairs(records)


def _scored_pairs(rm: "BayesianRewardModel", records: list[PreferencePair], pairs: "list[TokenizedPair]") -> list[Row]:
    columns = {name: values.tolist() for name, values in rm.score_tokenized_pairs(pairs).columns().items()}
    return [
        {"prompt": pair.prompt, **{name: values[i] for name, values in columns.items()}}
        for i, pair in enumerate(records)
    ]


def _tokenized_steps(rm: "BayesianRewardModel", records: list[StepwiseResponse]) -> "list[SegmentedRow]":
    return rm.tokenize_steps(records)


def _scored_steps(rm: "BayesianRewardModel", records: list[StepwiseResponse], rows: "list[SegmentedRow]") -> list[Row]:
    from bayesrm_fast.score.segments import Aggregate

    return [
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
        for response, one in zip(records, rm.score_tokenized_segments(rows), strict=True)
    ]


def chosen_rows(
    rm: "BayesianRewardModel",
    sets: Sequence[Candidates],
    rule: "Rule",
    best: "Sequence[BestOfN]",
    *,
    explain: bool = False,
) -> list[Row]:
    """The best response of every prompt by a rule, with what the choice was made by.

    Args:
        rm: the model, with its posterior.
        sets: candidates of each prompt, with what the rule reads of them.
        rule: by which they are chosen.
        best: what `BayesianRewardModel.best_of_each` chose of each.
        explain: add what the penalty can do there, as `advice`.
    """
    from bayesrm_fast.select.advice import advise

    rows = [_chosen_row(rule, one, found) for one, found in zip(sets, best, strict=True)]
    if explain:
        for row, one, found in zip(rows, sets, best, strict=True):
            tokens = rm.encoder.encode_responses(one.responses)
            row["advice"] = advise(found.mean, found.variance.sqrt(), tokens).columns()
    return rows


def _chosen_row(rule: "Rule", one: Candidates, best: "BestOfN") -> Row:
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
