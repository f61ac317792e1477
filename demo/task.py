"""The task: to stay on the subject. Prompts, their candidates, what each is worth, and pairs with wrong labels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bayesrm_fast.model.passes import Progress
from demo.policy import MarkovChain, Policy, articles

PROMPT_WORDS = 6
PAIRS_A_PROMPT = 10


@dataclass(frozen=True)
class Prompt:
    """The beginning of a paragraph, and the article it is from."""

    topic: str
    text: str


def vocabulary(texts: Sequence[str]) -> set[str]:
    """Words of five letters or more, in lower case and without the punctuation around them."""
    words = (word.strip("""'"“”‘’.,;:!?()[]{}*`_""").lower() for text in texts for word in text.split())
    return {word for word in words if len(word) > 4}


def on_subject(text: str, article_words: set[str]) -> float:
    """The gold: which share of the text's words of five letters or more the article has; 0 of a text without any."""
    words = vocabulary([text])
    return len(words & article_words) / max(len(words), 1)


class Task:
    """Articles to learn from and other articles to choose on, drawn by the seed.

    Args:
        seed: of everything.
        policy: that writes all texts; None for the Markov chain.
    """

    def __init__(self, seed: int, policy: Policy | None = None) -> None:
        self.reference = articles()
        self.policy = MarkovChain(self.reference) if policy is None else policy
        self._words = {topic: vocabulary(paragraphs) for topic, paragraphs in self.reference.items()}
        self.seed = seed
        names = sorted(self.reference)
        random.Random(seed).shuffle(names)
        stop = 3 * len(names) // 5
        self.training = self._prompts(names[:stop])
        learnt = {prompt.text for prompt in self.training}
        self.held_out = [prompt for prompt in self._prompts(names[stop:]) if prompt.text not in learnt]

    def _prompts(self, names: Sequence[str]) -> list[Prompt]:
        beginnings = {
            " ".join(paragraph.split()[:PROMPT_WORDS]): name for name in names for paragraph in self.reference[name]
        }
        found = [Prompt(name, beginning) for beginning, name in beginnings.items()]
        random.Random(self.seed).shuffle(found)
        return found

    def gold(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Of continuations."""
        return [on_subject(text, self._words[prompt.topic]) for text in texts]

    def candidates(self, prompt: Prompt, count: int) -> list[str]:
        """Samples of the policy."""
        return self.policy.continuations(prompt.topic, prompt.text, count, f"{self.seed} {prompt}")

    def pairs(self, count: int, noise: float, progress: Progress | None = None) -> list[dict[str, str]]:
        """Two samples of different gold each; in a share `noise` of the pairs the worse one is called the better."""
        lot = random.Random(self.seed)
        found: list[dict[str, str]] = []
        for prompt in self.training:
            if len(found) >= count:
                break
            texts = self.candidates(prompt, 2 * PAIRS_A_PROMPT)
            both = zip(texts, self.gold(prompt, texts), strict=True)
            for (first, worth), (second, other) in zip(both, both, strict=True):
                if worth != other:
                    better, worse = (first, second) if (worth > other) != (lot.random() < noise) else (second, first)
                    found.append({"prompt": prompt.text, "chosen": better, "rejected": worse})
            if progress is not None:
                progress(min(len(found), count), count)
        return found[:count]


def agreement(texts: Sequence[str]) -> list[float]:
    """Mean share of words that a text has in common with each of them: what minimum Bayes risk chooses by."""
    sets = [set(text.split()) for text in texts]
    return [sum(len(own & other) / max(len(own | other), 1) for other in sets) / len(sets) for own in sets]
