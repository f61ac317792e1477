"""The policies: a word-level Markov chain over the Python language reference, and a pretrained decoder."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SHORTEST = 150
"""Words that an article has at least."""

DRIFT = 1 / 6
"""How often, after a word, the chain goes over to another article that has this word, and stays there."""

LONGEST = 40
"""Words at which a continuation is cut."""

LONGEST_SAMPLE = 24
"""Tokens at which a decoder's continuation is cut."""

SENTENCE_ENDS = (".", ":")

Successors = Mapping[tuple[str, ...], Sequence[str]]


class Policy(Protocol):
    """What continues the beginning of a paragraph."""

    def continuations(self, topic: str, beginning: str, count: int, seed: str) -> list[str]:
        """Samples, drawn by the seed, of what may follow a beginning from the article on this topic."""


def articles() -> dict[str, list[str]]:
    """Paragraphs of prose of every article that is long enough; a paragraph stands in one article alone."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for topic in sorted(topics):
        paragraphs = [" ".join(text.split()) for text in re.split(r"\n\s*\n", topics[topic])]
        prose = [text for text in paragraphs if re.match("[A-Z]", text) and "::=" not in text and text.count(" ") > 10]
        new = [text for text in dict.fromkeys(prose) if text not in seen]
        seen.update(new)
        if sum(len(text.split()) for text in new) >= SHORTEST:
            found[topic] = new
    return found


class MarkovChain:
    """Continues the beginning of an article to the end of a sentence, and may stray from the subject on the way.

    Each word follows the last one or, in one case of two, the last two, as it does somewhere in the article.
    """

    def __init__(self, reference: Mapping[str, Sequence[str]]) -> None:
        self._articles = {topic: _successors(" ".join(paragraphs).split()) for topic, paragraphs in reference.items()}

    def continuations(self, topic: str, beginning: str, count: int, seed: str) -> list[str]:
        """Samples, drawn by the seed; the beginning has two words or more of this article."""
        generator = random.Random(seed)
        return [self.continuation(topic, beginning, generator) for _ in range(count)]

    def continuation(self, topic: str, beginning: str, generator: random.Random) -> str:
        """What follows a beginning of two words or more from this article, up to a word with a full stop or colon."""
        text = beginning.split()
        before = len(text)
        article = self._articles[topic]
        while len(text) < before + LONGEST:
            last, last_two = tuple(text[-1:]), tuple(text[-2:])
            if generator.random() < DRIFT:
                article = generator.choice([other for other in self._articles.values() if last in other])
            follows = article.get(last_two) if generator.random() < 0.5 else None
            text.append(generator.choice(follows or article[last]))
            if text[-1].endswith(SENTENCE_ENDS):
                break
        return " ".join(text[before:])


class Decoder:
    """A pretrained causal language model, which knows no more of the article than the beginning that it continues.

    Args:
        folder: of the model and its tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def continuations(self, topic: str, beginning: str, count: int, seed: str) -> list[str]:
        """Samples of the model's own distribution, drawn by the seed, up to the first word that ends a sentence."""
        tokens = self._tokenizer(beginning, return_tensors="pt", return_token_type_ids=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.Random(seed).getrandbits(63))
            sampled = self._model.generate(
                **tokens,
                do_sample=True,
                top_k=0,
                min_new_tokens=1,
                max_new_tokens=LONGEST_SAMPLE,
                num_return_sequences=count,
            )
        texts = self._tokenizer.batch_decode(sampled[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
        return [_first_sentence(text) for text in texts]


def _first_sentence(text: str) -> str:
    words = text.split()
    ends = [place for place, word in enumerate(words, start=1) if word.endswith(SENTENCE_ENDS)]
    return " ".join(words[: min(ends, default=len(words))])


def _successors(words: Sequence[str]) -> Successors:
    """What follows each word and each two words; the first word follows the last one."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for place, word in enumerate(words):
        found[(words[place - 1],)].append(word)
        found[(words[place - 2], words[place - 1])].append(word)
    return dict(found)
