"""A reward model with a posterior that chooses: best of n, tuned penalties, advice."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from bayesrm_fast.drawing import Drawing
from bayesrm_fast.errors import InputError, named
from bayesrm_fast.fitted_model import FittedRewardModel
from bayesrm_fast.model.exclusive import exclusive
from bayesrm_fast.model.passes import Progress
from bayesrm_fast.posterior.base import PenaltyChoice
from bayesrm_fast.select.active import SelectedPairs, SelectionPlan, Strategy, select_pairs
from bayesrm_fast.select.advice import Advice, advise
from bayesrm_fast.select.choice import BestOfN, check_needs, choose_each, know_each
from bayesrm_fast.select.hedged_rules import HEDGING_DRAWS, HedgedRule, checked_hedging, hedged
from bayesrm_fast.select.hedging import HedgingPool
from bayesrm_fast.select.named_rules import rule_of, weighs_the_std
from bayesrm_fast.select.rules import Need, PenalisedReward, Rule
from bayesrm_fast.select.stopping import Stopping
from bayesrm_fast.select.tuning import (
    JudgedPrompt,
    RuleReport,
    TunedRule,
    digest_of,
    grid_of,
    report,
    tuned,
    tuned_by_gold,
    tuned_by_pairs,
)
from bayesrm_fast.text.records import (
    Candidates,
    PreferencePair,
    as_rows,
    candidate_sets,
    iter_pools,
    pairs_within,
    preference_pairs,
)
from bayesrm_fast.text.texts import Text, key_of


class ChoosingRewardModel(FittedRewardModel):
    """A reward model with its posterior, and its choices; see `RewardModel` for what it is made of."""

    def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Mapping[str, Any] | Rule = "std",
        k: float | Literal["tuned"] = 1.0,
        *,
        relative: bool = True,
        exhaustive: bool = False,
        log_probabilities: Sequence[float] | None = None,
        similarities: Sequence[Sequence[float]] | None = None,
    ) -> BestOfN:
        """The candidate with the largest score by a rule: `mean − k·std`, `mean − k·variance` or the mean alone.

        Mean and variance are those of the difference to the mean of the prompt's candidates, because that is what a
        choice among them risks (docs/maths.md, section 11). Of a rule that needs no variances, such as "mean", they are
        the rewards' own, and `baseline` is None.

        Args:
            prompt, responses: one prompt and its candidates.
            rule: a name, such as "mean", "std", "variance", "soft" or "rbon_wd" (docs/rules.md has them all); a
                description, `{"rule": name, …}` with its parameters; or a `Rule`. One that needs variances and has no
                ceilings needs them all. One that draws is drawn from by its seed.
            k: of a named rule: weight of its penalty, or of that in the reward that it goes by; at least 0, or "tuned"
                for what `tune_penalty` has chosen.
            relative: False for mean and variance of the rewards themselves, as in arXiv 2402.13210, which are computed
                lazily, where the relative ones take a backward pass over all candidates.
            exhaustive: compute every variance, also where it is not needed to choose.
            log_probabilities, similarities: `[n]` and `[n, n]`, as of `Candidates`, for rules that need them.

        Raises:
            InputError: no candidates, text that cannot be read, or a rule that is unknown or needs what is not there.
        """
        one = Candidates(prompt, responses, log_probabilities, similarities)
        return self.best_of_each([one], rule, k, relative=relative, exhaustive=exhaustive)[0]

    @exclusive
    def best_of_each(
        self,
        candidates: Iterable[Any],
        rule: str | Mapping[str, Any] | Rule = "std",
        k: float | Literal["tuned"] = 1.0,
        *,
        relative: bool = True,
        exhaustive: bool = False,
        progress: Progress | None = None,
    ) -> list[BestOfN]:
        """`best_of_n` for many prompts at once, whose candidates share batches.

        Args:
            candidates: `Candidates`, or mappings with `prompt` and `responses`, and `log_probabilities` or
                `similarities` for rules that need them.
            rule, k, relative, exhaustive: as for `best_of_n`.
            progress: told the candidates whose means are known and their total.

        Raises:
            InputError: rows that cannot be read, or a rule that is unknown or needs what is not there.
        """
        asked = rule_of(rule, self.penalty_weight(k, relative, rule))
        sets = candidate_sets(candidates)
        check_needs(asked, sets)
        rows = self.tokenize_candidates(sets)
        options = {"relative": relative, "exhaustive": exhaustive}
        return choose_each(self.passes(), sets, rows, self.fitted, asked, **options, progress=progress)

    def advice(self, prompt: Text, responses: Sequence[Text]) -> Advice:
        """What the relative std can do for a choice among these candidates, and where it misleads; `str` says it.

        How large the std is beside the spread of the means, who wins at which k, whether the texts fall into groups of
        several sources, and what `tune_penalty` has found.

        Args:
            prompt, responses: one prompt and its candidates.

        Raises:
            InputError: no candidates, or text that cannot be read.
        """
        best = self.best_of_n(prompt, responses, "std", 0.0)
        tokens = self.encoder.encode_responses(responses)
        return advise(best.mean, best.variance.sqrt(), tokens, self.fitted.penalty)

    def penalty_weight(
        self, k: float | str, relative: bool = True, rule: str | Mapping[str, Any] | Rule = "std"
    ) -> float:
        """k as a number.

        Raises:
            InputError: "tuned" before `tune_penalty`, or for a rule that weighs no std, or an absolute one, which were
                not tuned; any other text.
        """
        if not isinstance(k, str):
            return k
        if k != "tuned":
            raise InputError(f"k must be a number or 'tuned', not {k!r}")
        if self.fitted.penalty is None:
            raise InputError("k='tuned' needs a tuned penalty: call tune_penalty first")
        if not relative:
            raise InputError("k='tuned' is of the relative std: it goes with relative=True")
        if not weighs_the_std(rule):
            raise InputError(
                "k='tuned' is of the relative std: it goes with rule='std', or one by name that goes by it"
            )
        return self.fitted.penalty.k

    @exclusive
    def tune_penalty(self, judged: Iterable[Any], *, progress: Progress | None = None) -> PenaltyChoice:
        """Choose how much of the relative std a choice subtracts, by judged responses; `k="tuned"` then uses it.

        Where what is right is rare, what is typical is wrong, and every penalty harms; so k is 0 unless its gain on
        these prompts is beyond one standard error. Use prompts that the model was neither trained nor fitted on, and
        report on others.

        Args:
            judged: `Candidates` or mappings with `prompt`, `responses` and `gold`, several responses of one policy for
                each prompt. Where there is nothing better, preference pairs: then prompts with more than one pair are
                used, and what k does to a choice among many is not known.
            progress: told the responses done and their total.

        Raises:
            InputError: rows that cannot be read, or that hold nothing to tune by.
        """
        rows = list(as_rows(judged, "judged"))
        is_paired = bool(rows) and all(_has(row, "chosen") and not _has(row, "responses") for row in rows)
        if is_paired:
            chosen = self._tuned_by_pairs(preference_pairs(rows, "judged"), progress)
        else:
            sets = candidate_sets(rows, "judged")
            chosen = tuned_by_gold(self._judged(PenalisedReward(), sets, True, progress))
        self.fitted.penalty = chosen
        return chosen

    @exclusive
    def tune(
        self,
        rule: str | Mapping[str, Any] | Rule,
        judged: Iterable[Any],
        parameters: Sequence[str] | Mapping[str, Sequence[float]] | None = None,
        *,
        k: float = 1.0,
        relative: bool = True,
        progress: Progress | None = None,
    ) -> TunedRule:
        """Choose a rule's parameters by judged responses: what `tune_penalty` does for k, for any rule.

        Args:
            rule, relative: as for `best_of_n`.
            k: as for `best_of_n`, and a number.
            judged: `Candidates` or mappings with `prompt`, `responses`, `gold` and what the rule needs.
            parameters: which of them, that of a nested rule as `reward.k`; or values to choose from by name, the first
                of which is that of no effect. Default: the rule's own, by the values of its `grids`.
            progress: told the responses done and their total.

        Raises:
            InputError: rows that cannot be read or hold nothing to tune by, or a parameter that the rule does not have.
        """
        asked = rule_of(rule, k)
        grid = grid_of(asked, parameters)
        return tuned(asked, grid, self._judged(asked, candidate_sets(judged, "judged"), relative, progress))

    @exclusive
    def report(
        self,
        rule: str | Mapping[str, Any] | Rule | TunedRule,
        judged: Iterable[Any],
        *,
        k: float = 1.0,
        relative: bool = True,
        progress: Progress | None = None,
    ) -> RuleReport:
        """What a rule's choices are worth on judged prompts, beside those of the mean alone.

        Args:
            rule: as for `best_of_n`, or what `tune` gave.
            judged, k, relative, progress: as for `tune`; a tuned rule needs the `relative` that it was tuned with.

        Raises:
            InputError: rows that cannot be read, or prompts that the rule was tuned on.
        """
        sets = candidate_sets(judged, "judged")
        if isinstance(rule, TunedRule):
            seen = [one.where for one in sets if digest_of(one) in rule.digests]
            if seen:
                raise InputError(f"the rule was tuned on {named(seen)}: report on other prompts")
            rule = rule.rule
        asked = rule_of(rule, k)
        return report(asked, self._judged(asked, sets, relative, progress))

    def stopping(self, prompt: Text, cost: float, *, typical_std: float | None = None) -> Drawing:
        """Takes a prompt's candidates as they are drawn, and says when another one is not worth its cost.

        Draws go on until the best reward is at least τ with `E (v − τ)⁺ = cost` (Kalayci et al., arXiv 2510.01394), v
        the next candidate's reward, whose mean and spread are learnt on the way. Among those that were drawn,
        `best_of_n(prompt, drawing.responses)` chooses.

        Args:
            prompt: what the candidates respond to.
            cost: of one candidate, in units of the reward.
            typical_std: of the rewards within a prompt, from other prompts; without it at least four are drawn.

        Raises:
            InputError: a cost or a typical std that is not a finite number above 0.
        """
        return Drawing(self, prompt, Stopping(cost, typical_std=typical_std))

    @exclusive
    def hedge(
        self,
        rule: str | Mapping[str, Any] | Rule,
        candidates: Iterable[Any],
        *,
        by: Literal["gold", "posterior"] = "gold",
        aversion: float = 0.0,
        k: float = 1.0,
        relative: bool = True,
        progress: Progress | None = None,
    ) -> HedgedRule:
        """How hard to choose before the gold falls, for "subset", "soft" or "poisson" (HedgeTune, arXiv 2506.19248).

        Args:
            rule, k, relative: as for `tune`; one that hedges by how hard it chooses.
            candidates: as `judged` of `tune`; gold is needed where it is what to hedge by.
            by: "gold" for what responses are worth; "posterior" for draws of the rewards, which needs no gold. Their
                mean is the reward itself, which never falls: then `aversion` is what there is to hedge for.
            aversion: how many std of the expected gold over its draws are taken off its mean, at least 0.
            progress: told the responses done and their total.

        Raises:
            InputError: rows that cannot be read, a rule of another kind, or nothing to hedge by.
        """
        if by not in ("gold", "posterior"):
            raise InputError(f"by must be gold or posterior, not {by!r}")
        asked = checked_hedging(rule_of(rule, k))
        sets = candidate_sets(candidates)
        if by == "gold":
            pools = [
                HedgingPool(asked.reward.scores(one.known), one.gold)
                for one in self._judged(asked, sets, relative, progress)
            ]
        else:
            check_needs(asked, sets)
            rows = self.tokenize_candidates(sets)
            needs = asked.needs | {Need.JOINT}
            found = know_each(self.passes(), sets, rows, self.fitted, needs, relative=relative, progress=progress)
            pools = [
                HedgingPool(asked.reward.scores(known), known.joint.samples(HEDGING_DRAWS))
                for known, _ in found
                if known.joint is not None
            ]
        return hedged(asked, pools, aversion)

    @exclusive
    def select_pairs(
        self,
        pairs: Iterable[Any],
        count: int,
        *,
        strategy: Strategy = "information",
        seed: int = 0,
        shortlist: int | None = None,
        progress: Progress | None = None,
    ) -> SelectedPairs:
        """The pairs that a labeller should judge next, of a pool that nobody has judged (docs/select_pairs.md).

        Args:
            pairs: mappings with `prompt`, `chosen` and `rejected`, whose order says nothing, or with `prompt` and
                `responses`, any two of which are a pair; the first row says which.
            count: how many, no more than the pool holds.
            strategy: "information" for the batch whose labels together say most about the reward function;
                "uncertainty" for the largest stds, each by itself; "random".
            seed: of "random".
            shortlist: how many pairs of the largest information are looked at together; the batch is chosen among
                them. Default: 2,048, or four times `count` where that is more.
            progress: told the pairs done and their total.

        Raises:
            InputError: rows that cannot be read, a pool smaller than `count`, or an unknown strategy.
        """
        plan = SelectionPlan(count, strategy, seed, shortlist)
        records = list(iter_pools(pairs))
        pool = sum(map(pairs_within, records))
        return select_pairs(self, self.passes(), self.fitted, records, pool, plan, progress)

    def _judged(
        self, rule: Rule, sets: Sequence[Candidates], relative: bool, progress: Progress | None
    ) -> list[JudgedPrompt]:
        """What the rule needs to know of every prompt with several responses."""
        absent = [one.where for one in sets if one.gold is None]
        if absent:
            raise InputError(f"{absent[0]} has no gold: tuning needs what each response is worth")
        several = [one for one in sets if len(one.responses) > 1]
        if not several:
            raise InputError("there is nothing to tune by: no prompt has several responses")
        check_needs(rule, several)
        rows = self.tokenize_candidates(several)
        found = know_each(self.passes(), several, rows, self.fitted, rule.needs, relative=relative, progress=progress)
        return [
            JudgedPrompt(known, torch.tensor(one.gold, dtype=torch.float64, device="cpu"), digest_of(one))
            for one, (known, _) in zip(several, found, strict=True)
        ]

    def _tuned_by_pairs(self, pairs: Sequence[PreferencePair], progress: Progress | None) -> PenaltyChoice:
        by_prompt: dict[str, list[PreferencePair]] = {}
        for pair in pairs:
            if pair.prompt is not None:
                by_prompt.setdefault(key_of(pair.prompt), []).append(pair)
        means, stds = [], []
        pools = [_pool(own) for own in by_prompt.values()]
        # The two of a single pair are equally far from their mean, which says nothing of k.
        several = [(own, pool) for own, pool in zip(by_prompt.values(), pools, strict=True) if len(pool) > 2]
        if not several:
            raise InputError("there is nothing to tune by: pairs need prompts with three or more different responses")
        sets = [Candidates(own[0].prompt or "", list(pool.values()), tools=own[0].tools) for own, pool in several]
        for (own, pool), best in zip(several, self.best_of_each(sets, "std", 0.0, progress=progress), strict=True):
            place = {key: i for i, key in enumerate(pool)}
            std = best.variance.sqrt()
            for pair in own:
                better, worse = place[key_of(pair.chosen)], place[key_of(pair.rejected)]
                means.append(best.mean[better] - best.mean[worse])
                stds.append(std[better] - std[worse])
        warnings.warn(
            "the penalty is tuned by pairs, which say little about a choice among many: judged responses say more",
            stacklevel=4,  # past the decorator of `tune_penalty`
        )
        return tuned_by_pairs(torch.stack(means), torch.stack(stds), len(several))


def _has(row: Any, name: str) -> bool:
    return hasattr(row, name) or (isinstance(row, Mapping) and name in row)


def _pool(pairs: Sequence[PreferencePair]) -> dict[str, Text]:
    """The different responses of some pairs."""
    return {key_of(text): text for pair in pairs for text in (pair.chosen, pair.rejected)}
