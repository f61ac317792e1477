"""How the rows were joined that a saved reward model was trained on, where its folder says so."""

import re
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bayesrm_fast.saved.folders import MODEL_CARD
from bayesrm_fast.text.joining import TRAINED_JOINING, TRL

TRL_TAG = "reward-trainer"
"""Of the model cards that trl's `RewardTrainer` writes."""


def record_joining(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Note in a tokenizer's configuration that trl trained a model, where its model card says so and nothing else does.

    A tokenizer keeps the note when it is saved; `train_adapter` leaves one of its own.

    Args:
        tokenizer: as loaded.
        folder: of the model or adapter; may be no folder at all.
    """
    try:
        card = (folder / MODEL_CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if not card.startswith("---"):
        return
    header = card.split("\n---", 1)[0]
    if TRL_TAG in re.findall(r"[\w-]+", header):
        tokenizer.init_kwargs.setdefault(TRAINED_JOINING, TRL)
