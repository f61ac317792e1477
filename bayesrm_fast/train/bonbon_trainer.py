"""Training a policy on the best and worst of n with trl. Needs the extra `train`."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError

try:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
except ImportError as error:
    raise InputError(f"training needs the extra: pip install 'bayesrm_fast[train]' ({error})") from error

ALPHA = 0.005
"""Weight of the SFT loss in arXiv 2406.00832."""

OF_OTHER_LOSSES = (
    "beta",
    "discopop_tau",
    "f_alpha_divergence_coef",
    "f_divergence_type",
    "label_smoothing",
    "ld_alpha",
    "loss_type",
    "loss_weights",
    "sync_ref_model",
    "use_weighting",
)
"""Fields of `DPOConfig` that BoNBoN's loss does not have."""

NOT_FOR_THE_MODEL = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
"""What trl's collator puts into a batch beside the model's inputs."""


class BonbonTrainer(DPOTrainer):
    """trl's DPO trainer with the loss of BoNBoN (Gui et al., arXiv 2406.00832, section 5).

    `α · SFT + (1 − α) · IPO`, the mean over pairs, of the sums of log-probabilities over a response's tokens:
    `SFT = −log π(chosen)` and `IPO = (log-ratio of chosen − log-ratio of rejected − 1/(2β))²`, log-ratios to the
    reference. β is that of the rows' n. trl's own losses of these names are other ones: they divide by lengths.

    Args:
        model, args: as for `DPOTrainer`.
        train_dataset: rows of `bonbon_rows`, or of `bayesrm bonbon`, all of one n.
        alpha: weight of the SFT loss, from 0 to 1.
        options: of `DPOTrainer`, by name.

    Attributes:
        beta: of the rows.
        alpha: see above.

    Raises:
        InputError: rows without one `beta`, an alpha that is no such weight, or a `DPOConfig` for another loss.
    """

    # What trl writes into a model card.
    _tag_names = ["trl", "bonbon"]  # noqa: RUF012
    _name = "BoNBoN"
    _paper = {  # noqa: RUF012
        "title": "BoNBoN Alignment for Large Language Models and the Sweetness of Best-of-n Sampling",
        "id": "2406.00832",
    }

    def __init__(
        self,
        model: Any,
        *,
        train_dataset: Dataset,
        args: DPOConfig | None = None,
        alpha: float = ALPHA,
        **options: Any,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha must be from 0 to 1, not {alpha!r}")
        for field in dataclasses.fields(DPOConfig) if args is not None else ():
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if field.name in OF_OTHER_LOSSES and getattr(args, field.name) != default:
                raise InputError(f"DPOConfig's {field.name} is of another loss than BoNBoN's: leave it at its default")
        beta = _beta_of(train_dataset)
        super().__init__(model, args=args, train_dataset=train_dataset, **options)
        self.alpha, self.beta = alpha, beta

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; see `Trainer`."""
        own: dict[str, Any] = {name: given for name, given in inputs.items() if name not in NOT_FOR_THE_MODEL}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        if self.aux_loss_enabled:
            own["output_router_logits"] = True
        outputs = model(**own, labels=labels, use_cache=False, fused_lm_head=True)
        # Zero outside of the response; a prefix of virtual tokens, as prompt tuning has, goes before.
        chosen, rejected = outputs.log_probs[:, 1 - labels.shape[1] :].sum(1).chunk(2)
        if self.precompute_ref_logps:
            reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        ratios = chosen - reference[0], rejected - reference[1]
        sft = -chosen
        ipo = (ratios[0] - ratios[1] - 1 / (2 * self.beta)) ** 2
        loss = (self.alpha * sft + (1 - self.alpha) * ipo).mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        told = {
            "loss/sft": sft,
            "loss/ipo": ipo,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "log_ratios/chosen": ratios[0],
            "log_ratios/rejected": ratios[1],
        }
        for name, value in told.items():
            mean = self.accelerator.gather_for_metrics(value.detach()).mean().item()
            self._metrics["train" if model.training else "eval"][name].append(mean)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**own)


def _beta_of(rows: Any) -> float:
    if not isinstance(rows, Dataset) or "beta" not in rows.column_names:
        raise InputError("train_dataset must be a datasets.Dataset with the column beta, as `bayesrm bonbon` writes it")
    found = rows.unique("beta")
    if len(found) != 1:
        raise InputError(f"train_dataset has rows of {len(found)} different beta: train on the rows of one n at a time")
    beta = found[0]
    if not isinstance(beta, float) or not 0 < beta < float("inf"):
        raise InputError(f"train_dataset's beta must be a positive number, not {beta!r}")
    return beta
