"""Best and worst of n as preference pairs: on them a policy learns what best-of-n samples (arXiv 2406.00832)."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.estimators import bonbon_beta
from bayesrm_fast.select.named_rules import rule_of
from bayesrm_fast.select.rules import Need, Rule, StochasticRule
from bayesrm_fast.text.layouts import as_continuation, as_messages
from bayesrm_fast.text.records import Candidates, candidate_sets
from bayesrm_fast.text.texts import Text

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.select.choice import BestOfN


def bonbon_rows(
    rm: "BayesianRewardModel",
    candidates: Iterable[Any],
    rule: str | Mapping[str, Any] | Rule = "std",
    k: float | Literal["tuned"] = 1.0,
    *,
    relative: bool = True,
) -> list[dict[str, Any]]:
    """The best and the worst response to every prompt, as rows of trl's preference data.

    A row has `prompt`, `chosen` and `rejected`, all strings or all conversations; `n`, the number of candidates;
    `beta`, `bonbon_beta(n)`; `score_chosen` and `score_rejected` by the rule; and `tools` as JSON where the candidates
    have some. The worst is the lowest by the same score as the best, and the last one of equals. A prompt whose
    candidates all have one score, or whose best and worst are one text, prefers nothing: it gives no row, and a warning
    tells how many there are.

    Args:
        rm: fitted.
        candidates: as for `best_of_each`; n responses of one policy to each prompt.
        rule, k, relative: as for `best_of_n`, but no rule that draws. All variances that the rule needs are computed.

    Raises:
        InputError: fewer than two candidates, by row; a rule that draws; what `best_of_each` raises; or no prompt gives
            a row.
    """
    asked = rule_of(rule, rm.penalty_weight(k, relative, rule))
    check_scores(asked)
    sets = candidate_sets(candidates)
    for one in sets:
        check_count(one)
    found = best_and_worst_of_each(rm, sets, asked, relative=relative)
    rows = [row for row in found if row is not None]
    if not rows:
        raise InputError("no prompt has candidates of different scores, so there is no pair to train on")
    if len(rows) < len(sets):
        warnings.warn(
            f"{len(sets) - len(rows)} prompt(s) of {len(sets)}, whose candidates are all equal, give no pair",
            stacklevel=2,
        )
    return rows


def best_and_worst_of_each(
    rm: "BayesianRewardModel", sets: Sequence[Candidates], rule: Rule, *, relative: bool
) -> list[dict[str, Any] | None]:
    """A row of `bonbon_rows` for each of these prompts; None where nothing is preferred.

    Raises:
        InputError: what `best_of_each` raises, or a candidate without a score.
    """
    best = rm.best_of_each(sets, rule, relative=relative, exhaustive=Need.VARIANCE in rule.needs)
    return [_best_and_worst(one, found) for one, found in zip(sets, best, strict=True)]


def check_count(one: Candidates) -> None:
    """Raise InputError where a prompt has no best *and* worst candidate."""
    if len(one.responses) < 2:
        raise InputError(f"{one.where} has 1 response, and the best and the worst of n need at least 2")


def check_scores(rule: Rule) -> None:
    """Raise InputError for a rule by which no candidate is the worst."""
    if isinstance(rule, StochasticRule):
        raise InputError(f"{type(rule).__name__} draws among the candidates, and so has no best and worst of them")


def _best_and_worst(one: Candidates, best: "BestOfN") -> dict[str, Any] | None:
    unscored = best.scores.isnan().nonzero().flatten().tolist()
    if unscored:
        raise InputError(f"{one.where}: responses[{unscored[0]}] has no score by the rule, so it may be the worst")
    worst = _last_worst(best.scores)
    scores = best.scores[best.index].item(), best.scores[worst].item()
    if scores[0] == scores[1] or one.responses[best.index] == one.responses[worst]:
        return None
    n = len(one.responses)
    prompt, chosen, rejected = _as_trl_reads(one.prompt, one.responses[best.index], one.responses[worst])
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "n": n, "beta": bonbon_beta(n)}
    row |= {"score_chosen": scores[0], "score_rejected": scores[1]}
    return row | ({"tools": json.dumps(one.tools)} if one.tools else {})


def _last_worst(scores: Tensor) -> int:  # shape: (n,)
    """Of equals the one that loses the most: ties are won by the lower index."""
    return int(torch.nonzero(scores == scores.min())[-1])


def _as_trl_reads(prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """All three as strings, which trl joins with nothing between them, or all three as conversations."""
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        sides = [as_continuation(prompt, text) for text in (chosen, rejected)]
        if sides[0][0] == sides[1][0]:
            return *sides[0], sides[1][1]
        return prompt, chosen, rejected
    asked, better = as_messages(prompt, chosen)
    return asked, better, as_messages(prompt, rejected)[1]
