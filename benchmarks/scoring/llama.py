"""Llama shapes with fitted posteriors, and every formulation of scoring their rows: ours, the peers', and by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.model.passes import Passes
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.variances import score_examples
from benchmarks import peers
from benchmarks.baselines import empty_pass, our_batches, plain_forward
from benchmarks.shapes import LlamaShape, fitted, passes_of, random_pairs, random_rows

LENGTH = 128
BATCH_TOKENS = 4096
PLAIN = "plain forward, our batches"
OURS = "ours, mean and variance"

SHAPES = {  # hidden size: layers, rows
    256: (4, 64),
    512: (4, 32),
    1024: (2, 16),
}
QUICK_SHAPES = {64: (1, 16)}
PATIENCE = 40.0
"""Seconds of one formulation; a slower one gets fewer than the five rounds, and its row says how many."""


def shapes(quick: bool) -> list[tuple[int, int, int]]:
    """Hidden size, layers and rows of each."""
    return [(hidden, layers, rows) for hidden, (layers, rows) in (QUICK_SHAPES if quick else SHAPES).items()]


class ScoredLlama:
    """A model of known shape with a fitted posterior, and every formulation of scoring its rows."""

    def __init__(self, hidden: int, layers: int, rows: int, batch_tokens: int = BATCH_TOKENS) -> None:
        self.model = LlamaShape(hidden, layers).model()
        self.pairs = random_pairs(4, LENGTH)
        self.rows = random_rows([LENGTH] * rows)
        self.ids = torch.tensor([row.input_ids for row in self.rows])
        self.passes: Passes = passes_of(self.model, batch_tokens)
        self.posterior = fitted(self.passes, self.pairs)

    def formulations(self) -> dict[str, Callable[[], Any]]:
        """Those that need no peer."""
        batches = our_batches(self.passes, self.rows)

        def plain_in_input_order() -> None:
            parts = self.ids.split(32)
            plain_forward(self.model, ({"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in parts))

        def autograd() -> None:
            peers.train_lora_alone(self.model)
            for inputs in batches:
                self.model(**inputs).logits.sum().backward()
            self.model.zero_grad()

        return {
            "plain forward, batches of 32": plain_in_input_order,
            PLAIN: partial(plain_forward, self.model, batches),
            "forward and backward by autograd": autograd,
            "ours, empty consumer": partial(empty_pass, self.passes, self.rows),
            "ours, means": lambda: rewards_of(self.passes, self.rows),
            OURS: lambda: score_examples(self.passes, self.rows, self.posterior),
            "a loop over rows": lambda: peers.loop_scores(self.model, self.ids, self._weigh),
            **{f"an ensemble of {n}": self._ensemble(n) for n in (3, 5)},
        }

    def _weigh(self, gradients: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(())
        for tap in self.passes.tapped.taps:
            for site, name in zip(tap.sites, ("lora_A", "lora_B"), strict=True):
                gradient = gradients[f"base_model.model.{tap.name}.{name}.default.weight"]
                gradient = gradient if name == "lora_A" else gradient.T
                block, (weight, residual) = self.posterior.blocks[site.name], self.posterior.weights(site.name)
                rotated = block.basis_p.T @ gradient
                inside = rotated @ block.basis_q
                outside = rotated - inside @ block.basis_q.T
                total = total + (weight * inside.square()).sum() + residual @ outside.square().sum(1)
        return total

    def _ensemble(self, members: int) -> Callable[[], Any]:
        # On a model of its own: peft's further adapters would be found by the taps of this one.
        model = LlamaShape(self.model.config.hidden_size, self.model.config.num_hidden_layers).model()
        names = ["default", *(f"member{i}" for i in range(1, members))]
        for name in names[1:]:
            model.add_adapter(name, model.peft_config["default"])
        model.eval()
        return lambda: peers.ensemble_scores(model, names, self.ids, 32)

    def laplace_torch(self) -> Any:
        """The peer's posterior of the same pairs."""
        pairs = torch.tensor([[row.input_ids for row in pair.rows] for pair in self.pairs])
        return peers.laplace_torch(self.model, pairs, self.posterior.prior_precision)

    def peer(self, name: str, batch: int, posterior: Any = None) -> Callable[[], tuple[Tensor, Tensor]]:
        """A peer over our rows."""
        if name == "laplace-torch":
            fitted_peer = self.laplace_torch() if posterior is None else posterior
            return lambda: peers.laplace_torch_scores(fitted_peer, self.ids, batch)
        peers.train_lora_alone(self.model)
        factors = peers.random_factors(self.model, 10)
        return lambda: peers.bayesian_lora_scores(self.model, factors, self.ids, batch)
