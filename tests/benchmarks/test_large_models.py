"""Bytes of large models' posteriors, by a function that agrees with the bytes of small ones."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel
from benchmarks.large_models import SHAPES, Shape, fit_bytes, gpu_hours, lora_sites, main, posterior_bytes

TINY = Shape(16, 24, 2, 2, 1, 8)
EVERY = ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.mark.parametrize(
    ("structure", "rank", "dtype"),
    [
        ("kfac", 4, torch.float32),
        ("kfac", None, torch.float32),
        ("ekfac", 4, torch.float32),
        ("ggn", 5, torch.float32),
        ("ggn", 5, torch.bfloat16),
        ("ggn", 5, torch.int8),
    ],
)
@pytest.mark.parametrize("projections", [EVERY, ["q", "v"], ["k", "up"]])
def test_bytes_are_those_of_a_posterior(structure, rank, dtype, projections):
    model = tiny_adapter("llama", target_modules=[f"{name}_proj" for name in projections])
    options = dict(basis_dtype=dtype) if structure == "ggn" else {}
    rm = BayesianRewardModel(model, tiny_tokenizer("llama"))
    posterior = rm.fit(tiny_pairs(9), structure=structure, rank=rank, **options).posterior
    distinct = {id(tensor): tensor for tensor in posterior.tensors().values()}
    sites = lora_sites(TINY, 3, projections)
    assert sorted((one.site.r, one.site.d) for one in sites) == sorted((site.r, site.d) for site in posterior.sites)
    found = sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
    assert posterior_bytes(sites, structure, rank, dtype) == found


def test_bytes_of_an_8b_model_and_of_its_fit():
    sites = lora_sites(SHAPES["8B"], 16, EVERY)
    weights = sum(one.site.r * one.site.d for one in sites)
    assert weights == 41_943_040
    for dtype, size in ((torch.float32, 21.5), (torch.bfloat16, 10.7), (torch.int8, 5.4)):
        assert posterior_bytes(sites, "ggn", 128, dtype) / 1e9 == pytest.approx(size, abs=0.05)
    assert fit_bytes(sites, 128) == 4 * weights * (2 * 160 + 128)
    assert fit_bytes(sites, 128, second_pass=True) == 4 * weights * 3 * 160
    assert len(lora_sites(SHAPES["8B"], 16, EVERY, layers=10)) == 10 * 14


def test_the_shapes_have_the_weights_that_their_names_say():
    # Without embeddings, which no token is multiplied with.
    assert [round(shape.weights / 1e9, 1) for shape in SHAPES.values()] == [1.0, 7.0, 68.5]
    assert gpu_hours(SHAPES["8B"], 2.0) == 2 * gpu_hours(SHAPES["8B"], 1.0)


def test_the_tables_have_every_model(capsys):
    main()
    out = capsys.readouterr().out
    assert all(name in out for name in (*SHAPES, "21.47", "ggn, relative, hidden 1024"))
