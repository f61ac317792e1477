"""How alike a prompt's responses are, by a sentence encoder: what MBR and MBR-BoN choose by."""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bayesrm_fast.errors import InputError
from bayesrm_fast.locks import lock_of
from bayesrm_fast.text.records import Candidates, candidate_sets
from bayesrm_fast.text.texts import Text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_SIZE = 32
"""Texts that are encoded at once; those of like length share a batch."""


class SentenceSimilarities:
    """Cosines of the angles between sentence embeddings of responses.

    A response that is a conversation is read as its messages' contents, a blank line between two. The encoder reads a
    text up to its `max_seq_length`; the first call in which a text is longer warns how many are.

    Args:
        model: of sentence-transformers, by its name or its folder.
        device: where it runs. Default: a GPU where there is one.

    Raises:
        InputError: sentence-transformers is not installed, or the model cannot be loaded.
    """

    def __init__(self, model: str | os.PathLike[str], device: str | None = None) -> None:
        self.name = str(model)
        self.encoder = _loaded(self.name, device)
        self._has_told = False

    def similarities(self, candidates: Sequence[Candidates]) -> list[Tensor]:  # shape of each: (n, n)
        """Of each prompt's responses: float64 on the CPU, symmetric, between −1 and 1, and 1 on the diagonal.

        Args:
            candidates: checked ones, as `candidate_sets` gives them; all of them share batches, and equal responses
                are encoded once.

        Raises:
            InputError: a response that calls tools, or one whose embedding has no direction, by its row.
        """
        texts = [
            [_as_plain(response, f"{one.where}: responses[{i}]") for i, response in enumerate(one.responses)]
            for one in candidates
        ]
        places: dict[str, int] = {}
        for text in (text for own in texts for text in own):
            places.setdefault(text, len(places))
        self._warn_of_long(list(places))
        embeddings = self._embeddings(list(places))
        found = []
        for one, own in zip(candidates, texts, strict=True):
            embedded = embeddings[[places[text] for text in own]]
            lost = (~embedded.isfinite().all(1)).nonzero().flatten().tolist()
            if lost:
                raise InputError(f"{one.where}: responses[{lost[0]}] has no embedding of finite length by {self.name}")
            found.append((embedded @ embedded.T).clamp(-1, 1).fill_diagonal_(1.0))  # which rounding misses
        return found

    def add(self, candidates: Iterable[Any]) -> list[Candidates]:
        """The same candidates with `similarities`; those that have them keep their own.

        Args:
            candidates: `Candidates`, or mappings with `prompt` and `responses`.

        Raises:
            InputError: what `candidate_sets` and `similarities` raise.
        """
        sets = candidate_sets(candidates)
        absent = [one for one in sets if one.similarities is None]
        found = iter(self.similarities(absent))
        return [
            one if one.similarities is not None else replace(one, similarities=next(found).tolist()) for one in sets
        ]

    def _embeddings(self, texts: list[str]) -> Tensor:  # shape: (len(texts), d)
        """Unit vectors, float64 on the CPU; NaN where there is none."""
        if not texts:
            return torch.empty(0, 0, dtype=torch.float64, device="cpu")
        with lock_of(self.encoder.tokenizer):
            found = self.encoder.encode(texts, batch_size=BATCH_SIZE, convert_to_tensor=True, show_progress_bar=False)
        embeddings: Tensor = found.to("cpu", torch.float64)
        units: Tensor = embeddings / embeddings.norm(dim=1, keepdim=True)
        return units

    def _warn_of_long(self, texts: list[str]) -> None:
        limit, tokenizer = self.encoder.max_seq_length, self.encoder.tokenizer
        # Those of bags of words and static embeddings are of other kinds, and cut nothing.
        if self._has_told or not isinstance(limit, int) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        with lock_of(tokenizer):
            ids = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"] if texts else []
        lengths = [len(one) for one in ids]
        long = sum(length > limit for length in lengths)
        if long:
            self._has_told = True
            warnings.warn(
                f"{long} of {len(texts)} responses are longer than the {limit} tokens that {self.name} reads (the "
                f"longest has {max(lengths)}): their ends count for no similarity (later calls do not tell)",
                stacklevel=3,
            )


def _loaded(name: str, device: str | None) -> "SentenceTransformer":
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError("similarities need sentence-transformers: pip install sentence-transformers") from error
    try:
        return SentenceTransformer(name, device=device)
    except Exception as error:  # whatever hub, disk and torch raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the sentence encoder {name} cannot be loaded: {line}") from error


def _as_plain(text: Text, where: str) -> str:
    if isinstance(text, str):
        return text
    if any(message.get("tool_calls") for message in text):
        raise InputError(f"{where} has tool_calls, which a sentence encoder does not read")
    return "\n\n".join(message["content"] for message in text)
