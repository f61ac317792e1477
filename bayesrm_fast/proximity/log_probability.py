"""How probable responses are under the policy that may have written them: what RBoN-KL weighs beside a reward."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Self, cast

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from bayesrm_fast.errors import InputError, named
from bayesrm_fast.locks import lock_of
from bayesrm_fast.text.batches import Collator, TokenBatch, plan_batches
from bayesrm_fast.text.examples import TokenizedRow
from bayesrm_fast.text.layouts import as_continuation
from bayesrm_fast.text.records import Candidates, Tools, candidate_sets
from bayesrm_fast.text.texts import Text

MAX_BATCH_TOKENS = 4096
"""Of a batch, padding included. Its logits take a number for each of them and each token of the vocabulary."""


@dataclass(frozen=True)
class _Continued:
    """Token ids of a prompt and of what follows it: all of `row` from `start` on."""

    row: TokenizedRow
    start: int


class PolicyLogProbabilities:
    """log π(y | x) of responses under a causal language model: the sum over the response's tokens, in nats.

    What the policy is given, and what is its response:

    - A prompt that is a conversation is rendered by the tokenizer's chat template with its generation prompt, and what
      follows is the response's text. So is a plain prompt whose response is a message.
    - A plain prompt and a plain response are joined as they are, with nothing between, template or not. In a dialogue
      of `Human:` and `Assistant:`, what follows `Assistant:` is the response.

    The prompt's tokens are those of the prompt alone, as the policy was given them. The response's are those that
    follow them in the tokens of both as one text. Where a token of that text spans the boundary, the response's are
    those of the response alone: no response takes a token from its prompt.

    The token that ends a response is not counted, since a text does not say whether its policy ended it or was cut:
    it is the probability that a response begins with these tokens.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its own, a fast one.
        max_batch_tokens: of a batch, padding included; a longer row has one of its own.

    Raises:
        InputError: a model in training mode, or one that sees the tokens that it is to predict.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        if isinstance(max_batch_tokens, bool) or not isinstance(max_batch_tokens, int) or max_batch_tokens < 1:
            raise InputError(f"max_batch_tokens must be a whole number of at least 1, not {max_batch_tokens!r}")
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} is a slow tokenizer; load it with use_fast=True")
        if model.training:
            raise InputError("the policy is in training mode, in which dropout is a part of it: call its eval()")
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        count = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        padding = tokenizer.pad_token_id
        is_embedded = padding is not None and padding < count  # one that was added without a row for it is not
        self._collate = Collator(padding if is_embedded else None, count, model.device)
        self._check_causal()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> Self:
        """Load a policy and its tokenizer.

        Args:
            model: a folder or a hub name; of a whole model, or of an adapter that names its base model.
            device: Default: a GPU where there is one.
            dtype: of its weights. Default: the one they were saved in. Sums are float64 in any case.
            max_batch_tokens: as for the class.

        Raises:
            InputError: what the class raises, a model that cannot be loaded or has no weights for the logits, or an
                adapter for another task.
        """
        name = str(model)
        try:
            adapter = None if find_adapter_config_file(name) is None else PeftConfig.from_pretrained(name)
            if adapter is not None and adapter.task_type not in (None, "CAUSAL_LM"):
                raise InputError(f"{name} is an adapter for {adapter.task_type}, and no policy")
            # By itself, since transformers does not tell what the base model of an adapter lacks.
            base = name if adapter is None else str(adapter.base_model_name_or_path)
            found: Any = AutoModelForCausalLM.from_pretrained(
                base,
                revision=(adapter and adapter.revision) or "main",
                dtype="auto" if dtype is None else dtype,
                output_loading_info=True,
            )
            loaded, loading = found
            absent = set(loading["missing_keys"])
            if adapter is not None:
                absent |= loaded.load_adapter(name).missing_keys
            tokenizer = AutoTokenizer.from_pretrained(name)
        except InputError:
            raise
        except Exception as error:  # whatever hub, disk and torch raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the policy {name} cannot be loaded: {line}") from error
        if absent:
            raise InputError(
                f"{name} is no causal language model: it lacks {named(sorted(absent))}, which would be random"
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(loaded.to(device).eval(), tokenizer, max_batch_tokens)

    def log_probabilities(self, candidates: Sequence[Candidates]) -> list[Tensor]:  # shape of each: (n,)
        """Of each prompt's responses, in nats, float64 on the CPU, at most 0.

        Args:
            candidates: checked ones, as `candidate_sets` gives them; all of them share batches.

        Raises:
            InputError: by its row, a response without tokens, of several messages or with tool calls; messages that
                the tokenizer cannot render; a prompt without tokens before it; more tokens than the model has positions
                for; or a log-probability that is not finite.
        """
        continued = [one for row in candidates for one in self._continued(row)]
        rows = [one.row for one in continued]
        found = torch.empty(len(rows), dtype=torch.float64, device="cpu")
        for positions in plan_batches(rows, self.max_batch_tokens):
            starts = [continued[i].start for i in positions]
            found[positions] = self._of_batch(self._collate([rows[i] for i in positions]), starts)
        lost = (~found.isfinite()).nonzero().flatten().tolist()
        if lost:
            raise InputError(f"{rows[lost[0]].where} has the log-probability {float(found[lost[0]])} by the policy")
        return list(found.split([len(one.responses) for one in candidates]))

    def add(self, candidates: Iterable[Any]) -> list[Candidates]:
        """The same candidates with `log_probabilities`; those that have them keep their own.

        Args:
            candidates: `Candidates`, or mappings with `prompt` and `responses`.

        Raises:
            InputError: what `candidate_sets` and `log_probabilities` raise.
        """
        sets = candidate_sets(candidates)
        found = iter(self.log_probabilities([one for one in sets if one.log_probabilities is None]))
        return [
            one if one.log_probabilities is not None else replace(one, log_probabilities=next(found).tolist())
            for one in sets
        ]

    def _of_batch(self, batch: TokenBatch, starts: Sequence[int]) -> Tensor:  # shape: (B,)
        first = min(starts) - 1  # its logits are the response's first token's
        logits = self._logits(batch, first)
        sums = []
        for row, start in enumerate(starts):
            stop = int(batch.attention_mask[row].sum())
            own = logits[row, start - 1 - first : stop - 1 - first]
            # By row, because float32 of a whole batch's logits is twice what the model has made.
            by_token = own.to(torch.promote_types(own.dtype, torch.float32)).log_softmax(-1)
            tokens = batch.input_ids[row, start:stop, None]
            sums.append(by_token.gather(-1, tokens).sum(dtype=torch.float64))
        return torch.stack(sums).cpu()

    def _logits(self, batch: TokenBatch, first: int = 0) -> Tensor:  # shape: (B, T - first, V)
        """From position `first` on."""
        options: dict[str, Any] = {"use_cache": False}
        has_choice = "logits_to_keep" in signature(self.model.forward).parameters
        if has_choice:
            options["logits_to_keep"] = batch.input_ids.shape[1] - first
        weight = next(self.model.parameters())
        # A caller's autocast would round, and a reward model may share the weights and change them for a while.
        with lock_of(weight), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            logits: Tensor = self.model(**batch.model_inputs(), **options).logits
        return logits if has_choice else logits[:, first:]

    def _check_causal(self) -> None:
        """Raise InputError where logits depend on what comes after them, as those of BERT do."""
        tokens = [[0, 1, 2], [0, 1, 3]]
        rows = [TokenizedRow(ids, None, False) for ids in tokens if max(ids) < self._collate.vocab_size]
        logits = self._logits(self._collate(rows))[:, :2].float()
        if (logits[0] - logits[-1]).abs().max() > 1e-2 * logits.abs().max():
            raise InputError(f"{type(self.model).__name__} sees the tokens that it is to predict: it is no policy")

    def _continued(self, one: Candidates) -> Iterator[_Continued]:
        """Each response with its prompt before it, as tokens."""
        for i, response in enumerate(one.responses):
            where = f"{one.where}: responses[{i}]"
            if isinstance(one.prompt, str) and isinstance(response, str):
                before, after = self._tokens(*as_continuation(one.prompt, response), has_specials=False)
            else:
                prompt = self._rendered(one.prompt, one.tools, where)
                before, after = self._tokens(prompt, _content(response, where), has_specials=True)
            if not after:
                raise InputError(f"{where} is empty, and so has no tokens that could be probable")
            if not before:
                raise InputError(f"{where} has no token before it to be predicted from: give it a prompt")
            if self.max_length is not None and len(before) + len(after) > self.max_length:
                raise InputError(
                    f"{where} has {len(after)} tokens after the prompt's {len(before)}, and the policy has positions "
                    f"for {self.max_length}"
                )
            yield _Continued(TokenizedRow(before + after, None, False, where), len(before))

    def _tokens(self, prompt: str, response: str, has_specials: bool) -> tuple[list[int], list[int]]:
        """Of a prompt, with what its tokenizer puts before a text unless it is there, and of the response after it."""
        options: dict[str, Any] = {"truncation": False, "padding": False, "verbose": False}
        with lock_of(self.tokenizer):
            of_prompt = self.tokenizer(prompt, add_special_tokens=not has_specials, **options).encodings[0]
            both, alone = self.tokenizer([prompt + response, response], add_special_tokens=False, **options)[
                "input_ids"
            ]
        own = [
            token for token, is_added in zip(of_prompt.ids, of_prompt.special_tokens_mask, strict=True) if not is_added
        ]
        # What a tokenizer puts after a text, such as eos, would stand between prompt and response.
        begins = of_prompt.ids[: of_prompt.special_tokens_mask.index(0)] if own else of_prompt.ids[:1]
        return begins + own, both[len(own) :] if both[: len(own)] == own else alone

    def _rendered(self, prompt: Text, tools: Tools | None, where: str) -> str:
        """A conversation as the policy is given it to answer."""
        if not self.tokenizer.chat_template:
            raise InputError(f"{where} is of a conversation, and the policy's tokenizer has no chat template")
        messages: list[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)

        def rendered(tools: Any) -> str:
            return str(
                self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
            )

        try:
            text = rendered(tools)
            is_ignored = bool(tools) and rendered(None) == text
        except Exception as error:  # jinja's errors are those of whoever wrote the template
            raise InputError(f"{where}: the policy's chat template does not take its prompt: {error}") from error
        if is_ignored:
            raise InputError(f"{where} has tools, which the policy's chat template leaves out")
        return text


def _content(response: Text, where: str) -> str:
    """What the policy said.

    Raises:
        InputError: a response of more than that.
    """
    if isinstance(response, str):
        return response
    if len(response) > 1 or response[0].get("tool_calls"):
        raise InputError(f"{where} must be a text or one message without tool_calls, of which the policy wrote all")
    content: str = response[0]["content"]
    return content
