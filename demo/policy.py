"""The policy: a word-level Markov chain over the Python language reference, which ships with Python."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pydoc_data.topics import topics

SHORTEST = 150
"""Words that an article has at least."""

DRIFT = 1 / 6
"""How often, after a word, the chain goes over to another article that has this word, and stays there."""

LONGEST = 40
"""Words at which a continuation is cut."""

Successors = Mapping[tuple[str, ...], Sequence[str]]


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
            if text[-1].endswith((".", ":")):
                break
        return " ".join(text[before:])


def _successors(words: Sequence[str]) -> Successors:
    """What follows each word and each two words; the first word follows the last one."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for place, word in enumerate(words):
        found[(words[place - 1],)].append(word)
        found[(words[place - 2], words[place - 1])].append(word)
    return dict(found)
