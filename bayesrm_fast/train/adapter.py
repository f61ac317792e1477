"""Training a LoRA reward model with trl, on rows joined exactly as scoring joins them. Needs the extra `train`."""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bayesrm_fast.errors import InputError, named
from bayesrm_fast.model.layers import is_after_backbone
from bayesrm_fast.model.lengths import check_length, most_tokens
from bayesrm_fast.model.passes import Progress
from bayesrm_fast.saved.damage import MODEL_FILES, TOKENIZER_FILES, cannot_load
from bayesrm_fast.saved.folders import check_target, save_folder
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.encoder import TextEncoder, default_max_length
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow
from bayesrm_fast.text.joining import TRAINED_JOINING, TRAINED_ON_MESSAGES, is_plain_text
from bayesrm_fast.text.records import preference_pairs


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train_adapter` and `train_step_adapter`.

    Attributes:
        lora_rank: r of every adapted layer.
        lora_alpha: its scaling is alpha / r.
        target_modules: names of the layers to adapt; None for peft's choice for the architecture.
        epochs: passes over the rows.
        learning_rate: peak of the linear schedule.
        batch_size: pairs of an update, or responses in steps.
        max_length: tokens at which a row is cut; None for what tokenizer and model accept, at most 4,096.
        seed: of the LoRA and head initialisation and of the order of the rows.
    """

    lora_rank: int = 8
    lora_alpha: int = 16
    target_modules: Sequence[str] | None = None
    epochs: float = 1.0
    learning_rate: float = 1e-4
    batch_size: int = 8
    max_length: int | None = None
    seed: int = 0


def train_adapter(
    base: str | os.PathLike[str],
    pairs: Iterable[Any],
    folder: str | os.PathLike[str],
    options: TrainOptions,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train a reward model with trl's `RewardTrainer` and save a normal peft adapter with its tokenizer.

    Args:
        base: name or path of a model that `AutoModelForSequenceClassification` loads.
        pairs: as for `BayesianRewardModel.fit`.
        folder: where the adapter goes.
        options: how it is trained.
        progress: called with the steps done and their total.

    Returns:
        trl's log: loss, accuracy and margin by step.

    Raises:
        InputError: pairs that cannot be read, a base model that cannot be loaded, an unwritable folder, or no trl.
    """
    try:
        from datasets import Dataset
        from transformers import PrinterCallback
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        raise InputError(f"training needs the extra: pip install 'bayesrm_fast[train]' ({error})") from error
    from transformers import AutoModelForSequenceClassification, set_seed

    folder = Path(folder)
    check_target(folder, str(base))
    checked = preference_pairs(pairs)
    set_seed(options.seed)
    model, tokenizer, new_layers = load_base(base, AutoModelForSequenceClassification, lambda _: 1)
    config = model.config.get_text_config()
    longest = default_max_length(tokenizer, most_tokens(model)) if options.max_length is None else options.max_length
    check_length(model, longest)
    tokenizer.init_kwargs.pop(TRAINED_JOINING, None)  # of how the base was trained
    encoder = TextEncoder(tokenizer, longest)
    is_plain = all(is_plain_text(pair.prompt, side) for pair in checked for side in (pair.chosen, pair.rejected))
    tokenizer.init_kwargs |= {TRAINED_JOINING: encoder.joining, TRAINED_ON_MESSAGES: not is_plain}
    if tokenizer.eos_token is None:  # trl asks every tokenizer for one; an encoder's rows end with its separator
        tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    tokenized = encoder.encode_pairs(checked)
    dataset = Dataset.from_dict(
        {f"{side}_ids": [_as_columns(getattr(pair, side)) for pair in tokenized] for side in ("chosen", "rejected")}
    )
    padding = _padding_token(config.pad_token_id, config.vocab_size, tokenized)
    collate = Collator(padding, config.vocab_size, torch.device("cpu"))

    def collate_rows(examples: list[dict[str, list[list[int]]]]) -> dict[str, Tensor]:
        rows = [example[side] for side in ("chosen_ids", "rejected_ids") for example in examples]
        return collate([_from_columns(row) for row in rows]).model_inputs()

    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**training_arguments(options, scratch), max_length=None),
            train_dataset=dataset,
            processing_class=tokenizer,
            data_collator=collate_rows,
            peft_config=lora_config(options, "SEQ_CLS", new_layers),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_set_padding(config, padding))
        if progress is not None:
            trainer.add_callback(tell_steps(progress))
        trainer.train()
        save_folder(folder, cast(PeftModel, trainer.model), "default", tokenizer)
        return [entry for entry in trainer.state.log_history if "loss" in entry]


def load_base(
    base: str | os.PathLike[str], auto_class: Any, outputs: Callable[[Any], int]
) -> tuple[Any, PreTrainedTokenizerBase, list[str]]:
    """A model to be adapted, its tokenizer, and paths of the layers that are new: to be trained and saved as a whole.

    Args:
        base: name or path of the model.
        auto_class: transformers' class that loads it.
        outputs: from its configuration to the number of outputs of its head.

    Raises:
        InputError: a model that cannot be loaded, has code of its own or a head with other outputs, or lacks layers of
            its backbone.
    """
    from transformers import AutoConfig, AutoTokenizer

    own_code = {"trust_remote_code": False}  # None would ask on the terminal
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), **own_code)
        labels = outputs(AutoConfig.from_pretrained(str(base), **own_code))
        telling = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, loading = auto_class.from_pretrained(str(base), num_labels=labels, **telling, **own_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(f"the base model {base} brings code of its own, which training does not run") from error
        files = (*MODEL_FILES, *TOKENIZER_FILES)
        raise cannot_load(f"the base model {base}", str(base), files, error) from error
    other = sorted(name for name, *_ in loading["mismatched_keys"])
    if other:
        raise InputError(
            f"the base model {base} holds {named(other)} in other sizes than a model with {labels} output(s) has: take "
            "one without a head, or with as many outputs"
        )
    return model, tokenizer, _new_layers(model, loading["missing_keys"], str(base))


def lora_config(options: TrainOptions, task_type: str, new_layers: list[str]) -> LoraConfig:
    """Of an adapter that is to be trained; `new_layers` are those of `load_base`."""
    return LoraConfig(
        task_type=task_type,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        target_modules=None if options.target_modules is None else list(options.target_modules),
        modules_to_save=new_layers or None,
        exclude_modules=new_layers or None,
    )


def training_arguments(options: TrainOptions, scratch: str) -> dict[str, Any]:
    """What any of transformers' trainers is told; `scratch` is a folder for what it may write."""
    return {
        "output_dir": scratch,
        "num_train_epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "seed": options.seed,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 10,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
    }


def _padding_token(own: int | None, vocab_size: int, pairs: Sequence[TokenizedPair]) -> int:
    """The model's padding token, or one that no row has, so that rows are trained at the token that scoring reads."""
    if own is not None and 0 <= own < vocab_size:
        return own
    present = {token for pair in pairs for row in pair.rows for token in row.input_ids}
    absent = next((token for token in range(vocab_size) if token not in present), None)
    if absent is None:
        raise InputError("the model has no padding token, and the pairs have every other: set its pad_token_id")
    return absent


def _set_padding(config: Any, padding: int) -> Any:
    from transformers import TrainerCallback

    class SetPadding(TrainerCallback):
        def on_train_begin(self, *args: Any, **_: Any) -> None:
            # The trainers have put the tokenizer's there, which may be the eos that rows end with.
            config.pad_token_id = padding

    return SetPadding()


def _new_layers(model: nn.Module, absent: Iterable[str], base: str) -> list[str]:
    """Paths of the layers between backbone and head that a base model does not hold: trained and saved as a whole.

    peft does the same for a head by itself.
    """
    layers = sorted({name.rpartition(".")[0] for name in absent})
    layers = [name for name in layers if name.split(".")[0] not in SEQ_CLS_HEAD_NAMES]
    inside = [name for name in layers if not is_after_backbone(model, name)]
    if inside:
        raise InputError(f"the base model {base} does not hold {named(inside)}, which would be random")
    return layers


def tell_steps(progress: Progress) -> Any:
    """A callback of transformers' trainers that tells the updates done and their total."""
    from transformers import TrainerCallback

    class TellSteps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)

    return TellSteps()


def _as_columns(row: TokenizedRow) -> list[list[int]]:
    """Ids and token types in the one column that trl keeps for each side."""
    return [row.input_ids] if row.token_type_ids is None else [row.input_ids, row.token_type_ids]


def _from_columns(columns: list[list[int]]) -> TokenizedRow:
    return TokenizedRow(columns[0], columns[1] if len(columns) > 1 else None, False)
