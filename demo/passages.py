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

OTHER_SUBJECTS = ("turtle", "imaplib", "smtplib", "gettext", "calendar", "wave", "sched", "colorsys", "mailbox")
"""Library modules that are about anything but the language itself."""


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


def corrupted(text: str, other: str, generator: random.Random) -> str:
    """A damaged copy: words in disorder, a third of them another passage's, or its beginning over and over."""
    words = text.split()
    how = generator.choice(["disorder", "mixture", "repetition"])
    if how == "disorder":
        for start in range(0, len(words), 6):
            window = words[start : start + 6]
            generator.shuffle(window)
            words[start : start + 6] = window
    elif how == "mixture":
        foreign = other.split()
        words = [generator.choice(foreign) if generator.random() < 0.35 else word for word in words]
    else:
        words = (words[: max(8, len(words) // 3)] * 4)[: len(words)]
    return " ".join(words)


def preference_pairs(train: list[Passage], count: int, seed: int = 0) -> list[dict[str, str]]:
    """A passage as it stands is preferred to a damaged copy of it."""
    generator = random.Random(seed)
    pairs = []
    for passage in generator.sample(train * (count // len(train) + 1), count):
        damaged = corrupted(passage.continuation, generator.choice(train).continuation, generator)
        if damaged != passage.continuation:
            pairs.append({"prompt": passage.prompt, "chosen": passage.continuation, "rejected": damaged})
    return pairs


def library_text() -> tuple[list[str], list[str]]:
    """Paragraphs of library docstrings with the Zen of Python, and pieces of the same modules' source code."""
    library = Path(sysconfig.get_paths()["stdlib"])
    prose, code = [], []
    for name in OTHER_SUBJECTS:
        source = (library / f"{name}.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        prose += [" ".join(p.split()) for p in re.split(r"\n\s*\n", docstring) if len(p) > 80]
        lines = [line.strip() for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
        code += [" ".join(lines[start : start + 12]) for start in range(200, min(len(lines), 500), 60)]
    this = importlib.util.find_spec("this")
    if this is not None and this.origin is not None:  # importing it would print it
        parsed = ast.parse(Path(this.origin).read_text(encoding="utf-8"))
        rot13 = next(n.value for n in ast.walk(parsed) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        prose.append(" ".join(codecs.decode(rot13, "rot13").split()))
    return prose, code


IN_DISTRIBUTION = ("intact passage", "damaged copy")


def candidates(passage: Passage, others: list[Passage], seed: int = 0) -> list[tuple[str, str]]:
    """`(kind, text)` of everything that is put up for one prompt; the first is the one to find."""
    generator = random.Random(f"{seed}{passage.prompt}")
    damaged = [corrupted(passage.continuation, generator.choice(others).continuation, generator) for _ in range(3)]
    prose, code = library_text()
    longest = max((word.strip('.,;:()"') for word in passage.prompt.split()), key=len)
    return [
        ("intact passage", passage.continuation),
        *(("damaged copy", text) for text in damaged),
        *(("another subject", text[:700]) for text in generator.sample(prose, 3)),
        *(("source code", text[:700]) for text in generator.sample(code, 2)),
        ("prompt echoed", " ".join([passage.prompt] * 3)),
        ("one word repeated", " ".join([longest] * 40)),
        ("punctuation", "?!... " * 20),
    ]
