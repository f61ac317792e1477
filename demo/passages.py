"""Preference pairs and candidates made, always the same, from the English text that ships with Python itself."""

import ast
import codecs
import importlib.util
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

OFF_TOPIC_MODULES = ("turtle", "imaplib", "smtplib", "gettext", "calendar", "wave", "sched", "colorsys", "mailbox")
"""Library modules whose docstrings are about anything but the language reference."""


@dataclass(frozen=True)
class Passage:
    """A paragraph of the language reference: how it begins, and how it goes on."""

    topic: str
    prompt: str
    continuation: str


def passages() -> list[Passage]:
    """Every paragraph that has a first sentence and enough after it, in the order of the topics."""
    found: dict[str, Passage] = {}
    for topic in sorted(topics):
        text = topics[topic]
        title = text.strip().splitlines()[0].strip()
        for paragraph in re.split(r"\n\s*\n", text):
            words = " ".join(paragraph.split())
            sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", words, maxsplit=1)
            if len(sentences) < 2 or "::=" in words or not 25 <= len(sentences[0]) <= 260 or len(sentences[1]) < 60:
                continue
            prompt = f"{title}. {sentences[0]}"
            found.setdefault(sentences[0], Passage(topic, prompt, sentences[1][:700]))
    return list(found.values())


def split(seed: int = 0, held_out: float = 0.2) -> tuple[list[Passage], list[Passage]]:
    """Training and held-out passages; no topic is in both."""
    everything = passages()
    names = sorted({passage.topic for passage in everything})
    random.Random(seed).shuffle(names)
    kept_out: set[str] = set()
    for name in names:
        together = sum(passage.topic in kept_out | {name} for passage in everything)
        if together <= held_out * len(everything):
            kept_out.add(name)
    return (
        [passage for passage in everything if passage.topic not in kept_out],
        [passage for passage in everything if passage.topic in kept_out],
    )


def preference_pairs(train: list[Passage], count: int, seed: int = 0) -> list[dict[str, str]]:
    """The passage's own continuation is preferred to that of a passage on another topic."""
    generator = random.Random(seed)
    pairs = []
    for passage in generator.sample(train * (count // len(train) + 1), count):
        other = generator.choice([p for p in train if p.topic != passage.topic])
        pairs.append({"prompt": passage.prompt, "chosen": passage.continuation, "rejected": other.continuation})
    return pairs


def off_topic_texts() -> list[str]:
    """Paragraphs of library docstrings, and the Zen of Python."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for name in OFF_TOPIC_MODULES:
        docstring = ast.get_docstring(ast.parse((library / f"{name}.py").read_text(encoding="utf-8"))) or ""
        texts += [" ".join(p.split()) for p in re.split(r"\n\s*\n", docstring) if len(p) > 80]
    this = importlib.util.find_spec("this")
    if this is not None and this.origin is not None:  # importing it would print it
        source = ast.parse(Path(this.origin).read_text(encoding="utf-8"))
        rot13 = next(n.value for n in ast.walk(source) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        texts.append(" ".join(codecs.decode(rot13, "rot13").split()))
    return texts


def candidates(passage: Passage, others: list[Passage], seed: int) -> list[tuple[str, str]]:
    """`(kind, text)`: the passage's own continuation, six of other topics, and what reward models are fooled by."""
    generator = random.Random(f"{seed}{passage.prompt}")
    wrong = generator.sample([p for p in others if p.topic != passage.topic], 6)
    words = passage.prompt.split()
    long_words = sorted({w.strip('.,;:()"') for w in words}, key=lambda w: (-len(w), w))[:4]
    shuffled = passage.continuation.split()
    generator.shuffle(shuffled)
    return [
        ("own continuation", passage.continuation),
        *(("other topic", p.continuation) for p in wrong),
        ("prompt echoed", " ".join([passage.prompt] * 3)),
        ("keywords repeated", " ".join(long_words * 12)),
        ("one word repeated", " ".join([long_words[0]] * 40)),
        ("word salad", " ".join(shuffled)),
        ("punctuation", "?!... " * 20),
        *(("off topic", text) for text in generator.sample(off_topic_texts(), 4)),
    ]
