"""What a user holds: a reward model with a posterior over its LoRA weights or over virtual adapters."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from torch.distributed import ProcessGroup

from bayesrm_fast.atomic import settle
from bayesrm_fast.choosing_model import ChoosingRewardModel
from bayesrm_fast.errors import InputError
from bayesrm_fast.fit.calibration import Calibration, calibrate_posterior
from bayesrm_fast.fit.fitting import fit_posterior
from bayesrm_fast.fit.options import FitOptions, Precision, options_of
from bayesrm_fast.fit.prior import NO_EVIDENCE
from bayesrm_fast.fit.ranks import Ranks, digest_of, ranks_of
from bayesrm_fast.fit.virtual import make_virtual_adapter
from bayesrm_fast.model.exclusive import exclusive, in_own_state
from bayesrm_fast.model.layers import adapter_config
from bayesrm_fast.model.passes import Progress
from bayesrm_fast.model.virtual import VirtualAdapter
from bayesrm_fast.model.virtual_options import Targets
from bayesrm_fast.posterior.base import ModelRecord, Posterior
from bayesrm_fast.saved.folders import save_folder
from bayesrm_fast.saved.models import add_adapter, check_restorable
from bayesrm_fast.saved.reward_models import SavedFit, load_reward_model, read_fit
from bayesrm_fast.text.examples import LabelledExample
from bayesrm_fast.text.joining import A_FUNCTION, Joining
from bayesrm_fast.text.records import checked_rows, pairs_within_prompts, preference_pairs
from bayesrm_fast.text.texts import Text


class BayesianRewardModel(ChoosingRewardModel):
    """A reward model with a Laplace posterior over its LoRA weights, or over virtual adapters where it has none.

    See `RewardModel` for what it is made of.
    """

    @classmethod
    @in_own_state()
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        virtual_rank: int | None = None,
        virtual_targets: Targets = "auto",
        output_weights: Sequence[float] | None = None,
        max_length: int | None = None,
        joining: Joining | None = None,
        appends_eos: bool | None = None,
        step_separator: str | None = None,
        max_batch_tokens: int | None = None,
        device: str | torch.device | None = None,
        **model_options: Any,
    ) -> Self:
        """Load a reward model, and the posterior where one is saved.

        Args:
            path: folder or hub name of a peft LoRA adapter, whose base model is loaded too; of what `save_pretrained`
                wrote; or with `virtual_rank` of any classifier. A token classifier is known by the adapter's task type,
                TOKEN_CLS, or by the model's architecture.
            virtual_rank, virtual_targets: as for the class. A saved folder brings its own; where they are given, its
                virtual adapters and its posterior are left for `fit` to make anew.
            output_weights, max_length, max_batch_tokens: as for the class. A saved posterior brings its own
                `output_weights` and `max_length`.
            joining, appends_eos, step_separator: as for the class. A saved posterior brings its own, but for a
                function, which no file can hold; where others are given, it is left for `fit` to make anew.
            device: where the model goes. Default: a GPU where there is one. Ignored with `device_map`.
            model_options: for the `from_pretrained` of transformers' auto class, such as `dtype`,
                `quantization_config`, `device_map`, `attn_implementation` or `trust_remote_code`. `revision` is that of
                what `path` names on the hub; for a folder, of the base model that its adapter names.

        Raises:
            InputError: a model or adapter that cannot be served, or a posterior of other weights.
        """
        saved = load_reward_model(
            path,
            makes_virtual=virtual_rank is not None,
            output_weights=output_weights,
            device=device,
            **model_options,
        )
        return cls._with_fit(
            saved.fit,
            saved.model,
            saved.tokenizer,
            virtual_rank=virtual_rank,
            virtual_targets=virtual_targets,
            output_weights=output_weights,
            max_length=max_length,
            joining=joining,
            appends_eos=appends_eos,
            step_separator=step_separator,
            max_batch_tokens=max_batch_tokens,
        )

    @classmethod
    def _with_fit(cls, saved: SavedFit, model: Any, tokenizer: Any, **options: Any) -> Self:
        """A model with what a fit has left of it; the fit's own options are taken where none are given."""
        if saved.virtual is not None:
            options |= {"virtual_rank": saved.virtual.virtual_rank, "virtual_targets": saved.virtual.virtual_targets}
        if saved.posterior is not None:
            asked = (options.get(name) for name in ("joining", "appends_eos", "step_separator"))
            saved = saved.joined_as(*asked)
        if saved.posterior is not None:
            record = saved.posterior.record
            if record.joining != A_FUNCTION:
                options["joining"] = record.joining
            options |= {
                "appends_eos": record.appends_eos,
                "step_separator": record.step_separator,
                "output_weights": record.output_weights,
                "max_length": record.max_length if options.get("max_length") is None else options["max_length"],
            }
        loaded = cls(model, tokenizer, **options)
        if saved.posterior is not None:  # often set on the model in memory alone, whose files know of none
            loaded.collator = replace(loaded.collator, pad_token_id=saved.posterior.record.pad_token_id)
        loaded.virtual, loaded.posterior = saved.restored(loaded)
        return loaded

    @exclusive
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
        settle(folder)
        saved = read_fit(folder, self.output_weights.tolist())
        add_adapter(self.model, folder, name)
        length = self.encoder.max_length if saved.posterior is None else None
        loaded = self._with_fit(
            saved, self.model, self.tokenizer, output_weights=self.output_weights, max_length=length
        )
        loaded._budget = self._budget  # of one device
        return loaded

    @exclusive
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write adapters, tokenizer and posterior, not the model under them; a new folder appears whole or not at all.

        Raises:
            InputError: the folder cannot be written, or there is nothing to write: virtual adapters before `fit`.
        """
        if not self.lora and self.virtual is None:
            raise InputError("there is nothing to save: call fit first")
        if not self.can_be_saved:
            raise InputError("a model with a readout of its own cannot be saved: loading it would read it otherwise")
        self.check_unchanged()
        if self.adapter is not None:
            several = sorted({tap.adapter for tap in self.lora})
            if len(several) > 1:
                raise InputError(f"the adapters {', '.join(several)} are active, and one alone can be saved")
            check_restorable(adapter_config(self.model, self.adapter), f"the adapter {self.adapter!r}")
        save_folder(Path(folder), self.model, self.adapter, self.tokenizer, self.virtual, self.posterior)

    def fit(
        self,
        pairs: Iterable[Any],
        options: FitOptions | None = None,
        *,
        validation_pairs: Iterable[Any] | None = None,
        group: ProcessGroup | None = None,
        progress: Progress | None = None,
        **named: Any,
    ) -> Self:
        """Fit the posterior on preference pairs, or a token classifier's on labelled steps.

        An earlier one is kept until the new one is whole.

        Args:
            pairs: `PreferencePair`, mappings with `prompt`, `chosen` and `rejected`, a `datasets.Dataset` or a
                `DataFrame`. Without `prompt`, it is what both conversations begin with; where they repeat it, it is
                read once. Pairs of equal responses are left out, with a warning. For a token classifier
                `StepwiseResponse`, or rows in trl's stepwise form with `prompt`, `completions` and `labels`.
            options: structure, rank, prior precision and more.
            validation_pairs: the held-out pairs of `prior_precision="validation"`, in the form of `pairs`. Default:
                every tenth of `pairs`, or of the responses, kept out of the fit.
            group: processes that fit together, such as `torch.distributed.group.WORLD`: all of them call `fit` with the
                same pairs and options, each passes over its share, and all have the same posterior afterwards. Default:
                this process fits alone, so that a trainer may fit on one of its ranks.
            progress: called with the pairs done and their total over all passes; of this rank's share, as of all.
            named: fields of `FitOptions` by name, in place of `options`: `fit(pairs, structure="kfac", rank=None)`.

        Raises:
            InputError: pairs or options that cannot be served; on all of a group, by its rank, what one of them raises,
                and a rank that does not come within the timeout of
                `init_process_group`.
        """
        with ranks_of(group, self.collator.device) as ranks:
            options = self._options(options, named, is_labelled=True)
            if validation_pairs is not None and options.chosen != "validation":
                raise InputError("validation_pairs are used by prior_precision='validation' alone")
            examples = self._labelled(pairs, "pairs")
            validation = None if validation_pairs is None else self._labelled(validation_pairs, "validation_pairs")
            return self._fit(examples, validation, options, ranks, is_labelled=True, progress=progress)

    def refresh(
        self, pairs: Iterable[Any], *, group: ProcessGroup | None = None, progress: Progress | None = None
    ) -> Self:
        """Fit again as the posterior there was fitted, after the model has been trained further (online RLHF).

        Structure, rank, stored dtype, head and the way in which λ was chosen stay; a λ that was given, or found by
        `calibrate`, stays as it is. A temperature and a tuned penalty are of the old weights, and go.

        Args:
            pairs, group, progress: as for `fit`.

        Raises:
            InputError: no posterior, or what `fit` raises.
        """
        with ranks_of(group, self.collator.device) as ranks:
            if self.posterior is None:
                raise InputError("there is no posterior to refresh: call fit first")
            options = self._options(options_of(self.posterior), {}, is_labelled=True)
            return self._fit(self._labelled(pairs, "pairs"), None, options, ranks, is_labelled=True, progress=progress)

    def _labelled(self, rows: Iterable[Any], source: str) -> Sequence[LabelledExample]:
        """Pairs, or of a token classifier steps, tokenized."""
        if self.segments is None:
            return self.encoder.encode_pairs(preference_pairs(rows, source))
        is_causal = self.shortcuts.no_mask
        responses = self.tokenize_steps(rows, source, labelled=True)
        return [step for response in responses for step in response.steps(is_causal)]

    def fit_unlabelled(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        options: FitOptions | None = None,
        *,
        group: ProcessGroup | None = None,
        progress: Progress | None = None,
        **named: Any,
    ) -> Self:
        """Fit the posterior on candidates of which nobody said which are better.

        The GGN needs no labels: the weight of a pair, `σ(Δ)(1 − σ(Δ))`, is the model's own. So the uncertainty is
        relative to the domain of these candidates, whatever the model was trained on.

        Args:
            prompts, responses: `responses[i]` answers `prompts[i]`; a prompt's responses are paired up by lot.
            options, group, progress, named: as for `fit`. The prior precision is a number, or "margins" (the default);
                `calibrate` may choose it later, by a few labelled pairs.

        Raises:
            InputError: rows that cannot be read, no prompt with two responses, or options that cannot be served.
        """
        with ranks_of(group, self.collator.device) as ranks:
            options = self._options(options, named, is_labelled=False)
            pairs = self.encoder.encode_pairs(pairs_within_prompts(*checked_rows(prompts, responses)))
            return self._fit(pairs, None, options, ranks, is_labelled=False, progress=progress)

    def _options(self, options: FitOptions | None, named: dict[str, Any], is_labelled: bool) -> FitOptions:
        """What is asked for, with this model's default for λ."""
        if options is not None and named:
            raise InputError(f"give options or {', '.join(named)}, not both")
        if options is not None and not isinstance(options, FitOptions):
            raise InputError(
                f"options must be a FitOptions, not {options!r}: give its fields by name, structure='kfac'"
            )
        options = options or FitOptions(**named)
        if not is_labelled and options.prior_precision in ("evidence", "validation"):
            raise InputError(f"prior_precision={options.prior_precision!r} needs labels: give a number, or 'margins'")
        options = options.with_default("margins" if self.virtual_options or not is_labelled else "evidence")
        if options.chosen == "evidence" and not self.lora and not options.include_head:
            raise InputError(NO_EVIDENCE)
        return options

    @exclusive
    def _fit(
        self,
        tokenized: Sequence[LabelledExample],
        validation: Sequence[LabelledExample] | None,
        options: FitOptions,
        ranks: Ranks,
        *,
        is_labelled: bool,
        progress: Progress | None,
    ) -> Self:
        lora, self.lora = self.lora, self.find_lora()
        try:
            virtual, posterior = self._fitted(tokenized, validation, options, ranks, is_labelled, progress)
            ranks.meet()
        except BaseException:
            self.lora = lora  # what an earlier posterior is over
            raise
        self.virtual, self.posterior = virtual, posterior
        return self

    def _fitted(
        self,
        tokenized: Sequence[LabelledExample],
        validation: Sequence[LabelledExample] | None,
        options: FitOptions,
        ranks: Ranks,
        is_labelled: bool,
        progress: Progress | None,
    ) -> tuple[VirtualAdapter | None, Posterior]:
        if ranks.size > 1:
            given = {"pairs": digest_of(tokenized), "validation pairs": digest_of(validation or ())}
            asked = (options, self.virtual_options, is_labelled, self.output_weights.tolist(), self.encoder.max_length)
            ranks.check_same(given | {"options": repr(asked), "dtypes": self._dtypes()} | self.fingerprint(None))
        virtual = None
        if self.virtual_options is not None:
            virtual = make_virtual_adapter(self.passes_over(self.lora), tokenized, self.virtual_options, options, ranks)
        record = ModelRecord(
            base_model=self.base_model,
            fingerprint=self.fingerprint(virtual),
            include_head=options.include_head,
            output_weights=self.output_weights.tolist(),
            max_length=self.encoder.max_length,
            joining=self.encoder.joiner.recorded,
            appends_eos=self.encoder.joiner.appends_eos,
            pad_token_id=self.collator.pad_token_id,
            step_separator=None if self.segments is None else self.segments.separator,
        )
        passes = self.passes_over(self.taps(virtual, options.include_head))
        return virtual, fit_posterior(
            passes, tokenized, validation, options, record, is_labelled=is_labelled, progress=progress, ranks=ranks
        )

    def _dtypes(self) -> str:
        """Those of the model's weights, which no fingerprint has."""
        return repr(sorted({str(weight.dtype) for weight in self.model.parameters()}))

    @exclusive
    def calibrate(
        self,
        pairs: Iterable[Any],
        prior_precision: Precision = "validation",
        *,
        group: ProcessGroup | None = None,
        progress: Progress | None = None,
    ) -> Calibration:
        """Choose λ and a temperature by held-out pairs, and tell what their probabilities were worth before and after.

        The posterior has both from then on: variances change with λ, probabilities with both, means with neither.

        Args:
            pairs: as for `fit`, and none of those that the model was trained or fitted on.
            prior_precision: "validation" chooses λ with the temperature, by the pairs' NLL; "evidence", "margins"
                or a number gives λ and leaves the temperature to the pairs.
            group: as for `fit`; all of them with the same posterior.
            progress: told the pairs done and their total.

        Raises:
            InputError: fewer than two pairs, pairs that cannot be read, or an unknown `prior_precision`.
        """
        with ranks_of(group, self.collator.device) as ranks:
            tokenized, fitted = self._labelled(pairs, "pairs"), self.fitted
            if ranks.size > 1:
                asked = {"pairs": digest_of(tokenized), "options": repr(prior_precision), "dtypes": self._dtypes()}
                found = (options_of(fitted), fitted.record, fitted.prior, fitted.temperature)
                ranks.check_same(asked | {"posterior": repr(found)})
            return calibrate_posterior(self.passes(), tokenized, fitted, prior_precision, progress, ranks)
