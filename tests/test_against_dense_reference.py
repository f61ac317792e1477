"""The package's numbers against `dense_reference`."""

import numpy as np
import pytest
import torch
from dense_reference import DensePosterior
from tiny import ARCHITECTURES, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE, RELATIVE

from bayesrm_fast import BayesianRewardModel

PRECISION = 0.7
PROMPT = words(4, 100)
RESPONSES = [words(2, 101), words(7, 102), words(5, 103)]


def token_rows(rm, prompts, responses):
    """Rows for the dense reference, by the tokenizer alone."""
    tokenizer = rm.tokenizer
    if tokenizer.sep_token_id is None:
        encoded = [tokenizer(f"{p}\n\n{r}") for p, r in zip(prompts, responses, strict=True)]
        return [row["input_ids"] for row in encoded]
    encoded = [tokenizer(p, r, return_token_type_ids=True) for p, r in zip(prompts, responses, strict=True)]
    if "token_type_ids" not in tokenizer.model_input_names:
        return [row["input_ids"] for row in encoded]
    return [(row["input_ids"], row["token_type_ids"]) for row in encoded]


def dense_posterior(rm, pairs, **options):
    prompts = [pair["prompt"] for pair in pairs]
    chosen = token_rows(rm, prompts, [pair["chosen"] for pair in pairs])
    rejected = token_rows(rm, prompts, [pair["rejected"] for pair in pairs])
    return DensePosterior(rm.model, list(zip(chosen, rejected, strict=True)), **options)


def assert_all_numbers_agree(rm, dense, pairs, structure, rank, relative):
    precision = rm.posterior.prior_precision

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours, dtype=np.float64), theirs, rtol=relative, atol=relative * scale)

    rows = token_rows(rm, [PROMPT] * 3, RESPONSES)
    covariance = dense.covariance(rows, structure, rank, precision)
    joint = rm.covariance(PROMPT, RESPONSES)
    scores = rm.score([PROMPT] * 3, RESPONSES)
    close(scores.mean, np.array([dense.reward(row).item() for row in rows]))
    close(joint.covariance, covariance)
    np.testing.assert_allclose(scores.variance.numpy(), covariance.diagonal(), rtol=relative)
    np.testing.assert_allclose(
        rm.score_pairs(pairs).variance.numpy(), dense.pair_variance(structure, rank, precision), rtol=relative
    )
    assert rm.posterior.log_evidence() == pytest.approx(dense.log_evidence(structure, rank, precision), rel=relative)


@pytest.mark.parametrize(("padding_side", "dtype"), [("left", torch.float64), ("right", torch.float32)], ids=str)
@pytest.mark.parametrize(
    ("structure", "rank"), [("kfac", None), ("ekfac", None), ("kfac", 5), ("ekfac", 5), ("ggn", 16)]
)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_variance_pairs_covariance_and_evidence(architecture, structure, rank, padding_side, dtype):
    tokenizer = tiny_tokenizer(architecture)
    tokenizer.padding_side = padding_side
    rm = BayesianRewardModel(tiny_adapter(architecture, dtype=dtype), tokenizer)
    pairs = tiny_pairs()
    rm.fit(pairs, structure=structure, rank=rank, prior_precision=PRECISION)
    assert_all_numbers_agree(rm, dense_posterior(rm, pairs), pairs, structure, rank, RELATIVE[dtype])


@pytest.mark.parametrize("structure", ["ekfac", "ggn"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture, structure):
    rm = BayesianRewardModel(tiny_adapter(architecture, dtype=torch.float64), tiny_tokenizer(architecture))
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure=structure, rank=5, prior_precision=PRECISION)
    assert_all_numbers_agree(rm, dense_posterior(rm, pairs), pairs, structure, 5, FLOAT32_INSIDE)


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param({"use_rslora": True, "r": 4}, id="rslora"),
        pytest.param({"rank_pattern": {"q_proj": 2, "up_proj": 5}}, id="rank_pattern"),
        pytest.param({"adapter_name": "policy_v2"}, id="adapter_name"),
        pytest.param({"modules_to_save": ["score"]}, id="modules_to_save"),
        pytest.param({"lora_dropout": 0.3}, id="dropout"),
    ],
)
def test_adapter_options(lora):
    rm = BayesianRewardModel(tiny_adapter("llama", dtype=torch.float64, **lora), tiny_tokenizer("llama"))
    rm.model.train()
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="kfac", rank=None, prior_precision=PRECISION)
    assert_all_numbers_agree(rm, dense_posterior(rm, pairs), pairs, "kfac", None, RELATIVE[torch.float64])


@pytest.mark.parametrize(("architecture", "copied"), [("bert", ["pooler"]), ("roberta", ["classifier.dense"])])
def test_layers_that_are_saved_with_the_adapter_are_frozen(architecture, copied):
    model = tiny_adapter(architecture, dtype=torch.float64, modules_to_save=copied)
    rm = BayesianRewardModel(model, tiny_tokenizer(architecture))
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="ekfac", rank=5, prior_precision=PRECISION)
    assert_all_numbers_agree(rm, dense_posterior(rm, pairs), pairs, "ekfac", 5, RELATIVE[torch.float64])


@pytest.mark.parametrize(("architecture", "head"), [("llama", "score"), ("bert", "classifier")])
@pytest.mark.parametrize("structure", ["kfac", "ekfac", "ggn"])
def test_head_in_the_posterior(architecture, head, structure):
    rm = BayesianRewardModel(tiny_adapter(architecture, dtype=torch.float64), tiny_tokenizer(architecture))
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure=structure, rank=5, prior_precision=PRECISION, include_head=True)
    (site,) = [site for site in rm.posterior.sites if site.name == f"{head}.weight"]
    assert site.r == 1
    dense = dense_posterior(rm, pairs, head=head)
    assert_all_numbers_agree(rm, dense, pairs, structure, 5, RELATIVE[torch.float64])


def test_several_outputs():
    weights = [0.5, -1.0, 2.0]
    model = tiny_adapter("qwen2", dtype=torch.float64, num_labels=3)
    rm = BayesianRewardModel(model, tiny_tokenizer("qwen2"), output_weights=weights)
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="ekfac", rank=None, prior_precision=PRECISION, include_head=True)
    dense = dense_posterior(rm, pairs, head="score", output_weights=weights)
    assert_all_numbers_agree(rm, dense, pairs, "ekfac", None, FLOAT32_INSIDE)


def test_base_layer_of_any_kind_is_only_called():
    class Quantised(torch.nn.Module):
        """Stands for a 4-bit layer: callable and differentiable in its input, with no weight to read."""

        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.register_buffer("codes", linear.weight.detach().clone())

        def forward(self, x):
            return x @ self.codes.to(x.dtype).T

    model = tiny_adapter("llama", dtype=torch.float64)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.base_layer = Quantised(module.base_layer)
    rm = BayesianRewardModel(model, tiny_tokenizer("llama"))
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="kfac", rank=5, prior_precision=PRECISION)
    assert_all_numbers_agree(rm, dense_posterior(rm, pairs), pairs, "kfac", 5, RELATIVE[torch.float64])


def test_gradient_checkpointing_changes_nothing():
    pairs = tiny_pairs(4)
    results = []
    for checkpointing in (False, True):
        model = tiny_adapter("opt", dtype=torch.float64, base=tiny_base("opt", dtype=torch.float64, dropout=0.4))
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
        rm = BayesianRewardModel(model, tiny_tokenizer("opt")).fit(pairs, rank=5)
        scores = rm.score([PROMPT] * 3, RESPONSES)
        results.append((scores.mean, scores.variance))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)
