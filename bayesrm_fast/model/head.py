"""The layer that gives a model's scores."""

from collections.abc import Iterable
from dataclasses import dataclass

from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.layers import plain_name
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

    @property
    def hashed(self) -> dict[str, Tensor]:
        """What `adapter_hash` reads, by name."""
        # The base model's, mostly: rounded, so that it has one hash in float32 and in bfloat16.
        return {self.sites[0].name: self.module.weight.bfloat16()}


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
            if isinstance(module, ModulesToSaveWrapper):
                active = [adapter for adapter in module.active_adapters if adapter in module.modules_to_save]
                module = module.modules_to_save[active[0]] if active else module.original_module
            linears = [(inner, layer) for inner, layer in module.named_modules() if isinstance(layer, nn.Linear)]
            if linears:
                as_said = [one for one in linears if one[1].out_features == labels]
                inner, layer = (as_said or linears)[-1]
                return HeadTap(plain_name(f"{name}.{inner}" if inner else name), layer)
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
