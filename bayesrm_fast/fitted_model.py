"""A reward model with a posterior, however it came by it: scores, joint posteriors and choices."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.exclusive import exclusive
from bayesrm_fast.model.fingerprint import ADAPTER, adapter_fingerprint
from bayesrm_fast.model.passes import Passes, Progress
from bayesrm_fast.model.reward_model import RewardModel
from bayesrm_fast.model.state import ModelState
from bayesrm_fast.posterior.base import PenaltyChoice, Posterior
from bayesrm_fast.score.features import Outside
from bayesrm_fast.score.joint import JointRewards, joint_rewards
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.relative import Comparison, positions_of_equals, score_differences, within_prompts
from bayesrm_fast.score.variances import PairScores, RewardScores, score_examples
from bayesrm_fast.select.advice import Advice, advise
from bayesrm_fast.select.choice import BestOfN, check_needs, choose_each
from bayesrm_fast.select.rules import Rule, rule_of
from bayesrm_fast.select.tuning import JudgedPrompt, tuned_by_gold, tuned_by_pairs
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow
from bayesrm_fast.text.prefetching import prefetched
from bayesrm_fast.text.records import (
    Candidates,
    PreferencePair,
    as_rows,
    candidate_sets,
    checked_rows,
    preference_pairs,
    single_responses,
)
from bayesrm_fast.text.texts import Text, as_list, checked_text, is_list, key_of

STREAM_WINDOW = 256
"""Rows of a stream that are sorted by length together."""


class FittedRewardModel(RewardModel):
    """A reward model with its posterior; see `RewardModel` for what it is made of.

    Threads may share it. A call that runs the model, a fit included, waits until no other one runs on the same base
    model, by whatever adapter; its texts are mostly tokenized before. A stream lets others in after every window, and a
    pass of `passes()` after every batch. A caller's inference mode, autocast, grad mode and default device or dtype
    change no number; `torch.set_float32_matmul_precision` does, as in the model itself.
    """

    _posterior: Posterior | None = None
    _state: ModelState | None = None

    @property
    def posterior(self) -> Posterior | None:
        """The fitted posterior, None before `fit`. Its `prior_precision` may be set.

        One that is set is that of the model as it then is: a model that is changed later is refused at the next call.
        """
        return self._posterior

    @posterior.setter
    def posterior(self, value: Posterior | None) -> None:
        if value is not None:
            self._check_weights(value)
        self._posterior, self._state = value, None
        if value is not None:
            self._state = ModelState(self.model, self.tokenizer, self.lora, self.output_weights)

    def _check_weights(self, posterior: Posterior) -> None:
        """Refuse a posterior over other weights; warn of one that was fitted on other numbers in them."""
        self.check_sites(posterior.sites, self.virtual, posterior.record.include_head, "the posterior")
        adapters = [*self.lora, *(self.virtual.taps if self.virtual else ())]
        if posterior.record.fingerprint.get(ADAPTER) != adapter_fingerprint(adapters):
            what = (
                "the posterior was fitted on other adapter weights than the model has: its variances may not be theirs"
            )
            warnings.warn(what, stacklevel=3)

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """MAP rewards `[N]` by forward passes alone; needs no posterior.

        Raises:
            InputError: no rows, lists of different lengths, text that cannot be read, or a reward that is NaN.
        """
        return self.rewards_tokenized(self.tokenize(prompts, responses), prompts)

    @exclusive
    def rewards_tokenized(self, rows: Sequence[TokenizedRow], prompts: Sequence[Text]) -> Tensor:
        """`rewards` of tokenized rows; rows of equal prompts may share their beginning."""
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(str(prompt), len(numbers)) for prompt in prompts]
        passes = self.passes_over(self.taps(self.virtual)) if self.posterior is None else self.passes()
        return rewards_of(passes, rows, owners)

    def score(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        *,
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
        progress: Progress | None = None,
    ) -> RewardScores:
        """Reward and variance of `responses[i]` to `prompts[i]`.

        Args:
            prompts, responses: N of each.
            relative_to: what mean and variance are of the difference to: "prompt" for the mean of all responses to the
                same prompt, each as often as it is given; N texts for a reference of each row, such as a greedy answer.
                None for the reward's own, whose variance holds that of the constant that a prompt adds to its rewards.
            progress: told the rows done and their total.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        prompts, responses = checked_rows(prompts, responses)
        rows = self.encoder.encode(prompts, responses)
        if relative_to is None:
            return self.score_tokenized(rows, progress=progress)
        keys = [key_of(prompt) for prompt in prompts]
        if isinstance(relative_to, str) and relative_to == "prompt":
            comparisons = within_prompts(positions_of_equals(keys))
            return self.score_differences(rows, comparisons, progress=progress)
        where = [f"reference {i + 1}" for i in range(len(rows))]
        relative_to = _checked_references(relative_to, where)
        references = self.tokenize(prompts, relative_to, where)
        keys = [f"{key}\0{key_of(reference)}" for key, reference in zip(keys, relative_to, strict=True)]
        comparisons = [Comparison(own, [len(rows) + own[0]]) for own in positions_of_equals(keys)]
        return self.score_differences([*rows, *references], comparisons, progress=progress)

    @exclusive
    def score_differences(
        self, rows: Sequence[TokenizedRow], comparisons: Sequence[Comparison], *, progress: Progress | None = None
    ) -> RewardScores:
        """Scores of tokenized rows relative to the baselines that they are compared with.

        Args:
            rows: of all comparisons, the first N of which are compared, each once.
            comparisons: at least one.
            progress: told the rows done and their total.

        Raises:
            InputError: nothing to score, or a reward that is NaN or infinite.
        """
        _refuse_nothing(rows)
        order = [i for one in comparisons for i in one.rows]
        back = torch.tensor(order, dtype=torch.int64, device="cpu").argsort()
        found = score_differences(self.passes(), rows, comparisons, self.fitted, progress).at(back)
        return RewardScores(found.mean, found.variance, _truncated(rows[: len(found.mean)]), found.baseline)

    @exclusive
    def score_tokenized(self, rows: Sequence[TokenizedRow], *, progress: Progress | None = None) -> RewardScores:
        """`score` of tokenized rows.

        Raises:
            InputError: nothing to score, or a reward that is NaN or infinite.
        """
        _refuse_nothing(rows)
        mean, variance = score_examples(self.passes(), rows, self.fitted, progress)
        return RewardScores(mean, variance, _truncated(rows))

    def score_pairs(self, pairs: Iterable[Any], *, progress: Progress | None = None) -> PairScores:
        """Mean and variance of `r_chosen − r_rejected`, and the probability that the chosen response is preferred.

        Raises:
            InputError: pairs that cannot be read.
        """
        return self.score_tokenized_pairs(self.tokenize_pairs(pairs), progress=progress)

    @exclusive
    def score_tokenized_pairs(self, pairs: Sequence[TokenizedPair], *, progress: Progress | None = None) -> PairScores:
        """`score_pairs` of tokenized pairs.

        Raises:
            InputError: nothing to score, or a reward that is NaN or infinite.
        """
        _refuse_nothing(pairs)
        mean, variance = score_examples(self.passes(), pairs, self.fitted, progress)
        return PairScores(mean, variance, _truncated(pairs), temperature=self.fitted.temperature)

    @exclusive
    def covariance(self, prompt: Text, responses: Sequence[Text], *, outside: Outside = "auto") -> JointRewards:
        """Joint Gaussian over the rewards of one prompt's n candidates, and what follows from it for a choice.

        Args:
            prompt, responses: one prompt and its candidates.
            outside: how to keep the part of the gradients outside of the posterior's bases. "exact" takes n times as
                many float32 numbers of the host's memory as the posterior has weights; "sketch" 8,192 numbers for each
                candidate, with an error that the result tells; "auto" is exact where that takes half of the free
                memory or less.

        Raises:
            InputError: no candidates, text that cannot be read, or an unknown `outside`.
        """
        rows = self.tokenize_candidates(candidate_sets([Candidates(prompt, responses)]))
        return joint_rewards(self.passes(), rows, self.fitted, outside)

    def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Rule = "std",
        k: float | Literal["tuned"] = 1.0,
        *,
        relative: bool = True,
        exhaustive: bool = False,
    ) -> BestOfN:
        """The candidate with the largest score by a rule: `mean − k·std`, `mean − k·variance` or the mean alone.

        Mean and variance are those of the difference to the mean of the prompt's candidates, because that is what a
        choice among them risks (docs/maths.md, section 11). Of a rule that needs no variances, such as "mean", they are
        the rewards' own, and `baseline` is None.

        Args:
            prompt, responses: one prompt and its candidates.
            rule: "mean", "std", "variance", or a `Rule`. One that needs variances and has no ceilings needs them all.
            k: weight of the penalty of a named rule, at least 0; "tuned" for what `tune_penalty` has chosen.
            relative: False for mean and variance of the rewards themselves, as in arXiv 2402.13210, which are computed
                lazily, where the relative ones take a backward pass over all candidates.
            exhaustive: compute every variance, also where it is not needed to choose.

        Raises:
            InputError: no candidates, text that cannot be read, or a rule that is unknown or needs what is not there.
        """
        one = Candidates(prompt, responses)
        return self.best_of_each([one], rule, k, relative=relative, exhaustive=exhaustive)[0]

    @exclusive
    def best_of_each(
        self,
        candidates: Iterable[Any],
        rule: str | Rule = "std",
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

    def penalty_weight(self, k: float | str, relative: bool = True, rule: str | Rule = "std") -> float:
        """k as a number.

        Raises:
            InputError: "tuned" before `tune_penalty`, or for another rule or an absolute std, which were not tuned; any
                other text.
        """
        if not isinstance(k, str):
            return k
        if k != "tuned":
            raise InputError(f"k must be a number or 'tuned', not {k!r}")
        if self.fitted.penalty is None:
            raise InputError("k='tuned' needs a tuned penalty: call tune_penalty first")
        if not relative:
            raise InputError("k='tuned' is of the relative std: it goes with relative=True")
        if rule not in ("std", "mean"):
            raise InputError("k='tuned' is of the relative std: it goes with rule='std'")
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
            chosen = self._tuned_by_gold(candidate_sets(rows, "judged"), progress)
        self.fitted.penalty = chosen
        return chosen

    def _tuned_by_gold(self, sets: Sequence[Candidates], progress: Progress | None) -> PenaltyChoice:
        absent = [one.where for one in sets if one.gold is None]
        if absent:
            raise InputError(f"{absent[0]} has no gold: tuning needs what each response is worth")
        several = [one for one in sets if len(one.responses) > 1]
        if not several:
            raise InputError("there is nothing to tune by: no prompt has several responses")
        scored = self.best_of_each(several, "std", 0.0, progress=progress)
        prompts = [
            JudgedPrompt(best.mean, best.variance.sqrt(), torch.tensor(one.gold, dtype=torch.float64, device="cpu"))
            for one, best in zip(several, scored, strict=True)
        ]
        return tuned_by_gold(prompts)

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

    def score_stream(self, rows: Iterable[Any], *, window: int = STREAM_WINDOW) -> Iterator[tuple[float, float, bool]]:
        """Reward and variance of every row of an iterable that need not fit in memory, in its order.

        Rows are read and tokenized in a thread, beside the model, and no more than three windows ahead.

        Args:
            rows: `(prompt, response)`, or mappings with `prompt` and `response`.
            window: rows that are sorted by length together.

        Yields:
            `(mean, variance, truncated)` of each row.

        Raises:
            InputError: a row that cannot be read; those before its window have been given.
        """
        self.fitted  # noqa: B018  (raises where there is none)

        def tokenized() -> Iterator[list[TokenizedRow]]:
            numbered = enumerate(rows, start=1)
            while chunk := list(itertools.islice(numbered, window)):
                sets = single_responses(chunk)
                yield self.encoder.encode(
                    [one.prompt for one in sets],
                    [one.responses[0] for one in sets],
                    [one.where for one in sets],
                    [one.tools for one in sets],
                )

        for waiting in prefetched(tokenized()):
            scores = self.score_tokenized(waiting)
            yield from zip(scores.mean.tolist(), scores.variance.tolist(), scores.truncated.tolist(), strict=True)

    @property
    def fitted(self) -> Posterior:
        """The posterior; raises InputError where there is none."""
        if self.posterior is None:
            raise InputError("there is no posterior: call fit, or load a folder that holds one")
        return self.posterior

    def check_unchanged(self) -> None:
        """Raise InputError where the model has changed since its posterior was fitted, and say in what."""
        if self._state is not None:
            self._state.check()

    def passes(self) -> Passes:
        """The tapped model that feeds the fitted posterior: for consumers of one's own.

        Raises:
            InputError: no posterior, one that is on another device than the model, or a model that has changed since it
                was fitted; the message says in what.
        """
        fitted = self.fitted
        self.check_unchanged()
        elsewhere = {tensor.device for tensor in fitted.tensors().values()} - {self.collator.device}
        if elsewhere:
            where = ", ".join(sorted(map(str, elsewhere)))
            raise InputError(
                f"the posterior is on {where}, the model on {self.collator.device}: give the model posterior.to(device)"
            )
        return self.passes_over(self.taps(self.virtual, fitted.record.include_head))


def _has(row: Any, name: str) -> bool:
    return hasattr(row, name) or (isinstance(row, Mapping) and name in row)


def _pool(pairs: Sequence[PreferencePair]) -> dict[str, Text]:
    """The different responses of some pairs."""
    return {key_of(text): text for pair in pairs for text in (pair.chosen, pair.rejected)}


def _checked_references(references: Any, where: Sequence[str]) -> list[Text]:
    references = as_list(references)
    if not is_list(references):
        what = repr(references) if isinstance(references, str) else f"a {type(references).__name__}"
        raise InputError(f"relative_to must be 'prompt', a reference for each row or None, not {what}")
    if len(references) != len(where):
        raise InputError(f"there are {len(where)} prompts but {len(references)} references")
    return [checked_text(reference, name) for name, reference in zip(where, references, strict=True)]


def _refuse_nothing(examples: Sequence[TokenizedRow] | Sequence[TokenizedPair]) -> None:
    if not examples:
        raise InputError("there is nothing to score: the list is empty")


def _truncated(examples: Sequence[TokenizedRow] | Sequence[TokenizedPair]) -> Tensor:  # shape: (N,), bool
    return torch.tensor([example.is_truncated for example in examples], dtype=torch.bool, device="cpu")
