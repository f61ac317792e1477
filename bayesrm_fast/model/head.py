"""The layer that gives a model's scores."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.layers import name_of_copied, plain_name, unread_copies
from bayesrm_fast.sites import Site


@dataclass(frozen=True)
class HeadTap:
    """The linear layer that gives the scores: one site, its small side is the number of outputs."""

    name: str
    module: nn.Linear

    @property
    def sites(self) -> tuple[Site, ...]:
        """The site of the head's weight."""
        return (Site(f"{self.name}.weight", self.module.out_features, self.module.in_features, "q"),)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weight of `sites`."""
        return (self.module.weight,)


HEADS = frozenset(("score", "classifier", "classification_head", "logits_proj"))
"""What transformers' sequence classifiers call their heads."""


def find_head(model: nn.Module) -> HeadTap | None:
    """The linear layer that gives the model's scores, or None where there is none that can be recognised.

    Of several linear layers in a head it is the last one with the outputs that the configuration says, or, where the
    head has been replaced since, the last one.
    """
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    for name, module in model.named_modules():
        if plain_name(name) in HEADS:
            unread = set(unread_copies(module))
            linears = [
                (inner, layer)
                for inner, layer in module.named_modules(prefix=plain_name(name))
                if isinstance(layer, nn.Linear) and layer not in unread
            ]
            if linears:
                as_said = [one for one in linears if one[1].out_features == labels]
                inner, layer = (as_said or linears)[-1]
                return HeadTap(name_of_copied(inner), layer)
    return None


def find_head_tap(model: nn.Module, tapped: Iterable[nn.Module]) -> HeadTap:
    """The head as a site of the posterior.

    Raises:
        InputError: the model's head is no linear layer that can be recognised, or it is itself adapted by LoRA.
    """
    head = find_head(model)
    if head is None or any(head.module in module.modules() for module in tapped):
        raise InputError("include_head needs a score head that is a plain linear layer without an adapter")
    return head
