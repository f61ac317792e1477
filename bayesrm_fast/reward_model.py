"""What a user holds: a reward model with a posterior over its LoRA weights or over virtual adapters."""

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

from bayesrm_fast.calibration import Calibration, calibrate_posterior
from bayesrm_fast.checkpoints import (
    MODEL_CONFIG,
    add_adapter,
    has_adapter_files,
    load_adapter,
    load_model,
    local_folder_or_name,
    save_folder,
)
from bayesrm_fast.errors import InputError
from bayesrm_fast.fitting import FitOptions, Precision, fit_posterior
from bayesrm_fast.joint import JointRewards, Outside, joint_rewards
from bayesrm_fast.passes import Passes, Progress, Segment, StartAgain
from bayesrm_fast.posterior import FitRecord, Posterior, library_versions
from bayesrm_fast.posterior_files import RECORD_FILE, load_posterior
from bayesrm_fast.prior import NO_EVIDENCE
from bayesrm_fast.room import release_memory
from bayesrm_fast.scoring import (
    PairScores,
    RewardScores,
    choose_each,
    score_segments,
)
from bayesrm_fast.selection import BestOfN, Penalty, penalty_of
from bayesrm_fast.served_model import ServedModel, outside_inference_mode
from bayesrm_fast.streaming import prefetched
from bayesrm_fast.text import (
    Candidates,
    Text,
    candidate_sets,
    check_rows,
    pairs_within_prompts,
    preference_pairs,
    prompt_and_response,
)
from bayesrm_fast.virtual import Targets, make_virtual_adapter
from bayesrm_fast.virtual_files import load_virtual, read_virtual_record

STREAM_WINDOW = 256
"""Rows of a stream that are sorted by length together."""


class BayesianRewardModel(ServedModel):
    """A sequence classifier with a Laplace posterior over its LoRA weights, or over virtual adapters where it has none.

    See `ServedModel` for what it is made of.
    """

    posterior: Posterior | None = None
    """The fitted posterior, None before `fit`. Its `prior_precision` may be set."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        virtual_rank: int | None = None,
        virtual_targets: Targets = "auto",
        output_weights: Sequence[float] | None = None,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        device: str | torch.device | None = None,
        **model_options: Any,
    ) -> Self:
        """Load a reward model, and the posterior where one is saved.

        Args:
            path: folder or hub name of a peft LoRA adapter, whose base model is loaded too; of what `save_pretrained`
                wrote; or with `virtual_rank` of any sequence classifier.
            virtual_rank, virtual_targets: as for the class. A saved folder brings its own; where they are given, its
                virtual adapters and its posterior are left for `fit` to make anew.
            output_weights, max_length, max_batch_tokens: as for the class. A saved posterior brings its own
                `output_weights` and `max_length`.
            device: where the model goes. Default: a GPU where there is one. Ignored with `device_map`.
            model_options: for `AutoModelForSequenceClassification.from_pretrained`, such as `dtype`,
                `quantization_config`, `device_map`, `attn_implementation` or `trust_remote_code`.

        Raises:
            InputError: a model or adapter that cannot be served, or a posterior of other weights.
        """
        source = local_folder_or_name(path, takes_models=virtual_rank is not None)
        folder = source if isinstance(source, Path) else None
        saved = None if folder is None else read_virtual_record(folder)
        posterior = None
        if folder is not None and virtual_rank is None:
            posterior = _saved_posterior(folder, output_weights)
        model: Any
        if folder is not None and has_adapter_files(folder, or_fail=virtual_rank is None and saved is None):
            model, tokenizer = load_adapter(folder, **model_options)
        else:
            is_elsewhere = saved is not None and folder is not None and not (folder / MODEL_CONFIG).is_file()
            name = saved["model"] if saved is not None and is_elsewhere else source
            model, tokenizer = load_model(name, folder, **model_options)
        if "device_map" not in model_options:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        virtual = saved if virtual_rank is None else None
        loaded = cls(
            model,
            tokenizer,
            virtual_rank=virtual_rank if virtual is None else virtual["virtual_rank"],
            virtual_targets=virtual_targets if virtual is None else virtual["virtual_targets"],
            output_weights=output_weights if posterior is None else posterior.record.output_weights,
            max_length=max_length or (posterior.record.max_length if posterior else None),
            max_batch_tokens=max_batch_tokens,
        )
        if folder is not None:
            loaded._take_saved(folder, virtual, posterior)
        return loaded

    def with_adapter(self, folder: Path, name: str) -> Self:
        """Another adapter, with the posterior that is saved beside it, on this one's base model; it is active then.

        Args:
            folder: what `save_pretrained` or peft wrote, for the same base model.
            name: of the adapter in the shared model, not in use yet.

        Raises:
            InputError: an adapter of another base model or with other output weights, one that cannot be served, or a
                model that is not peft's.
        """
        if not isinstance(self.model, PeftModel):
            raise InputError("only a model with a LoRA adapter takes another one beside it")
        posterior, virtual = _saved_posterior(folder, self.output_weights.tolist()), read_virtual_record(folder)
        add_adapter(self.model, folder, name)
        loaded = type(self)(
            self.model,
            self.tokenizer,
            virtual_rank=None if virtual is None else virtual["virtual_rank"],
            virtual_targets="auto" if virtual is None else virtual["virtual_targets"],
            output_weights=self.output_weights,
            max_length=self.encoder.max_length if posterior is None else posterior.record.max_length,
        )
        loaded._room = self._room  # of one device
        loaded._take_saved(folder, virtual, posterior)
        return loaded

    def _take_saved(self, folder: Path, virtual: dict[str, Any] | None, posterior: Posterior | None) -> None:
        self.virtual = None if virtual is None else load_virtual(folder, virtual, self.model)
        if posterior is None:
            return
        if posterior.record.adapter_sha256 != self.adapter_hash(self.virtual):
            raise InputError(f"the posterior in {folder} was fitted on other adapter weights than those beside it")
        self.posterior = posterior.to(self._passes_options["device"])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write adapters, tokenizer and posterior, not the model under them; a new folder appears whole or not at all.

        Raises:
            InputError: the folder cannot be written, or there is nothing to write: virtual adapters before `fit`.
        """
        if not self.lora and self.virtual is None:
            raise InputError("there is nothing to save: call fit first")
        save_folder(Path(folder), self.model, self.adapter, self.tokenizer, self.virtual, self.posterior)

    @outside_inference_mode
    def fit(
        self,
        pairs: Iterable[Any],
        structure: str = "ggn",
        rank: int | Literal["default"] | None = "default",
        prior_precision: Precision | None = None,
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
                block for each weight matrix, one pass) or "ekfac" (two passes, with measured eigenvalues).
            rank: for kfac and ekfac: eigenvectors kept of each large side, 64 by default; the rest gets its exact mean
                eigenvalue. For ggn: eigenvectors kept of all sites together, 128 by default; exact where there are no
                more pairs, with the prior outside of them otherwise. None keeps all.
            prior_precision: λ; "evidence" maximises the Laplace evidence; "validation" takes the λ with the smallest
                NLL on held-out pairs; "margins" the λ at which the prior alone expects reward differences as large as
                the model's own. Default: "evidence" for LoRA, "margins" where there are virtual adapters, whose weights
                are zero and leave the evidence without a maximum.
            include_head: put the score head's weight into the posterior too.
            validation_pairs: the held-out pairs. Default: every tenth of `pairs`, kept out of the fit.
            second_pass: for ggn: sharpen the eigenvectors by a second pass over the pairs.
            basis_dtype: for ggn: `torch.bfloat16` halves what is stored.
            progress: called with the pairs done and their total over all passes.

        Raises:
            InputError: pairs or options that cannot be served.
        """
        chosen = prior_precision
        if chosen is None:
            chosen = "margins" if self.virtual_options else "evidence"
        options = FitOptions(structure, rank, chosen, second_pass, basis_dtype)
        if chosen == "evidence" and not self.lora and not include_head:
            raise InputError(NO_EVIDENCE)
        if validation_pairs is not None and chosen != "validation":
            raise InputError("validation_pairs are used by prior_precision='validation' alone")
        segments = self.pair_segments(preference_pairs(pairs))
        validation = None
        if validation_pairs is not None:
            validation = self.pair_segments(preference_pairs(validation_pairs, "validation_pairs"))
        return self._fit(segments, validation, options, include_head, True, progress)

    @outside_inference_mode
    def fit_unlabelled(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        prior_precision: float | Literal["margins"] = "margins",
        structure: str = "ggn",
        rank: int | Literal["default"] | None = "default",
        *,
        include_head: bool = False,
        second_pass: bool = False,
        basis_dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Fit the posterior on candidates of which nobody said which are better.

        The GGN needs no labels: the weight of a pair, `σ(Δ)(1 − σ(Δ))`, is the model's own. So the uncertainty is
        relative to the domain of these candidates, whatever the model was trained on.

        Args:
            prompts, responses: `responses[i]` answers `prompts[i]`; a prompt's responses are paired up by lot.
            prior_precision: λ, or "margins" as for `fit`; `calibrate` may choose it later, by a few labelled pairs.
            structure, rank, include_head, second_pass, basis_dtype, progress: as for `fit`.

        Raises:
            InputError: rows that cannot be read, no prompt with two responses, or options that cannot be served.
        """
        if prior_precision in ("evidence", "validation"):
            raise InputError(f"prior_precision={prior_precision!r} needs labels: give a number, or 'margins'")
        options = FitOptions(structure, rank, prior_precision, second_pass, basis_dtype)
        check_rows(prompts, responses)
        segments = self.pair_segments(pairs_within_prompts(prompts, responses))
        return self._fit(segments, None, options, include_head, False, progress)

    def _fit(
        self,
        segments: list[Segment],
        validation: list[Segment] | None,
        options: FitOptions,
        include_head: bool,
        is_labelled: bool,
        progress: Progress | None,
    ) -> Self:
        self.lora = self.find_lora()
        virtual = None
        if self.virtual_options is not None:
            virtual = make_virtual_adapter(self.passes_over(self.lora), segments, self.virtual_options, options)
        taps = self.taps(virtual, include_head)
        record = FitRecord(
            structure=options.structure,
            rank=options.kept,
            pairs=len(segments),
            log_likelihood=0.0 if is_labelled else None,
            squared_norm=0.0,
            base_model=self.base_model,
            adapter_sha256=self.adapter_hash(virtual),
            include_head=include_head,
            output_weights=self.output_weights.tolist(),
            max_length=self.encoder.max_length,
            versions=library_versions(),
        )
        passes = self.passes_over(taps)
        while True:
            try:
                self.posterior = fit_posterior(passes, segments, validation, options, record, progress)
                self.virtual = virtual
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

    @outside_inference_mode
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

    @outside_inference_mode
    def calibrate(
        self, pairs: Iterable[Any], prior_precision: Precision = "validation", *, progress: Progress | None = None
    ) -> Calibration:
        """Choose λ and a temperature by held-out pairs, and tell what their probabilities were worth before and after.

        The posterior has both from then on: variances change with λ, probabilities with both, means with neither.

        Args:
            pairs: as for `fit`, and none of those that the model was trained or fitted on.
            prior_precision: "validation" chooses λ with the temperature, by the pairs' NLL; "evidence", "margins"
                or a number gives λ and leaves the temperature to the pairs.
            progress: told the pairs done and their total.

        Raises:
            InputError: fewer than two pairs, pairs that cannot be read, or an unknown `prior_precision`.
        """
        segments = self.tokenize_pairs(pairs)
        return calibrate_posterior(self.passes(), segments, self.fitted, prior_precision, progress)

    @outside_inference_mode
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

    @outside_inference_mode
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
        rows = self.encode(prompts, [response for one in sets for response in one.responses])
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
        return self.passes_over(self.taps(self.virtual, self.fitted.record.include_head))


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
