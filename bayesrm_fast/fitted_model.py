"""A reward model with a posterior, however it came by it: scores and joint posteriors."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.model.exclusive import exclusive
from bayesrm_fast.model.fingerprint import ADAPTER, adapter_fingerprint
from bayesrm_fast.model.passes import Passes, Progress
from bayesrm_fast.model.readout import AggregateReadout, OnePassAggregate, PooledReadout, TokenReadout
from bayesrm_fast.model.reward_model import RewardModel
from bayesrm_fast.model.state import ModelState
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.features import Outside
from bayesrm_fast.score.joint import JointRewards, joint_rewards
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.outputs import OutputScores, output_scores
from bayesrm_fast.score.relative import Comparison, compared_scores, positions_of_equals, within_prompts
from bayesrm_fast.score.segments import SegmentScores, segment_scores
from bayesrm_fast.score.variances import PairScores, RewardScores, score_examples, truncated_and_tokens
from bayesrm_fast.text.examples import SegmentedRow, TokenizedPair, TokenizedRow
from bayesrm_fast.text.prefetching import prefetched
from bayesrm_fast.text.records import (
    Candidates,
    candidate_sets,
    checked_references,
    checked_rows,
    single_responses,
)
from bayesrm_fast.text.segments import Span
from bayesrm_fast.text.steps import StepwiseResponse, checked_steps, stepwise_responses
from bayesrm_fast.text.texts import Text, checked_text, key_of

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
        return self.rewards_tokenized(self.tokenize(prompts, responses))

    @exclusive
    def rewards_tokenized(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """`rewards` of tokenized rows."""
        return rewards_of(self.reward_passes(), rows)

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
        if relative_to is None:
            return self.score_tokenized(self.tokenize(prompts, responses), progress=progress)
        rows, comparisons = self.tokenize_comparisons(prompts, responses, relative_to)
        return self.score_differences(rows, comparisons, progress=progress)

    def tokenize_comparisons(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        relative_to: Literal["prompt"] | Sequence[Text],
        where: Sequence[str] | None = None,
    ) -> tuple[list[TokenizedRow], list[Comparison]]:
        """What `score_differences` takes; may run in another thread than the model.

        Args:
            prompts, responses, relative_to: as for `score`.
            where: what an error calls each response's row. Default: its number.

        Raises:
            InputError: what `score` raises of its texts.
        """
        prompts, responses = checked_rows(prompts, responses)
        rows = self.encoder.encode(prompts, responses, where)
        keys = [key_of(prompt) for prompt in prompts]
        if isinstance(relative_to, str) and relative_to == "prompt":
            return rows, within_prompts(positions_of_equals(keys))
        names = [f"reference {i + 1}" for i in range(len(rows))]
        relative_to = checked_references(relative_to, names)
        references = self.tokenize(prompts, relative_to, names)
        keys = [f"{key}\0{key_of(reference)}" for key, reference in zip(keys, relative_to, strict=True)]
        return [*rows, *references], [Comparison(own, [len(rows) + own[0]]) for own in positions_of_equals(keys)]

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
        return compared_scores(self.passes(), rows, comparisons, self.fitted, progress)

    @exclusive
    def score_tokenized(self, rows: Sequence[TokenizedRow], *, progress: Progress | None = None) -> RewardScores:
        """`score` of tokenized rows.

        Raises:
            InputError: nothing to score, or a reward that is NaN or infinite.
        """
        _refuse_nothing(rows)
        mean, variance = score_examples(self.passes(), rows, self.fitted, progress)
        return RewardScores(mean, variance, *truncated_and_tokens(rows))

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
        return PairScores(mean, variance, *truncated_and_tokens(pairs), temperature=self.fitted.temperature)

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

    @exclusive
    def score_outputs(self, prompt: Text, responses: Sequence[Text], *, outside: Outside = "auto") -> OutputScores:
        """Joint Gaussian over all outputs of a sequence classifier with several, for one prompt's n candidates.

        The posterior is that of the fit, whose `output_weights` said what the pairs prefer; any other preference may be
        asked of the result.

        Args:
            prompt, responses: one prompt and its candidates.
            outside: as for `covariance`.

        Raises:
            InputError: no sequence classifier, no candidates, or text that cannot be read.
        """
        if not isinstance(self.readout, PooledReadout):
            raise InputError("score_outputs is for sequence classifiers, whose outputs stand side by side")
        rows = self.tokenize_candidates(candidate_sets([Candidates(prompt, responses)]))
        return output_scores(self.passes(), rows, prompt, len(self.output_weights), self.fitted, outside)

    def score_segments(
        self,
        prompt: Text,
        response: str | Sequence[str],
        *,
        ends: Sequence[int] | Sequence[Span] | None = None,
        outside: Outside = "auto",
    ) -> SegmentScores:
        """Scores of the segments of one response by a token classifier, jointly Gaussian.

        Args:
            prompt: what is answered.
            response: its S steps, as trl's `completions`; or with `ends` the text.
            ends: the end of each segment in characters of the response, ascending, each segment beginning where the one
                before it ends; or `(start, end)` of each.
            outside: as for `covariance`.

        Returns:
            Means `[S]`, covariance `[S, S]` and more, with the row's tokens and the S at which it is read.

        Raises:
            InputError: a model that scores whole responses, text that cannot be read, segments that tokens do not
                follow, or a response that is longer than `max_length`.
        """
        prompt = checked_text(prompt, "the prompt")
        if ends is None:
            steps = checked_steps(response, "the response, without ends,")
            (row,) = self.segment_encoder.encode_steps([StepwiseResponse(prompt, steps, where="the response")])
        else:
            row = self.segment_encoder.encode_spans(prompt, response, ends)  # type: ignore[arg-type]
        return self.score_tokenized_segments([row], outside=outside)[0]

    def score_steps(self, responses: Iterable[Any]) -> list[SegmentScores]:
        """`score_segments` of each of several responses in steps: rows with `prompt` and `completions`.

        Raises:
            InputError: what `score_segments` raises, by row.
        """
        return self.score_tokenized_segments(self.tokenize_steps(responses))

    def score_aggregates(
        self,
        responses: Iterable[Any],
        by: OnePassAggregate = "log_product",
        *,
        relative_to: Literal["prompt"] | None = None,
    ) -> RewardScores:
        """One number for each of N responses in steps, by one backward pass each, however many steps there are.

        Where `score_steps` takes a backward pass for each step, the number's own gradient is that of its steps' scores
        z put together. "mean" and "last" are exact so, and the same as there. "min" and "log_product" are taken to
        first order at the MAP scores: the variance of "min" is that of the least step's z.

        Args:
            responses: rows with `prompt` and `completions`.
            by: "mean", "last" or "min" of the z, or "log_product", `Σ log σ(z / T)`.
            relative_to: "prompt" for the difference to the mean over all responses to the same prompt, which is what a
                choice among them risks; None for the number's own variance.

        Raises:
            InputError: what `score_steps` raises, by row, or an unknown `by` or `relative_to`.
        """
        if by not in get_args(OnePassAggregate):
            raise InputError(f"by must be one of {', '.join(get_args(OnePassAggregate))}, not {shown(by)}")
        if relative_to not in (None, "prompt"):
            raise InputError(f'relative_to must be "prompt" or None here, not {shown(relative_to)}')
        return self._score_tokenized_aggregates(*self._tokenize_wholes(responses, relative_to), by)

    def _tokenize_wholes(
        self, responses: Iterable[Any], relative_to: Literal["prompt"] | None
    ) -> tuple[list[SegmentedRow], list[Comparison] | None]:
        given = stepwise_responses(responses, labelled=False)
        rows = self.segment_encoder.encode_steps(given)
        if relative_to is None:
            return rows, None
        return rows, within_prompts(positions_of_equals([key_of(one.prompt) for one in given]))

    @exclusive
    def _score_tokenized_aggregates(
        self, rows: Sequence[SegmentedRow], comparisons: Sequence[Comparison] | None, by: OnePassAggregate
    ) -> RewardScores:
        passes = self.passes()
        forward, posterior = passes.forward, self.fitted
        assert isinstance(forward.readout, TokenReadout)
        readout = AggregateReadout(forward.readout, by, posterior.temperature)
        of_aggregates = replace(passes, tapped=passes.tapped.with_forward(forward.reading(readout)))
        whole = [row.whole(forward.shortcuts.no_mask) for row in rows]
        if comparisons is not None:
            return compared_scores(of_aggregates, whole, comparisons, posterior)
        return RewardScores(*score_examples(of_aggregates, whole, posterior), *truncated_and_tokens(whole))

    @exclusive
    def score_tokenized_segments(
        self, rows: Sequence[SegmentedRow], *, outside: Outside = "auto"
    ) -> list[SegmentScores]:
        """`score_steps` of tokenized responses.

        Raises:
            InputError: a score or a variance that is NaN or infinite.
        """
        return segment_scores(self.passes(), rows, self.fitted, outside)

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

    def reward_passes(self) -> Passes:
        """The model for rewards alone: as by `passes`, or without a posterior with whatever can be tapped."""
        return self.passes_over(self.taps(self.virtual)) if self.posterior is None else self.passes()

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


def _refuse_nothing(examples: Sequence[TokenizedRow] | Sequence[TokenizedPair]) -> None:
    if not examples:
        raise InputError("there is nothing to score: the list is empty")
