"""The same variance as laplace-torch's KronLaplace, once its factor of two is put in."""

import warnings

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    laplace = pytest.importorskip("laplace", reason="laplace-torch is not installed")

PRECISION = 0.7


class Rewards(torch.nn.Module):
    """laplace-torch's protocol: pairs `[B, 2, T]` give `[B, 2]` and rows `[B, T]` give `[B, 1]`."""

    def __init__(self, model, pad):
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, ids):
        flat = ids.reshape(-1, ids.shape[-1])
        logits = self.model(input_ids=flat, attention_mask=(flat != self.pad).long()).logits
        return logits.reshape(ids.shape[0], 2) if ids.dim() == 3 else logits


@pytest.mark.filterwarnings("ignore")
def test_kron_laplace_agrees():
    model = tiny_adapter("llama", dtype=torch.float64, target_modules=["q_proj", "v_proj"])
    rm = BayesianRewardModel(model, tiny_tokenizer("llama"))
    # One length for every row, because laplace-torch averages the inputs of padding tokens too.
    pairs = [{"prompt": words(3, i), "chosen": words(4, 50 + i), "rejected": words(4, 90 + i)} for i in range(5)]
    rm.fit(pairs, structure="kfac", rank=None, prior_precision=PRECISION)

    prompts = [pair["prompt"] for pair in pairs]
    batch = rm.collator(rm.tokenize_pairs(pairs))
    assert batch.attention_mask.all()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    data = torch.utils.data.TensorDataset(
        batch.input_ids.reshape(len(pairs), 2, -1), torch.zeros(len(pairs), dtype=torch.long)
    )
    peer = laplace.Laplace(
        Rewards(model, 0),
        "reward_modeling",
        subset_of_weights="all",
        hessian_structure="kron",
        prior_precision=PRECISION,
    )
    peer.fit(torch.utils.data.DataLoader(data, batch_size=5))
    # It averages inputs over (pairs × T) where 2 × pairs × T tokens flow: its curvature is exactly twice KFAC-expand's.
    peer.H = peer.H * 0.5 if not hasattr(peer.H, "eigenvalues") else _halved(peer.H)
    prompts, responses = [words(3, 7)] * 4, [words(4, 200 + i) for i in range(4)]
    rows = rm.collator(rm.tokenize(prompts, responses))
    mean, variance = peer(rows.input_ids, pred_type="glm")
    scores = rm.score(prompts, responses)
    torch.testing.assert_close(scores.mean, mean.reshape(-1).detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scores.variance, variance.reshape(-1).detach(), rtol=1e-6, atol=0)


def _halved(decomposed):
    for values in decomposed.eigenvalues:
        values[0].mul_(0.5)
    return decomposed


def test_tiny_pairs_are_not_all_of_one_length():
    """What the agreement above leaves out, the dense reference covers: ragged rows."""
    assert len({len(pair["chosen"].split()) for pair in tiny_pairs()}) > 1
