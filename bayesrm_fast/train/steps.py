"""Training a LoRA token classifier on labelled steps, joined and tokenized exactly as scoring joins them."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PrinterCallback, Trainer, TrainingArguments, set_seed

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.passes import Progress
from bayesrm_fast.model.readout import LOG_ODDS
from bayesrm_fast.model.reward_model import RewardModel
from bayesrm_fast.saved.folders import check_target, save_folder
from bayesrm_fast.text.examples import SegmentedRow
from bayesrm_fast.text.joining import TRAINED_JOINING
from bayesrm_fast.text.segments import STEP_SEPARATOR, TRAINED_STEP_SEPARATOR
from bayesrm_fast.text.steps import stepwise_responses
from bayesrm_fast.train.adapter import TrainOptions, load_base, lora_config, tell_steps, training_arguments

UNLABELLED = -100
"""What transformers has in place of a label at tokens without one."""


def train_step_adapter(
    base: str | os.PathLike[str],
    responses: Iterable[Any],
    folder: str | os.PathLike[str],
    options: TrainOptions,
    progress: Progress | None = None,
    *,
    step_separator: str | None = None,
) -> list[dict[str, float]]:
    """Train a token classifier with transformers' `Trainer`, and save a normal peft adapter with its tokenizer.

    The likelihood of a label is Bernoulli in the log-odds at the step's end, as in `fit`. Rows are laid out as
    `SegmentEncoder` says of steps without a joining; the tokenizer's configuration notes the separator.

    Args:
        base: name or path of a model that `AutoModelForTokenClassification` loads. A token classifier keeps its head,
            which has one or two outputs; any other model gets one with two.
        responses: `StepwiseResponse`, or rows in trl's stepwise form: `prompt`, `completions`, `labels`.
        folder: where the adapter goes.
        options: how it is trained.
        progress: called with the updates done and their total.
        step_separator: as for `BayesianRewardModel`. Default: a line break.

    Returns:
        The trainer's log: loss by update.

    Raises:
        InputError: responses that cannot be read or tokenized, a base model that cannot be loaded or has another number
            of outputs, or an unwritable folder.
    """
    folder = Path(folder)
    check_target(folder, str(base))
    checked = stepwise_responses(responses, labelled=True)
    set_seed(options.seed)
    model, tokenizer, new_layers = load_base(base, AutoModelForTokenClassification, _outputs)
    if model.config.num_labels not in (1, len(LOG_ODDS)):
        raise InputError(
            f"the base model {base} classifies tokens with {model.config.num_labels} outputs, and steps need one or two"
        )
    separator = STEP_SEPARATOR if step_separator is None else step_separator
    tokenizer.init_kwargs |= {TRAINED_JOINING: "concatenate", TRAINED_STEP_SEPARATOR: separator}
    adapted = get_peft_model(model, lora_config(options, "TOKEN_CLS", new_layers))
    rm = RewardModel(adapted, tokenizer, max_length=options.max_length)
    rows = rm.segment_encoder.encode_steps(checked)

    def collate(batch: Sequence[SegmentedRow]) -> dict[str, Tensor]:
        inputs = rm.collator([one.row for one in batch]).model_inputs()
        labels = torch.full_like(inputs["input_ids"], UNLABELLED)
        for i, one in enumerate(batch):
            labels[i, one.ends] = torch.tensor(one.labels, dtype=torch.int64, device=labels.device)
        return inputs | {"labels": labels}

    with tempfile.TemporaryDirectory() as scratch:
        trainer = _StepTrainer(
            model=adapted,
            args=TrainingArguments(**training_arguments(options, scratch), remove_unused_columns=False),
            train_dataset=rows,
            data_collator=collate,
        )
        trainer.output_weights = rm.output_weights
        trainer.remove_callback(PrinterCallback)
        if progress is not None:
            trainer.add_callback(tell_steps(progress))
        trainer.train()
        save_folder(folder, adapted, "default", tokenizer)
        return [entry for entry in trainer.state.log_history if "loss" in entry]


class _StepTrainer(Trainer):
    """Maximises the likelihood of the steps' labels."""

    output_weights: Tensor  # shape: (L,)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean of a batch's steps."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        is_end = labels != UNLABELLED
        log_odds = outputs.logits[is_end].float() @ self.output_weights.to(labels.device)
        loss = nn.functional.binary_cross_entropy_with_logits(log_odds, labels[is_end].float())
        return (loss, outputs) if return_outputs else loss


def _outputs(config: Any) -> int:
    """Those of a token classifier's own head; otherwise two, as trl has it."""
    is_own = any(name.endswith("ForTokenClassification") for name in config.architectures or ())
    return int(config.num_labels) if is_own else len(LOG_ODDS)
