"""What the cost of scoring is counted in: plain forwards, and passes whose consumer makes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.model.passes import Passes, unit_cotangent
from bayesrm_fast.sites import Site
from bayesrm_fast.text.batches import plan_batches
from bayesrm_fast.text.examples import Example


class Nothing:
    """A consumer that leaves the price of the pass alone.

    Args:
        gradients_alone: which price: that of a pass for gradients, or for means over every token.
    """

    def __init__(self, gradients_alone: bool = True) -> None:
        self.gradients_alone = gradients_alone

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Do nothing."""


def empty_pass(passes: Passes, examples: Sequence[Example], *, gradients_alone: bool = True) -> None:
    """Forward and backward pass over every example, and nothing made of it."""
    for _ in passes.over(examples, unit_cotangent, lambda: Nothing(gradients_alone)):
        pass


def our_batches(passes: Passes, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
    """The inputs of the batches that a pass would have."""
    plan = plan_batches(examples, passes.budget.batch_tokens)
    return [passes.collate([examples[i] for i in batch]).model_inputs() for batch in plan]


def plain_forward(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:  # shape: (rows of all batches,)
    """The rewards by the model's own call without autograd, in the order of the batches."""
    with torch.no_grad():
        return torch.cat([model(**inputs).logits[:, 0] for inputs in batches])
