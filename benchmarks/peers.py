"""Rewards with uncertainty as people get them today, each a function over rows of token ids `[N, T]`.

What has to be worked around to get a peer to run at all:

- laplace-torch 0.3: takes tensors alone, so the model is wrapped; for `reward_modeling` it is fitted on `[B, 2, T]` and
  called on `[B, T]`.
- bayesian-lora 0.0.6: `variance` asserts on a model with one output, because it squeezes that dimension away. The only
  output is given twice, once its Jacobian is there, and one of the two variances taken.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class TensorRewards(torch.nn.Module):
    """laplace-torch's protocol: pairs `[B, 2, T]` give `[B, 2]` and rows `[B, T]` give `[B, 1]`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Rewards."""
        logits = self.model(input_ids=ids.reshape(-1, ids.shape[-1])).logits
        return logits.reshape(ids.shape[0], 2) if ids.dim() == 3 else logits


def train_lora_alone(model: Any) -> None:
    """Gradients for the LoRA weights and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def laplace_torch(model: Any, pairs: Tensor, prior_precision: float) -> Any:  # shape of pairs: (M, 2, T)
    """laplace-torch's `KronLaplace` of the LoRA weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import laplace
    train_lora_alone(model)
    data = torch.utils.data.TensorDataset(pairs, torch.zeros(len(pairs), dtype=torch.long))
    posterior = laplace.Laplace(
        TensorRewards(model),
        "reward_modeling",
        subset_of_weights="all",
        hessian_structure="kron",
        prior_precision=prior_precision,
    )
    posterior.fit(torch.utils.data.DataLoader(data, batch_size=len(pairs)))
    return posterior


def laplace_torch_scores(posterior: Any, ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Means and variances, `batch` rows at a time."""
    found = [posterior(part, pred_type="glm") for part in ids.split(batch)]
    means, variances = zip(*found, strict=True)
    return torch.cat(means).reshape(-1).detach(), torch.cat(variances).reshape(-1).detach()


def bayesian_lora_scores(model: Any, factors: dict[str, Any], ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Means and variances by bayesian-lora, `batch` rows at a time."""
    from bayesian_lora import variance
    from bayesian_lora.main import jacobian_mean

    class Inputs(dict[str, Tensor]):
        """Asked for its attributes and for its items."""

        input_ids = property(lambda self: self["input_ids"])

    r = next(iter(factors.values()))[0].shape[0]
    k = max(next(iter(factors.values()))[1].shape[1], 1)
    means, variances = [], []
    for part in ids.split(batch):
        inputs = Inputs(input_ids=part)
        jacobian, mean = jacobian_mean(model, inputs, output_callback=lambda outputs: outputs.logits)
        twice = {name: j.detach().expand(-1, 2, *j.shape[2:]) for name, j in jacobian.items()}
        found = variance(inputs, twice, factors, torch.tensor(1.0), 2, r, k, "cpu")
        means.append(mean.reshape(-1).detach())
        variances.append(found[:, 0, 0])
    return torch.cat(means), torch.cat(variances)


def random_factors(model: Any, k: int) -> dict[str, Any]:
    """Factors of the shapes that bayesian-lora fits: what it takes to score does not depend on their values."""
    factors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ("lora_A" in name or "lora_B" in name):
            d_out, d_in = module.weight.shape
            small, large = min(d_out, d_in), max(d_out, d_in)
            factors[name] = (torch.linalg.cholesky(torch.eye(small) * 2), torch.randn(large, k) / large**0.5)
    return factors


def loop_scores(model: Any, ids: Tensor, weigh: Callable[[dict[str, Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """What people write by hand: one backward pass for each row."""
    train_lora_alone(model)
    means, variances = [], []
    for row in ids:
        model.zero_grad()
        reward = model(input_ids=row[None]).logits[0, 0]
        reward.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        means.append(reward.detach())
        variances.append(weigh(gradients))
    model.zero_grad()
    return torch.stack(means), torch.stack(variances)


def ensemble_scores(model: Any, adapters: list[str], ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over adapters on one base, which runs once for each."""
    rewards = []
    active = model.active_adapter
    with torch.no_grad():
        for adapter in adapters:
            model.set_adapter(adapter)
            rewards.append(torch.cat([model(input_ids=part).logits[:, 0] for part in ids.split(batch)]))
    model.set_adapter(active)
    members = torch.stack(rewards)
    return members.mean(0), members.var(0)
