"""Everything that a folder or a name on the hub holds of a reward model with its posterior."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.fingerprint import BASE
from bayesrm_fast.model.reward_model import RewardModel
from bayesrm_fast.model.virtual import VirtualAdapter
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.files import FILES, load_posterior
from bayesrm_fast.saved.damage import check_files
from bayesrm_fast.saved.folders import MODEL_CONFIG, has_adapter_files, hub_options, local_folder_or_name
from bayesrm_fast.saved.joining import record_joining
from bayesrm_fast.saved.models import load_adapter, load_model
from bayesrm_fast.saved.virtual import load_virtual
from bayesrm_fast.saved.virtual_record import VirtualRecord, read_virtual_record
from bayesrm_fast.text.joining import A_FUNCTION, Joining

_HINT = (
    " (weights held in float16 or quantised differ from the same in float32 or bfloat16; a model that was merged or "
    "changed in memory has to be saved first, and fitted as it is loaded from there)"
)


@dataclass(frozen=True)
class SavedFit:
    """What a fit has left in a folder beside the adapter.

    Attributes:
        folder: where; None for a model on the hub.
        virtual: the record of its virtual adapters, None where there are none.
        posterior: on the CPU, None where there is none.
    """

    folder: Path | None
    virtual: VirtualRecord | None = None
    posterior: Posterior | None = None

    def joined_as(self, joining: Joining | None, appends_eos: bool | None, step_separator: str | None) -> Self:
        """Without a posterior whose rows were joined otherwise than is asked for; None asks for nothing.

        Raises:
            InputError: nothing is asked for where rows were joined by a function.
        """
        if self.posterior is None:
            return self
        record = self.posterior.record
        if joining is None and record.joining == A_FUNCTION:
            raise InputError(
                f"the posterior in {self.folder} was fitted on rows joined by a function: give it as joining"
            )
        asked = A_FUNCTION if callable(joining) else joining
        is_same = (
            asked in (None, record.joining)
            and appends_eos in (None, record.appends_eos)
            and step_separator in (None, record.step_separator)
        )
        return self if is_same else replace(self, posterior=None)

    def restored(self, model: RewardModel) -> tuple[VirtualAdapter | None, Posterior | None]:
        """Virtual adapters and posterior on the model that they were made for.

        Raises:
            InputError: a posterior or virtual adapters of another model, or files that are damaged.
        """
        if self.folder is None:
            return None, None
        virtual = None if self.virtual is None else load_virtual(self.folder, self.virtual, model.model)
        if self.posterior is None:
            return virtual, None
        record = self.posterior.record
        model.check_sites(self.posterior.sites, virtual, record.include_head, f"the posterior in {self.folder}")
        differing = record.differing(model.fingerprint(virtual))
        if differing:
            raise InputError(
                f"the posterior in {self.folder} was fitted on another model than the one that is loaded; "
                f"what differs: {', '.join(differing)}{_HINT if BASE in differing else ''}"
            )
        return virtual, self.posterior.to(model.collator.device)


@dataclass(frozen=True)
class SavedRewardModel:
    """A loaded model, and what a fit has left beside it."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    fit: SavedFit


def read_fit(folder: Path, output_weights: Sequence[float] | None) -> SavedFit:
    """What a fit has left in a folder.

    Args:
        folder: of an adapter, or of what `save_pretrained` wrote.
        output_weights: None for those of the posterior.

    Raises:
        InputError: damaged files, or a posterior of other output weights.
    """
    check_files(folder)
    virtual = read_virtual_record(folder)
    if not FILES.are_in(folder):
        return SavedFit(folder, virtual)
    posterior = load_posterior(folder)
    saved = posterior.record.output_weights
    if output_weights is None:
        return SavedFit(folder, virtual, posterior)
    if torch.tensor(output_weights, dtype=torch.float32, device="cpu").tolist() != saved:
        raise InputError(f"the posterior in {folder} was fitted with output_weights={saved}")
    return SavedFit(folder, virtual, posterior)


def load_reward_model(
    path: str | os.PathLike[str],
    *,
    makes_virtual: bool,
    output_weights: Sequence[float] | None,
    device: str | torch.device | None,
    **model_options: Any,
) -> SavedRewardModel:
    """Load a reward model, and read the fit that is saved beside it.

    Args:
        path: folder or hub name of a peft LoRA adapter, whose base model is loaded too; of what `save_pretrained`
            wrote; or, with `makes_virtual`, of any sequence classifier.
        makes_virtual: whether virtual adapters will be made anew: saved ones, and a posterior, are then left.
        output_weights: None for those of the posterior.
        device: where the model goes. Default: a GPU where there is one. Ignored with `device_map`.
        model_options: for the `from_pretrained` of transformers' auto class. `revision` is that of what `path` names
            on the hub; for a folder, of the base model that its adapter names.

    Raises:
        InputError: a model or adapter that cannot be loaded, or files that are damaged.
    """
    for name in ("tp_plan", "tp_size", "distributed_config"):
        if model_options.get(name) is not None:
            raise InputError(
                f"cannot serve {name}: a rank would see a part of each layer alone; give device_map='auto' for the "
                "GPUs of one process"
            )
    source = local_folder_or_name(path, takes_models=makes_virtual, **hub_options(model_options))
    folder = source if isinstance(source, Path) else None
    if folder is not None and not Path(path).is_dir():
        model_options.pop("revision", None)  # it was the adapter's
    model: Any
    fit = SavedFit(folder) if folder is None or makes_virtual else read_fit(folder, output_weights)
    if folder is not None and has_adapter_files(folder, or_fail=not makes_virtual and fit.virtual is None):
        of_tokens = fit.posterior is not None and fit.posterior.record.step_separator is not None
        model, tokenizer = load_adapter(folder, of_tokens, **model_options)
    else:
        source = _model_name(source)
        model, tokenizer = load_model(source, folder, **model_options)
    record_joining(tokenizer, Path(source))
    if "device_map" not in model_options:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return SavedRewardModel(model, tokenizer, fit)


def _model_name(source: Path | str) -> Path | str:
    """The model itself, or the one that the virtual adapters in a folder were made for."""
    if isinstance(source, Path) and not (source / MODEL_CONFIG).is_file():
        virtual = read_virtual_record(source)
        if virtual is not None:
            return virtual.model
    return source
