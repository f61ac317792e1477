"""Rewards with uncertainty as people get them today, each a function over rows of token ids `[N, T]`.

What has to be worked around to get a peer to run at all:

- laplace-torch 0.3: takes tensors alone, so the model is wrapped, and an encoder's token types ride on high bits of the
  ids; for `reward_modeling` it is fitted on `[B, 2, T]` and called on `[B, T]`.
- bayesian-lora 0.0.6: `variance` asserts on a model with one output, because it squeezes that dimension away. The only
  output is given twice, once its Jacobian is there, and one of the two variances taken.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow

TYPE = 2**24
"""Added to the ids of tokens of the second type."""


class TensorRewards(torch.nn.Module):
    """laplace-torch's protocol: pairs `[B, 2, T]` give `[B, 2]` and rows `[B, T]` give `[B, 1]`.

    Args:
        model: called on ids, and on a mask and token types where `pad_token_id` is given.
        pad_token_id: of the padding; None where all rows are whole and there are no types.
    """

    def __init__(self, model: Any, pad_token_id: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.pad_token_id = pad_token_id

    def forward(self, ids: Tensor) -> Tensor:
        """Rewards."""
        flat = ids.reshape(-1, ids.shape[-1])
        more = {}
        if self.pad_token_id is not None:
            more["attention_mask"] = (flat != self.pad_token_id).long()
            if bool((flat >= TYPE).any()):
                more["token_type_ids"] = flat // TYPE
        logits = self.model(input_ids=flat % TYPE, **more).logits
        return logits.reshape(ids.shape[0], 2) if ids.dim() == 3 else logits


class Inputs(dict[str, Tensor]):
    """What bayesian-lora calls a model with: it asks for attributes and for items."""

    input_ids = property(lambda self: self["input_ids"])


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


def fidelity_peers(
    rm: Any, pairs: list[TokenizedPair], rows: list[TokenizedRow], precisions: Sequence[float]
) -> dict[str, Callable[[], tuple[Tensor, float, int]]]:
    """The peers' own fits on real pairs; each gives variances `[L, N]`, seconds to fit and bytes stored.

    Rows are scored one by one, so that no peer meets padding there.
    """
    train_lora_alone(rm.model)
    return {
        "laplace-torch, Kron": lambda: _laplace_fidelity(rm, pairs, rows, precisions, "kron"),
        "laplace-torch, Diag": lambda: _laplace_fidelity(rm, pairs, rows, precisions, "diag"),
        "bayesian-lora, 10": lambda: _bayesian_lora_fidelity(rm, pairs, rows, precisions),
    }


def _with_types(row: TokenizedRow) -> Tensor:  # shape: (T,)
    ids = torch.tensor(row.input_ids)
    return ids if row.token_type_ids is None else ids + TYPE * torch.tensor(row.token_type_ids)


def _laplace_fidelity(
    rm: Any, pairs: list[TokenizedPair], rows: list[TokenizedRow], precisions: Sequence[float], structure: str
) -> tuple[Tensor, float, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import laplace
    pad = rm.model.config.get_text_config().pad_token_id

    def padded(batch: list[TokenizedPair]) -> tuple[Tensor, Tensor]:
        flat = [_with_types(row) for pair in batch for row in pair.rows]
        ids = torch.nn.utils.rnn.pad_sequence(flat, batch_first=True, padding_value=pad)
        return ids.view(len(batch), 2, -1), torch.zeros(len(batch), dtype=torch.long)

    train_lora_alone(rm.model)
    posterior = laplace.Laplace(
        TensorRewards(rm.model, pad), "reward_modeling", subset_of_weights="all", hessian_structure=structure
    )
    start = time.perf_counter()
    posterior.fit(torch.utils.data.DataLoader(pairs, batch_size=8, collate_fn=padded))  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    found = []
    for precision in precisions:
        posterior.prior_precision = precision
        found.append(torch.cat([posterior(_with_types(row)[None], pred_type="glm")[1].reshape(-1) for row in rows]))
    curvature: Any = posterior.H  # type: ignore[attr-defined]
    kept = [curvature] if structure == "diag" else [v for factors in curvature.eigenvectors for v in factors]
    size = sum(v.nbytes for v in kept)
    return torch.stack(found).detach(), seconds, size


def _bayesian_lora_fidelity(
    rm: Any, pairs: list[TokenizedPair], rows: list[TokenizedRow], precisions: Sequence[float]
) -> tuple[Tensor, float, int]:
    from bayesian_lora import calculate_kronecker_factors, cholesky_decompose_small_factors, variance
    from bayesian_lora.main import jacobian_mean

    kept, large = 10, 16
    train_lora_alone(rm.model)
    torch.manual_seed(0)  # it draws the labels

    def inputs_of(row: TokenizedRow) -> Inputs:
        inputs = Inputs(input_ids=torch.tensor([row.input_ids]))
        if row.token_type_ids is not None:
            inputs["token_type_ids"] = torch.tensor([row.token_type_ids])
        return inputs

    def both(model: Any, batch: list[TokenizedPair]) -> Tensor:
        # Each row alone: the last token, which is all that it looks at, is then never padding.
        return torch.cat([model(**inputs_of(row)).logits for row in batch[0].rows]).reshape(1, 2)

    loader: Any = torch.utils.data.DataLoader(pairs, batch_size=1, collate_fn=list)  # type: ignore[arg-type]
    start = time.perf_counter()
    factors = calculate_kronecker_factors(
        rm.model, both, loader, n_kfac=kept, lr_threshold=large, target_module_keywords=["lora"], exclude_bias=True
    )
    rm.model.eval()
    factors = cholesky_decompose_small_factors(factors, large, "cpu", torch.float32)
    seconds = time.perf_counter() - start
    found = torch.zeros(len(precisions), len(rows))
    lora_rank = min(min(a.shape[0], s.shape[0]) for a, s in factors.values())
    for at, row in enumerate(rows):
        inputs = inputs_of(row)
        jacobian, _ = jacobian_mean(rm.model, inputs, output_callback=lambda outputs: outputs.logits)
        # `variance` squeezes the dimension of the row away as well as the output's: both are given twice.
        twice = {name: j.detach().expand(2, 2, *j.shape[2:]) for name, j in jacobian.items()}
        two = Inputs(input_ids=inputs.input_ids.expand(2, -1))
        for i, precision in enumerate(precisions):
            s2 = torch.tensor(1 / precision)
            found[i, at] = variance(two, twice, factors, s2, 2, lora_rank, kept, "cpu")[0, 0, 0]
    return found, seconds, sum(a.nbytes + s.nbytes for a, s in factors.values())
