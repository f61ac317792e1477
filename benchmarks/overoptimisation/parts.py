"""The experiments: whose samples, worth what, chosen among by which reward model."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from benchmarks.data import embedded_decoder, embedded_encoder
from benchmarks.overoptimisation.synthetic import synthetic
from benchmarks.overoptimisation.tasks import Pairs, Task, humaneval, pool, qa_feedback


@dataclass(frozen=True)
class Part:
    """An experiment.

    Attributes:
        split: from a seed and the share of labels to flip to the pairs to train on and the other tasks.
        base: folder of the model that learns.
        target_modules, epochs, max_length: of the training.
    """

    split: Callable[[int, float], tuple[Pairs, list[Task]]]
    epochs: int
    max_length: int
    base: Callable[[], Path] = embedded_encoder
    target_modules: tuple[str, ...] = ("query", "value")


class PartName(StrEnum):
    """The experiments."""

    HUMANEVAL = "humaneval"
    ALL_LINEAR = "all_linear"
    QA_FEEDBACK = "qa_feedback"
    POOL = "pool"
    SYNTHETIC = "synthetic"
    GEMMA = "gemma"


PARTS = {
    PartName.HUMANEVAL: Part(partial(humaneval, 45, None, 100), epochs=3, max_length=160),
    PartName.ALL_LINEAR: Part(
        partial(humaneval, 45, None, 100),
        epochs=3,
        max_length=160,
        target_modules=("query", "key", "value", "dense"),
    ),
    PartName.QA_FEEDBACK: Part(partial(qa_feedback, 240, 240), epochs=3, max_length=160),
    PartName.POOL: Part(partial(pool, 240, 60, 56), epochs=2, max_length=128),
    PartName.SYNTHETIC: Part(partial(synthetic, 240, 60, 64), epochs=2, max_length=128),
    PartName.GEMMA: Part(
        partial(humaneval, 24, 40, 64),
        epochs=3,
        max_length=128,
        base=embedded_decoder,
        target_modules=("q_proj", "v_proj"),
    ),
}
QUICK = Part(partial(humaneval, 4, 4, 32), epochs=1, max_length=48)
