"""A reward model as text goes into it, with the taps that a posterior wants."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bayesrm_fast.errors import InputError, named
from bayesrm_fast.model.exclusive import exclusive
from bayesrm_fast.model.fingerprint import model_fingerprint
from bayesrm_fast.model.forward import Forward, text_config
from bayesrm_fast.model.head import find_head, find_head_tap
from bayesrm_fast.model.layers import (
    adapter_config,
    check_model,
    class_name,
    embedded_tokens,
    has_adapter,
    is_language_model,
    is_token_classifier,
)
from bayesrm_fast.model.lengths import check_length, most_tokens
from bayesrm_fast.model.lora import LoraTap, find_lora_taps
from bayesrm_fast.model.offloaded import input_device, offloaded_weights
from bayesrm_fast.model.passes import Passes, measured_budget
from bayesrm_fast.model.readout import (
    LOG_ODDS,
    PooledReadout,
    Readout,
    TokenReadout,
    checked_log_odds,
    checked_output_weights,
)
from bayesrm_fast.model.shortcut_trials import RowFrame, find_shortcuts, row_frame
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.model.taps import Tap, TappedModel
from bayesrm_fast.model.token_budget import BATCH_TOKENS, TokenBudget
from bayesrm_fast.model.virtual import VirtualAdapter
from bayesrm_fast.model.virtual_options import Targets, VirtualOptions
from bayesrm_fast.sites import Site
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.encoder import TextEncoder, default_max_length
from bayesrm_fast.text.examples import SegmentedRow, TokenizedPair, TokenizedRow
from bayesrm_fast.text.joining import Joining
from bayesrm_fast.text.records import Candidates, all_pairs, checked_rows
from bayesrm_fast.text.segments import SegmentEncoder
from bayesrm_fast.text.steps import stepwise_responses
from bayesrm_fast.text.texts import Text


class RewardModel:
    """A reward model with its tokenizer, and the taps that a posterior over its weights wants.

    Args:
        model: a `PeftModel` with one active LoRA adapter, or with `virtual_rank` any model; used where it is and left
            as it was found. A sequence classifier; a token classifier, which scores the segments of responses; or with
            a `readout` for it a module of one's own.
        tokenizer: a fast tokenizer. With a chat template it renders conversations by it; otherwise see `Joiner`.
        output_weights: weight of each of the model's outputs in the reward, `[num_labels]`. Needed where the model has
            several outputs; 1 where it has one, or a `readout` of its own. Two outputs of a token classifier are those
            of a wrong and of a correct step, and by default the log-odds are scored, (−1, 1); refused where the
            configuration's `id2label` says that they are the other way round.
        readout: what of the model's output is scored: `TensorReadout()` for a model that gives its rewards as a tensor.
            Default: `PooledReadout(output_weights)` for sequence classifiers, `TokenReadout(output_weights)` for token
            classifiers.
        max_length: tokens at which a row is cut (`TextEncoder` says how). Default: what tokenizer and model accept, at
            most 4,096.
        joining: how prompt and response become one text: "template", "pair", "blank line", "concatenate" or a function
            of both (`Joiner`). Default: as the model was trained, where its files say, else by its tokenizer.
        appends_eos: whether rows end in the tokenizer's eos. Default: as for `joining`.
        step_separator: what stands after each step of a response, for token classifiers: one token, at which the step
            is read, or "" for nothing. Default: as the model was trained, where its files say, else a line break, as in
            trl. `SegmentEncoder` says how steps are joined.
        max_batch_tokens: tokens of one batch, padding included. Default: 4,096 on a CPU, on a GPU what two short trials
            say of its free memory. Smaller batches follow by themselves where memory runs out.
        virtual_rank: rows of each virtual adapter's A, which `fit` finds in the inputs of the layers; the reward stays
            the model's own. Beside LoRA, both are in the posterior. None for no virtual adapters.
        virtual_targets: which layers get one: "auto" (all linear layers of attention and feed-forward blocks, from the
            last block down, as many as a ggn fit has memory for), last parts of their paths, or a regular expression.

    Raises:
        InputError: neither a LoRA adapter nor `virtual_rank`, or an adapter that cannot be served; the message lists
            the layers.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        virtual_rank: int | None = None,
        virtual_targets: Targets = "auto",
        output_weights: Sequence[float] | Tensor | None = None,
        readout: Readout | None = None,
        max_length: int | None = None,
        joining: Joining | None = None,
        appends_eos: bool | None = None,
        step_separator: str | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # of torch.compile, whose graph has no taps
        self.model = model
        self.tokenizer = tokenizer
        self.virtual_options = None if virtual_rank is None else VirtualOptions(virtual_rank, virtual_targets)
        self.virtual: VirtualAdapter | None = None
        """The virtual adapters, None before a fit has made them."""
        self.lora = self.find_lora()
        self._shortcuts: Shortcuts | None = None
        config = text_config(model)
        labels = 1 if readout is not None else self._outputs()
        if readout is not None and output_weights is not None:
            raise InputError("output_weights are for sequence classifiers; a readout of its own weighs by itself")
        of_tokens = is_token_classifier(model)
        if output_weights is None and of_tokens and labels == len(LOG_ODDS):
            output_weights = checked_log_odds(getattr(model.config, "id2label", None))
        self.output_weights = checked_output_weights(output_weights, labels)
        by_default = TokenReadout(self.output_weights) if of_tokens else PooledReadout(self.output_weights)
        self.readout: Readout = by_default if readout is None else readout
        self.can_be_saved = type(self.readout) is type(by_default)
        longest = default_max_length(tokenizer, most_tokens(model)) if max_length is None else max_length
        check_length(model, longest)
        self.encoder = TextEncoder(tokenizer, longest, joining, appends_eos)
        self.segments: SegmentEncoder | None = None
        if isinstance(self.readout, TokenReadout):
            self.segments = SegmentEncoder(self.encoder, step_separator)
        elif step_separator is not None:
            raise InputError(f"step_separator is for token classifiers, and {class_name(model)} is none")
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens must be positive, not {max_batch_tokens}")
        device = input_device(model)
        vocab_size = embedded_tokens(model) or getattr(config, "vocab_size", None) or len(tokenizer)
        # The model's own alone: a row that ends in the tokenizer's padding token, because that is the eos token too, is
        # scored at its end by a model that knows of none.
        padding = getattr(config, "pad_token_id", None)
        is_token = padding is not None and 0 <= padding < vocab_size
        self.collator = Collator(padding if is_token else None, vocab_size, device)
        tokens = max_batch_tokens or BATCH_TOKENS.get(device.type)
        # Otherwise a backward pass would keep all that was brought for the forward pass.
        self._checkpoints = bool(offloaded_weights(model))
        self._budget = None if tokens is None else TokenBudget(tokens, self._checkpoints)

    def _outputs(self) -> int:
        """How many a sequence classifier has: those of its head, whatever its configuration says."""
        if is_language_model(self.model):
            raise InputError(
                f"{class_name(self.model)} is a language model, which gives no reward: load it with "
                "AutoModelForSequenceClassification, or pass a readout of its own"
            )
        head = find_head(self.model)
        labels = getattr(getattr(self.model, "config", None), "num_labels", None)
        if head is None and not labels:
            raise InputError("the model is no sequence classifier: give readout=TensorReadout(), or one of your own")
        return int(labels or 0) if head is None else head.module.out_features

    @property
    def adapter(self) -> str | None:
        """Name of the LoRA adapter that is scored by, among those of the model; None where there is none."""
        return self.lora[0].adapter if self.lora else None

    def tokenize(
        self, prompts: Sequence[Text], responses: Sequence[Text], where: Sequence[str] | None = None
    ) -> list[TokenizedRow]:
        """What `score_tokenized` takes; may run in another thread than the model.

        Args:
            prompts, responses: `responses[i]` answers `prompts[i]`.
            where: what an error calls each row. Default: its number.

        Raises:
            InputError: no rows, lists of different lengths, or text that cannot be read.
        """
        return self.encoder.encode(*checked_rows(prompts, responses), where)

    def tokenize_pairs(self, pairs: Iterable[Any], source: str = "pairs") -> list[TokenizedPair]:
        """The same for preference pairs; `source` is what an error calls them.

        Raises:
            InputError: pairs that cannot be read.
        """
        return self.encoder.encode_pairs(all_pairs(pairs, source))

    def tokenize_candidates(self, sets: Sequence[Candidates]) -> list[TokenizedRow]:
        """The same for all candidates of checked sets, in their order."""
        prompts = [one.prompt for one in sets for _ in one.responses]
        where = [f"{one.where}: responses[{i}]" for one in sets for i in range(len(one.responses))]
        tools = [one.tools for one in sets for _ in one.responses]
        return self.encoder.encode(prompts, [response for one in sets for response in one.responses], where, tools)

    def tokenize_steps(
        self, responses: Iterable[Any], source: str = "responses", *, labelled: bool = False
    ) -> list[SegmentedRow]:
        """The same for responses in steps, of a token classifier.

        Args:
            responses: `StepwiseResponse`, or rows in trl's stepwise form: `prompt`, `completions` and perhaps `labels`.
            source: what an error calls them.
            labelled: whether labels must be there.

        Raises:
            InputError: responses that cannot be read, or a model that scores whole ones.
        """
        return self.segment_encoder.encode_steps(stepwise_responses(responses, source, labelled=labelled))

    @property
    def segment_encoder(self) -> SegmentEncoder:
        """Of a token classifier; raises InputError for a model that scores whole responses."""
        if self.segments is None:
            raise InputError(
                f"{class_name(self.model)} scores whole responses: for segments and steps load a token classifier "
                "(AutoModelForTokenClassification), or give readout=TokenReadout(output_weights)"
            )
        return self.segments

    def _row_frame(self) -> RowFrame:
        return row_frame(self.encoder, is_told_where=self.segments is not None)

    @property
    @exclusive
    def shortcuts(self) -> Shortcuts:
        """The shortcuts that give this model's rewards exactly; tried when first asked for."""
        if self._shortcuts is None:
            self._shortcuts = find_shortcuts(
                self.model,
                self.readout,
                self.collator,
                max_length=self.encoder.max_length,
                frame=self._row_frame(),
            )
        return self._shortcuts

    @property
    def base_model(self) -> str:
        """Name or path of the model under the adapters."""
        adapted = None if self.adapter is None else adapter_config(self.model, self.adapter).base_model_name_or_path
        return str(adapted or getattr(getattr(self.model, "config", None), "name_or_path", ""))

    def find_lora(self) -> list[LoraTap]:
        """The layers with LoRA, as the model is now; none for a model without an adapter that is to get virtual ones.

        Raises:
            InputError: a model or an adapter that cannot be served, or neither.
        """
        check_model(self.model)
        if self.virtual_options is not None and not has_adapter(self.model):
            return []
        return find_lora_taps(self.model)

    def taps(self, virtual: VirtualAdapter | None, include_head: bool = False) -> list[Tap]:
        """What a posterior over LoRA, these virtual adapters and perhaps the head is over."""
        taps: list[Tap] = [*self.lora, *(virtual.taps if virtual else ())]
        return [*taps, find_head_tap(self.model, [tap.module for tap in taps])] if include_head else taps

    def check_sites(self, sites: Sequence[Site], virtual: VirtualAdapter | None, include_head: bool, what: str) -> None:
        """Raise InputError unless `taps` are over these sites, which are those of `what`."""
        own = [site for tap in self.taps(virtual, include_head) for site in tap.sites]
        if own != list(sites):
            names = sorted({site.name for site in {*own} ^ {*sites}}) or ["their order"]
            raise InputError(f"{what} is over other weights than the model has; what differs: {named(names)}")

    def passes_over(self, taps: Sequence[Tap]) -> Passes:
        """The model with these taps."""
        tapped = TappedModel(Forward(self.model, self.readout, self.shortcuts), taps)
        budget = self._budget
        if budget is None:
            length, frame = self.encoder.max_length, self._row_frame()
            budget = measured_budget(tapped, length, self.collator, frame, self._checkpoints)
            self._budget = budget if taps else None  # a pass without taps keeps nothing, and says nothing of one with
        return Passes(tapped, self.collator, budget)

    def fingerprint(self, virtual: VirtualAdapter | None) -> dict[str, str]:
        """`model_fingerprint` of the model as it is, with these virtual adapters; reads every weight once."""
        adapters = [*self.lora, *(virtual.taps if virtual else ())]
        return model_fingerprint(self.model, self.tokenizer, adapters, self.collator.pad_token_id)
