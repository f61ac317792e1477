"""Our models in RewardBench's own runner: a pipeline of its signature, and how it is registered."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.evaluate.report import MODEL_TYPE
from bayesrm_fast.fitted_model import FittedRewardModel
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.text.texts import Text, checked_text


class BayesianPipeline:
    """What RewardBench calls for the rewards of texts that its own chat templates have rendered.

    Rewards are the model's own means. Texts are tokenized by the reward model's tokenizer and cut at its `max_length`,
    on the device where the model is; what the runner says of these is ignored. A beginning-of-sequence token that a
    template has written is not written again.

    Args:
        task: ignored.
        model: a `BayesianRewardModel`, fitted or not.
        tokenizer: the runner's, which it renders conversations with and sets padding on; not used here.

    Attributes:
        model: a stand-in for the runner, which asks a model for its configuration's `pad_token_id` alone.
    """

    def __init__(self, task: str, model: FittedRewardModel, tokenizer: Any) -> None:
        self.task = task
        self.reward_model = model
        self.tokenizer = tokenizer
        self.model = SimpleNamespace(config=SimpleNamespace(pad_token_id=model.collator.pad_token_id))

    def __call__(
        self, samples: Sequence[Text], return_inputs: bool = False, **kwargs: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Rewards `[N, 1]` of N rendered texts, or conversations; with `return_inputs`, and the tokens of the batch.

        Raises:
            InputError: samples that cannot be read, or a reward that is NaN or infinite.
        """
        model, where = self.reward_model, [f"sample {i}" for i in range(1, len(samples) + 1)]
        texts = [checked_text(sample, name) for sample, name in zip(samples, where, strict=True)]
        rows = model.encoder.encode(*_prompts_and_responses(texts), where)
        logits = model.rewards_tokenized(rows)[:, None]
        return (logits, model.collator(rows).model_inputs()) if return_inputs else logits


def _prompts_and_responses(texts: Sequence[Text]) -> tuple[list[Text | None], list[Text]]:
    """A rendered text is whole by itself; a conversation ends with the response."""
    prompts: list[Text | None] = [None if isinstance(text, str) else text[:-1] for text in texts]
    return prompts, [text if isinstance(text, str) else text[-1:] for text in texts]


def load_for_rewardbench(
    path: str, *, torch_dtype: torch.dtype | None = None, load_in_8bit: bool = False, **options: Any
) -> BayesianRewardModel:
    """`BayesianRewardModel.from_pretrained` under the arguments of RewardBench's runner.

    Args:
        path: as for `from_pretrained`.
        torch_dtype, load_in_8bit: ignored: a posterior is of the model in its own dtype.
        options: passed on where they are not None.
    """
    return BayesianRewardModel.from_pretrained(path, **{name: one for name, one in options.items() if one is not None})


REWARD_MODEL_CONFIG = {
    "model_builder": load_for_rewardbench,
    "pipeline_builder": BayesianPipeline,
    "quantized": False,
    "custom_dialogue": False,
    "model_type": MODEL_TYPE,
}
"""What `rewardbench.REWARD_MODEL_CONFIG[<model>]` has to be for its runner to use one of our models."""
