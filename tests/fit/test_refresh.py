"""A posterior of a model that was trained further is refused, and fitted again as it was."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel, InputError

TEXTS = (["a", "about"], ["able", "art"])


def trained_further(rm):
    with torch.no_grad():
        for name, weight in rm.model.named_parameters():
            if "lora_" in name:
                weight.mul_(1.1)


def made(dtype=torch.float32):
    return BayesianRewardModel(tiny_adapter("llama", dtype=dtype), tiny_tokenizer("llama"))


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4},
        {"structure": "kfac", "rank": None, "prior_precision": 0.3},
        {"structure": "ekfac", "rank": 5, "include_head": True, "prior_precision": "margins"},
        {"basis_dtype": torch.int8, "prior_precision": "evidence"},
    ],
    ids=["ggn", "kfac", "ekfac", "int8"],
)
def test_a_refresh_is_the_fit_of_the_model_as_it_is(options):
    rm = made().fit(tiny_pairs(), **options)
    trained_further(rm)
    with pytest.raises(InputError, match="has changed since its posterior was fitted"):
        rm.score(*TEXTS)
    found = rm.refresh(tiny_pairs(8)).score(*TEXTS)
    other = made()
    trained_further(other)
    expected = other.fit(tiny_pairs(8), **options)
    torch.testing.assert_close(found.variance, expected.score(*TEXTS).variance, rtol=1e-6, atol=0)
    assert rm.posterior.record.pairs == 8
    for name in ("structure", "rank", "include_head"):
        assert getattr(rm.posterior.record, name) == getattr(expected.posterior.record, name)
    assert rm.posterior.prior.method == expected.posterior.prior.method


def test_a_ggn_of_a_float64_model_stays_in_float64():
    found = made(torch.float64).fit(tiny_pairs(), rank=4).refresh(tiny_pairs(8))
    expected = made(torch.float64).fit(tiny_pairs(8), rank=4)
    assert all(torch.equal(found.posterior.tensors()[n], tensor) for n, tensor in expected.posterior.tensors().items())


def test_a_lambda_that_was_set_stays():
    rm = made().fit(tiny_pairs(), rank=4)
    rm.posterior.prior_precision = 7.0
    trained_further(rm)
    assert rm.refresh(tiny_pairs()).posterior.prior_precision == 7.0


def test_without_a_posterior_there_is_nothing_to_refresh():
    with pytest.raises(InputError, match="no posterior to refresh"):
        made().refresh(tiny_pairs())
