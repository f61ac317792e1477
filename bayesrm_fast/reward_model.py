"""What a user holds: a reward model with a posterior over its LoRA weights."""

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bayesrm_fast.calibration import Calibration, calibrate_posterior
from bayesrm_fast.checkpoints import add_adapter, load_adapter, local_folder, save_adapter
from bayesrm_fast.classifier import Classifier, Shortcuts, checked_output_weights
from bayesrm_fast.errors import InputError
from bayesrm_fast.fitting import FitOptions, Precision, fit_posterior
from bayesrm_fast.joint import JointRewards, Outside, joint_rewards
from bayesrm_fast.passes import Passes, Progress, Segment, StartAgain, measured_room
from bayesrm_fast.posterior import FitRecord, Posterior, library_versions
from bayesrm_fast.posterior_files import RECORD_FILE, load_posterior
from bayesrm_fast.rewards import rewards_of
from bayesrm_fast.room import BATCH_TOKENS, Room, release_memory
from bayesrm_fast.scoring import (
    PairScores,
    RewardScores,
    choose_each,
    score_segments,
)
from bayesrm_fast.selection import BestOfN, Penalty, penalty_of
from bayesrm_fast.shortcuts import find_shortcuts
from bayesrm_fast.sites import Tap, adapter_hash, find_head, find_head_tap, find_lora_taps
from bayesrm_fast.streaming import prefetched
from bayesrm_fast.taps import TappedModel
from bayesrm_fast.text import (
    Candidates,
    PreferencePair,
    Text,
    TextEncoder,
    candidate_sets,
    check_rows,
    default_max_length,
    preference_pairs,
    prompt_and_response,
)

STREAM_WINDOW = 256
"""Rows of a stream that are sorted by length together."""

_outside_inference_mode = torch.inference_mode(mode=False)
"""A caller's inference mode would forbid the backward pass that a variance needs."""


class BayesianRewardModel:
    """A peft LoRA adapter of a sequence classifier, with a Laplace posterior over its LoRA weights.

    Args:
        model: a `PeftModel` with one active LoRA adapter; used where it is and left as it was found.
        tokenizer: a fast tokenizer. With a chat template it renders conversations by it; otherwise see `TextEncoder`.
        output_weights: weight of each of the model's outputs in the reward, `[num_labels]`. Needed where the model has
            several outputs; 1 where it has one.
        max_length: tokens at which a row is cut (`TextEncoder` says how). Default: what tokenizer and model accept, at
            most 4,096.
        max_batch_tokens: tokens of one batch, padding included. Default: 4,096 on a CPU, on a GPU what two short trials
            say of its free memory. Smaller batches follow by themselves where memory runs out.

    Raises:
        InputError: an adapter that cannot be served; the message lists the layers.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        output_weights: Sequence[float] | Tensor | None = None,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.posterior: Posterior | None = None
        """The fitted posterior, None before `fit`. Its `prior_precision` may be set."""
        self._lora = find_lora_taps(model)
        self._shortcuts: Shortcuts | None = None
        config = model.config.get_text_config()
        self.output_weights = checked_output_weights(output_weights, model.config.num_labels)
        positions = getattr(config, "max_position_embeddings", None)
        self.encoder = TextEncoder(tokenizer, max_length or default_max_length(tokenizer, positions))
        device = next(model.parameters()).device
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens must be positive, not {max_batch_tokens}")
        self._passes_options: dict[str, Any] = {
            "pad_token_id": tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id,
            "vocab_size": config.vocab_size,
            "device": device,
        }
        tokens = max_batch_tokens or BATCH_TOKENS.get(device.type)
        self._room = None if tokens is None else Room(tokens)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        output_weights: Sequence[float] | None = None,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        device: str | torch.device | None = None,
        **model_options: Any,
    ) -> Self:
        """Load an adapter, and the posterior where one is saved beside it.

        Args:
            path: folder or hub name of a peft LoRA adapter; its base model is loaded too.
            output_weights, max_length, max_batch_tokens: as for the class. A saved posterior brings its own
                `output_weights` and `max_length`.
            device: where the model goes. Default: a GPU where there is one. Ignored with `device_map`.
            model_options: for `AutoModelForSequenceClassification.from_pretrained`, such as `dtype`,
                `quantization_config`, `device_map`, `attn_implementation` or `trust_remote_code`.

        Raises:
            InputError: an adapter that cannot be served, or a posterior of other adapter weights.
        """
        folder = local_folder(path)
        posterior = _saved_posterior(folder, output_weights)
        model, tokenizer = load_adapter(folder, **model_options)
        if "device_map" not in model_options:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        loaded = cls(
            model,
            tokenizer,
            output_weights=output_weights if posterior is None else posterior.record.output_weights,
            max_length=max_length or (posterior.record.max_length if posterior else None),
            max_batch_tokens=max_batch_tokens,
        )
        loaded._take_posterior(posterior, folder)
        return loaded

    def with_adapter(self, folder: Path, name: str) -> Self:
        """Another adapter, with the posterior that is saved beside it, on this one's base model; it is active then.

        Args:
            folder: what `save_pretrained` or peft wrote, for the same base model.
            name: of the adapter in the shared model, not in use yet.

        Raises:
            InputError: an adapter of another base model or with other output weights, or one that cannot be served.
        """
        posterior = _saved_posterior(folder, self.output_weights.tolist())
        add_adapter(self.model, folder, name)
        loaded = type(self)(
            self.model,
            self.tokenizer,
            output_weights=self.output_weights,
            max_length=self.encoder.max_length if posterior is None else posterior.record.max_length,
        )
        loaded._room = self._room  # of one device
        loaded._take_posterior(posterior, folder)
        return loaded

    def _take_posterior(self, posterior: Posterior | None, folder: Path) -> None:
        if posterior is None:
            return
        if posterior.record.adapter_sha256 != self._adapter_hash():
            raise InputError(f"the posterior in {folder} was fitted on other adapter weights than those beside it")
        self.posterior = posterior.to(self._passes_options["device"])

    @property
    def adapter(self) -> str:
        """Name of the adapter that is scored by, among those of the model."""
        return self._lora[0].adapter

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter, the tokenizer and the posterior; a new folder appears whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        save_adapter(Path(folder), self.model, self.adapter, self.tokenizer, self.posterior)

    @_outside_inference_mode
    def fit(
        self,
        pairs: Iterable[Any],
        structure: str = "ggn",
        rank: int | Literal["default"] | None = "default",
        prior_precision: Precision = "evidence",
        *,
        include_head: bool = False,
        validation_pairs: Iterable[Any] | None = None,
        second_pass: bool = False,
        basis_dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Fit the posterior on preference pairs; an earlier one is kept until the new one is whole.

        Args:
            pairs: `PreferencePair`, mappings with `prompt`, `chosen` and `rejected`, or a `datasets.Dataset`.
            structure: "ggn" (the leading eigenvectors of the whole curvature, one pass over the pairs), "kfac" (a
                block for each LoRA matrix, one pass) or "ekfac" (two passes, with measured eigenvalues).
            rank: for kfac and ekfac: eigenvectors kept of each large side, 64 by default; the rest gets its exact mean
                eigenvalue. For ggn: eigenvectors kept of all sites together, 128 by default; exact where there are no
                more pairs, with the prior outside of them otherwise. None keeps all.
            prior_precision: λ; "evidence" maximises the Laplace evidence; "validation" takes the λ with the smallest
                NLL on held-out pairs.
            include_head: put the score head's weight into the posterior too.
            validation_pairs: the held-out pairs. Default: every tenth of `pairs`, kept out of the fit.
            second_pass: for ggn: sharpen the eigenvectors by a second pass over the pairs.
            basis_dtype: for ggn: `torch.bfloat16` halves what is stored.
            progress: called with the pairs done and their total over all passes.

        Raises:
            InputError: pairs or options that cannot be served.
        """
        options = FitOptions(structure, rank, prior_precision, second_pass, basis_dtype)
        if validation_pairs is not None and prior_precision != "validation":
            raise InputError("validation_pairs are used by prior_precision='validation' alone")
        segments = self._pair_segments(preference_pairs(pairs))
        validation = None
        if validation_pairs is not None:
            validation = self._pair_segments(preference_pairs(validation_pairs, "validation_pairs"))
        self._lora = find_lora_taps(self.model)
        record = FitRecord(
            structure=structure,
            rank=options.kept,
            pairs=len(segments),
            log_likelihood=0.0,
            squared_norm=0.0,
            base_model=str(self.model.peft_config[self.adapter].base_model_name_or_path),
            adapter_sha256=self._adapter_hash(),
            include_head=include_head,
            output_weights=self.output_weights.tolist(),
            max_length=self.encoder.max_length,
            versions=library_versions(),
        )
        passes = self._passes(include_head)
        while True:
            try:
                self.posterior = fit_posterior(passes, segments, validation, options, record, progress)
                return self
            except StartAgain:
                release_memory(passes.device)

    def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], *, progress: Progress | None = None
    ) -> RewardScores:
        """Reward and variance of `responses[i]` to `prompts[i]`.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        return self.score_tokenized(self.tokenize(prompts, responses), progress=progress)

    def tokenize(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Segment]:
        """What `score_tokenized` takes; may run in another thread than the model.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        return [(row,) for row in self._encode(prompts, responses)]

    def tokenize_pairs(self, pairs: Iterable[Any]) -> list[Segment]:
        """The same for preference pairs.

        Raises:
            InputError: pairs that cannot be read.
        """
        return self._pair_segments(preference_pairs(pairs))

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """MAP rewards `[N]` by forward passes alone; needs no posterior.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        return self.rewards_tokenized(self.tokenize(prompts, responses), prompts)

    @_outside_inference_mode
    def rewards_tokenized(self, segments: Sequence[Segment], prompts: Sequence[Text]) -> Tensor:
        """`rewards` of tokenized rows; rows of equal prompts may share their beginning."""
        numbers: dict[str, int] = {}
        owners = [numbers.setdefault(str(prompt), len(numbers)) for prompt in prompts]
        return rewards_of(self._passes(include_head=False), [row for (row,) in segments], owners)

    @_outside_inference_mode
    def score_tokenized(self, segments: Sequence[Segment], *, progress: Progress | None = None) -> RewardScores:
        """`score` or `score_pairs` of tokenized rows or pairs.

        Raises:
            InputError: nothing to score, or a reward that is NaN or infinite.
        """
        if not segments:
            raise InputError("there is nothing to score: the list is empty")
        mean, variance = score_segments(self.passes(), segments, self.fitted, progress)
        if len(segments[0]) == 2:
            return PairScores(mean, variance, _truncated(segments), self.fitted.record.temperature)
        return RewardScores(mean, variance, _truncated(segments))

    def score_pairs(self, pairs: Iterable[Any], *, progress: Progress | None = None) -> PairScores:
        """Mean and variance of `r_chosen − r_rejected`, and the probability that the chosen response is preferred.

        Raises:
            InputError: pairs that cannot be read.
        """
        scores = self.score_tokenized(self.tokenize_pairs(pairs), progress=progress)
        return cast(PairScores, scores)

    @_outside_inference_mode
    def calibrate(
        self, pairs: Iterable[Any], prior_precision: Precision = "validation", *, progress: Progress | None = None
    ) -> Calibration:
        """Choose λ and a temperature by held-out pairs, and tell what their probabilities were worth before and after.

        The posterior has both from then on: variances change with λ, probabilities with both, means with neither.

        Args:
            pairs: as for `fit`, and none of those that the model was trained or fitted on.
            prior_precision: "validation" chooses λ with the temperature, by the pairs' NLL; "evidence" or a number
                gives λ and leaves the temperature to the pairs.
            progress: told the pairs done and their total.

        Raises:
            InputError: fewer than two pairs, pairs that cannot be read, or an unknown `prior_precision`.
        """
        segments = self.tokenize_pairs(pairs)
        return calibrate_posterior(self.passes(), segments, self.fitted, prior_precision, progress)

    @_outside_inference_mode
    def covariance(self, prompt: Text, responses: Sequence[Text], *, outside: Outside = "auto") -> JointRewards:
        """Joint Gaussian over the rewards of one prompt's n candidates, and what follows from it for a choice.

        Args:
            prompt: one prompt.
            responses: its candidates.
            outside: how to keep the part of the gradients outside of the posterior's bases. "exact" takes n times as
                many float32 numbers of the host's memory as the posterior has weights; "sketch" 8,192 numbers for each
                candidate, with an error that the result tells; "auto" is exact where that takes half of the free
                memory or less.

        Raises:
            InputError: no candidates, text that cannot be read, or an unknown `outside`.
        """
        segments = self.tokenize([prompt] * len(responses), responses)
        return joint_rewards(self.passes(), segments, self.fitted, outside)

    def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        penalty: str | Penalty = "std",
        k: float = 1.0,
        *,
        exhaustive: bool = False,
    ) -> BestOfN:
        """The candidate with the largest penalised reward, `mean − k·std`, `mean − k·variance` or the mean alone.

        Args:
            prompt: one prompt.
            responses: its candidates.
            penalty: "none", "std", "variance", or a `Penalty`. One without a ceiling needs every variance.
            k: weight of a named penalty, at least 0.
            exhaustive: compute every variance, also where it is not needed to choose.

        Raises:
            InputError: no candidates, text that cannot be read, or a penalty that is unknown.
        """
        candidates = [Candidates(prompt, responses)]
        return self.best_of_each(candidates, penalty, k, exhaustive=exhaustive)[0]

    @_outside_inference_mode
    def best_of_each(
        self,
        candidates: Iterable[Any],
        penalty: str | Penalty = "std",
        k: float = 1.0,
        *,
        exhaustive: bool = False,
        progress: Progress | None = None,
    ) -> list[BestOfN]:
        """`best_of_n` for many prompts at once, whose candidates share batches.

        Means come from forward passes, and a variance is computed only where it can change the winner.

        Args:
            candidates: `Candidates`, or mappings with `prompt` and `responses`.
            penalty, k, exhaustive: as for `best_of_n`.
            progress: told the candidates whose means are known and their total.

        Raises:
            InputError: rows that cannot be read, or a penalty that is unknown.
        """
        rule = penalty_of(penalty, k)
        sets = candidate_sets(candidates)
        prompts = [one.prompt for one in sets for _ in one.responses]
        rows = self._encode(prompts, [response for one in sets for response in one.responses])
        if exhaustive:
            rule = replace(rule, ceiling=None)
        elif rule.ceiling is None:
            warnings.warn("the penalty has no ceiling, so every variance is computed", stacklevel=2)
        return choose_each(self.passes(), sets, rows, self.fitted, rule, progress)

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

        def tokenized() -> Iterator[list[Segment]]:
            numbered = enumerate(rows, start=1)
            while chunk := list(itertools.islice(numbered, window)):
                texts = [prompt_and_response(row, f"row {number}") for number, row in chunk]
                yield self.tokenize([prompt for prompt, _ in texts], [response for _, response in texts])

        for segments in prefetched(tokenized()):
            scores = self.score_tokenized(segments)
            yield from zip(scores.mean.tolist(), scores.variance.tolist(), scores.truncated.tolist(), strict=True)

    @property
    def fitted(self) -> Posterior:
        """The posterior; raises InputError where there is none."""
        if self.posterior is None:
            raise InputError("there is no posterior: call fit, or load a folder that holds one")
        return self.posterior

    def passes(self) -> Passes:
        """The tapped model that feeds the fitted posterior: for consumers of one's own."""
        return self._passes(self.fitted.record.include_head)

    @property
    def shortcuts(self) -> Shortcuts:
        """The shortcuts that give this model's rewards exactly; tried when first asked for."""
        if self._shortcuts is None:
            self._shortcuts = find_shortcuts(
                self.model,
                self.output_weights,
                max_length=self.encoder.max_length,
                has_types="token_type_ids" in self.tokenizer.model_input_names,
                **self._passes_options,
            )
        return self._shortcuts

    def _passes(self, include_head: bool) -> Passes:
        taps: list[Tap] = list(self._lora)
        if include_head:
            taps.append(find_head_tap(self.model, self._lora))
        tapped = TappedModel(Classifier(self.model, self.output_weights, self.shortcuts), taps)
        if self._room is None:
            self._room = measured_room(tapped, self.encoder.max_length, **self._passes_options)
        return Passes(tapped, room=self._room, **self._passes_options)

    def _adapter_hash(self) -> str:
        head = find_head(self.model)
        return adapter_hash([*self._lora, *([head] if head else [])])

    def _encode(self, prompts: Sequence[Text], responses: Sequence[Text]) -> list[Any]:
        check_rows(prompts, responses)
        return self.encoder.encode(prompts, responses)

    def _pair_segments(self, pairs: Sequence[PreferencePair]) -> list[Segment]:
        prompts = [pair.prompt for pair in pairs]
        chosen = self.encoder.encode(prompts, [pair.chosen for pair in pairs])
        rejected = self.encoder.encode(prompts, [pair.rejected for pair in pairs])
        return list(zip(chosen, rejected, strict=True))


def _saved_posterior(folder: Path, output_weights: Sequence[float] | None) -> Posterior | None:
    if not (folder / RECORD_FILE).exists():
        return None
    posterior = load_posterior(folder)
    saved = posterior.record.output_weights
    if output_weights is not None and torch.tensor(output_weights, dtype=torch.float32).tolist() != saved:
        raise InputError(f"the posterior in {folder} was fitted with output_weights={saved}")
    return posterior


def _truncated(segments: Sequence[Segment]) -> Tensor:
    return torch.tensor([any(row.truncated for row in segment) for segment in segments])
