"""Virtual adapters: posteriors of models that have no LoRA adapter."""

import copy

import numpy as np
import pytest
import torch
from dense_reference import DensePosterior
from peft import LoraConfig, get_peft_model
from test_against_dense_reference import assert_all_numbers_agree, dense_posterior, token_rows
from tiny import ARCHITECTURES, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE, RELATIVE

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.token_budget import TokenBudget
from bayesrm_fast.text.batches import TokenBatch

PRECISION = 0.7
PROMPT = words(4, 100)
RESPONSES = [words(2, 101), words(7, 102), words(5, 103)]


def virtual_model(architecture, rank=3, dtype=torch.float64, **options):
    return BayesianRewardModel(
        tiny_base(architecture, dtype=dtype), tiny_tokenizer(architecture), virtual_rank=rank, **options
    )


def fitted(architecture, structure="ggn", **options):
    return virtual_model(architecture, **options).fit(
        tiny_pairs(), structure=structure, rank=None, prior_precision=PRECISION
    )


def a_by_layer(rm):
    return {tap.name: tap.down for tap in rm.virtual.taps}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("structure", "rank"), [("kfac", None), ("ekfac", 5), ("ggn", 16)])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_all_numbers_are_those_of_an_explicit_sum_of_weights(architecture, structure, rank, dtype):
    rm = virtual_model(architecture, dtype=dtype)
    pairs = tiny_pairs()
    rm.fit(pairs, structure=structure, rank=rank, prior_precision=PRECISION)
    dense = dense_posterior(rm, pairs, virtual=a_by_layer(rm))
    assert_all_numbers_agree(rm, dense, pairs, structure, rank, RELATIVE[dtype])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture):
    rm = virtual_model(architecture)
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="ggn", rank=5, prior_precision=PRECISION)
    dense = dense_posterior(rm, pairs, virtual=a_by_layer(rm))
    assert_all_numbers_agree(rm, dense, pairs, "ggn", 5, FLOAT32_INSIDE)


@pytest.mark.parametrize("structure", ["kfac", "ggn"])
def test_beside_lora_both_are_in_the_posterior(structure):
    rm = BayesianRewardModel(tiny_adapter("llama", dtype=torch.float64), tiny_tokenizer("llama"), virtual_rank=2)
    pairs = tiny_pairs()
    rm.fit(pairs, structure=structure, rank=None, prior_precision=PRECISION)
    kinds = {site.name.rpartition(".")[2] for site in rm.posterior.sites}
    assert kinds == {"lora_A", "lora_B", "virtual_B"}
    dense = dense_posterior(rm, pairs, virtual=a_by_layer(rm))
    assert_all_numbers_agree(rm, dense, pairs, structure, None, RELATIVE[torch.float64])


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_the_head_beside_virtual_adapters(architecture):
    rm = virtual_model(architecture)
    pairs = tiny_pairs()
    rm.fit(pairs, structure="ggn", rank=None, prior_precision=PRECISION, include_head=True)
    head = {"llama": "score", "bert": "classifier"}[architecture]
    dense = dense_posterior(rm, pairs, head=head, virtual=a_by_layer(rm))
    assert_all_numbers_agree(rm, dense, pairs, "ggn", None, RELATIVE[torch.float64])


def test_on_one_layer_it_is_lora_with_the_same_a_and_b_zero():
    rm = fitted("llama", virtual_targets=["q_proj"])
    lora = get_peft_model(
        copy.deepcopy(rm.model), LoraConfig(r=3, lora_alpha=3, task_type="SEQ_CLS", target_modules=["q_proj"])
    ).double()
    for tap, layer in zip(rm.virtual.taps, [m for m in lora.modules() if hasattr(m, "lora_A")], strict=True):
        layer.lora_A["default"].weight.data = tap.down.clone()
    reference = DensePosterior(
        lora,
        list(
            zip(
                *(
                    token_rows(rm, [p["prompt"] for p in tiny_pairs()], [p[side] for p in tiny_pairs()])
                    for side in ("chosen", "rejected")
                ),
                strict=True,
            )
        ),
    )
    # B = 0 leaves A no gradient, so that LoRA's posterior over A and B is the one over B alone.
    rows = token_rows(rm, [PROMPT] * 3, RESPONSES)
    expected = reference.covariance(rows, "ggn", None, PRECISION).diagonal()
    found = rm.score([PROMPT] * 3, RESPONSES).variance
    np.testing.assert_allclose(found.numpy(), expected, rtol=RELATIVE[torch.float64])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_holds_the_leading_directions_of_each_input(architecture):
    rm = fitted(architecture)
    seen = {}
    for tap in rm.virtual.taps:
        tap.module.register_forward_pre_hook(
            lambda module, args, name=tap.name: seen.setdefault(name, []).append(args[0])
        )
    prompts = [pair["prompt"] for pair in tiny_pairs()]
    for side in ("chosen", "rejected"):
        for row in token_rows(rm, prompts, [pair[side] for pair in tiny_pairs()]):
            ids, types = row if isinstance(row[0], list) else (row, None)
            inputs = {} if types is None else {"token_type_ids": torch.tensor([types])}
            with torch.no_grad():
                rm.model(input_ids=torch.tensor([ids]), **inputs)
    for tap in rm.virtual.taps:
        x = torch.cat([one.reshape(-1, one.shape[-1]) for one in seen[tap.name]])
        values = torch.linalg.eigvalsh(x.T @ x).flip(0)[:3]
        np.testing.assert_allclose((tap.down @ tap.down.T).numpy(), np.eye(3), atol=1e-10)
        projected = torch.linalg.eigvalsh(tap.down @ x.T @ x @ tap.down.T).flip(0)
        np.testing.assert_allclose(projected.numpy(), values.numpy(), rtol=1e-8)


def test_layers_on_one_input_share_its_a():
    rm = fitted("llama")
    a = a_by_layer(rm)
    first = "model.layers.0"
    assert a[f"{first}.self_attn.q_proj"] is a[f"{first}.self_attn.v_proj"]
    assert a[f"{first}.mlp.gate_proj"] is a[f"{first}.mlp.up_proj"]
    assert a[f"{first}.self_attn.q_proj"] is not a[f"{first}.mlp.gate_proj"]


def test_an_a_has_one_sign_whatever_the_batches_were():
    """Their rounding turns an eigenvector about; a sketch of the GGN has its test matrix in the coordinates of A."""
    for directions in a_by_layer(fitted("llama")).values():
        assert directions.amax(1).equal(directions.abs().amax(1))


def test_rewards_are_those_of_the_model_and_the_model_is_left_as_it_was():
    rm = virtual_model("llama", dtype=torch.float32)
    rm.model.train()
    before = {name: (p.clone(), p.requires_grad) for name, p in rm.model.named_parameters()}
    plain = rm.rewards([PROMPT] * 3, RESPONSES)
    rm.fit(tiny_pairs(), prior_precision=PRECISION)
    torch.testing.assert_close(rm.score([PROMPT] * 3, RESPONSES).mean, plain)
    assert rm.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in rm.model.modules())
    for name, parameter in rm.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None


class OnlyCalled(torch.nn.Module):
    """A layer that gives its sizes and can be called, as quantised ones can; reading its weight fails."""

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        object.__setattr__(self, "inner", layer)

    @property
    def weight(self):
        raise AssertionError("a quantised weight was read")

    def forward(self, x):
        return self.inner(x)


def test_a_layer_is_called_and_never_read():
    expected = fitted("llama").score([PROMPT] * 3, RESPONSES)
    rm = virtual_model("llama")
    for layer in rm.model.model.layers:
        for block, name in [(layer.self_attn, "v_proj"), (layer.mlp, "down_proj")]:
            setattr(block, name, OnlyCalled(getattr(block, name)))
    found = rm.fit(tiny_pairs(), structure="ggn", rank=None, prior_precision=PRECISION).score([PROMPT] * 3, RESPONSES)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("targets", "last_parts"),
    [
        ("auto", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["v_proj", "mlp.up_proj"], {"v_proj", "up_proj"}),
        (r".*\.1\..*_proj", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_targets(targets, last_parts):
    rm = fitted("llama", virtual_targets=targets)
    assert {tap.name.rpartition(".")[2] for tap in rm.virtual.taps} == last_parts
    if targets != "auto" and isinstance(targets, str):
        assert all(".1." in tap.name for tap in rm.virtual.taps)


def test_auto_takes_the_last_layers_where_not_all_fit(monkeypatch, caplog):
    of_one_layer = sum(tap.sites[0].r * tap.d_out for tap in fitted("llama").virtual.taps) // 2
    monkeypatch.setattr("bayesrm_fast.fit.virtual.weights_that_fit", lambda *_: of_one_layer)
    with caplog.at_level("INFO", "bayesrm_fast"):
        rm = fitted("llama")
    assert {tap.name.split(".")[2] for tap in rm.virtual.taps} == {"1"}
    assert "the last 1 of the model's 2 layers" in caplog.text
    monkeypatch.setattr("bayesrm_fast.fit.virtual.weights_that_fit", lambda *_: of_one_layer - 1)
    with pytest.raises(InputError, match="not even the last layer"):
        fitted("llama")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), "virtual_rank must be"),
        (dict(rank=17, virtual_targets=["q_proj"]), "virtual_rank=17"),
        (dict(virtual_targets=["no_such"]), "match no linear layer; there are model.layers.0.self_attn.q_proj"),
        (dict(virtual_targets="("), "no regular expression"),
        (dict(virtual_targets=[]), "empty"),
        (dict(virtual_targets="score"), "match no linear layer"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        fitted("llama", **options)


def test_a_layer_that_is_called_twice_is_left_out_by_auto_and_refused_by_name():
    rm = fitted("deberta-v2")
    assert rm.virtual.taps
    model = tiny_base("deberta-v2", dtype=torch.float64, share_att_key=True)
    rm = BayesianRewardModel(model, tiny_tokenizer("deberta-v2"), virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    assert not any("key_proj" in tap.name for tap in rm.virtual.taps)
    assert any("value_proj" in tap.name for tap in rm.virtual.taps)
    rm = BayesianRewardModel(model, tiny_tokenizer("deberta-v2"), virtual_rank=2, virtual_targets=["key_proj"])
    with pytest.raises(InputError, match=r"does not call once.*key_proj"):
        rm.fit(tiny_pairs(), prior_precision=1.0)


def test_neither_adapter_nor_virtual_rank_names_the_way_out():
    with pytest.raises(InputError, match="virtual_rank=8"):
        BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"))


def test_evidence_is_refused_because_it_has_no_maximum():
    with pytest.raises(InputError, match="evidence grows"):
        virtual_model("llama").fit(tiny_pairs(), prior_precision="evidence")
    rm = virtual_model("llama").fit(tiny_pairs(20))
    assert rm.posterior.prior.method == "margins"
    with pytest.raises(InputError, match="evidence grows"):
        rm.calibrate(tiny_pairs(5, seed=7), "evidence")
    assert np.all(np.diff([rm.posterior.log_evidence(precision) for precision in (0.1, 1.0, 10.0, 1e6)]) > 0)


@pytest.mark.parametrize("structure", ["ggn", "kfac"])
def test_margins_choose_the_prior_that_expects_differences_as_large_as_the_models_own(structure):
    rm, pairs = virtual_model("llama"), tiny_pairs()
    rm.fit(pairs, structure=structure)
    dense = dense_posterior(rm, pairs, virtual=a_by_layer(rm))
    margins = np.array([dense.reward(a).item() - dense.reward(b).item() for a, b in dense.pairs])
    expected = np.square(dense.jacobians).sum(1).mean() / np.square(margins).mean()
    assert rm.posterior.prior_precision == pytest.approx(expected, rel=1e-8)
    lora = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(
        pairs, structure=structure, rank=None, prior_precision="margins"
    )
    assert lora.posterior.prior_precision > 0
    before = lora.posterior.prior_precision
    lora.calibrate(pairs, "margins")
    assert lora.posterior.prior_precision == pytest.approx(before, rel=1e-6)


def test_margins_need_rewards_that_differ():
    pair = {"prompt": PROMPT, "chosen": "unheard", "rejected": "unknown"}  # one token each, the same
    with pytest.raises(InputError, match="whose rewards differ"):
        virtual_model("llama").fit([pair])


def test_several_outputs():
    weights = [0.5, -1.0, 2.0]
    model = tiny_base("qwen2", dtype=torch.float64, num_labels=3)
    rm = BayesianRewardModel(model, tiny_tokenizer("qwen2"), virtual_rank=3, output_weights=weights)
    pairs = tiny_pairs(4)
    rm.fit(pairs, structure="ggn", rank=5, prior_precision=PRECISION)
    dense = dense_posterior(rm, pairs, output_weights=weights, virtual=a_by_layer(rm))
    assert_all_numbers_agree(rm, dense, pairs, "ggn", 5, FLOAT32_INSIDE)


def test_lazy_best_of_n_chooses_as_the_exhaustive_one():
    rm = fitted("llama", dtype=torch.float32)
    responses = [words(1 + i % 7, i) for i in range(40)]
    lazy, full = rm.best_of_n(PROMPT, responses), rm.best_of_n(PROMPT, responses, exhaustive=True)
    assert lazy.index == full.index
    known = ~lazy.variance.isnan()
    torch.testing.assert_close(lazy.variance[known], full.variance[known], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(dtype):
    exact = fitted("llama", dtype=torch.float32).score([PROMPT] * 3, RESPONSES)
    rm = fitted("llama", dtype=dtype)
    found = rm.score([PROMPT] * 3, RESPONSES)
    assert found.variance.dtype == torch.float32
    torch.testing.assert_close(found.variance, exact.variance, rtol=0.25, atol=0)


def test_checkpointed_layers_give_the_same():
    rm = fitted("llama")
    expected = rm.score([PROMPT] * 3, RESPONSES).variance
    rm.model.gradient_checkpointing_enable()
    torch.testing.assert_close(rm.score([PROMPT] * 3, RESPONSES).variance, expected, rtol=1e-10, atol=0)


def test_where_memory_is_measured_a_trial_without_taps_says_nothing_of_one_with_them(monkeypatch):
    """As on a GPU, whose budget is found by trial passes."""
    taps = []

    def trial(tapped, *args, **options):
        ids = torch.arange(4, 14).view(2, 5)
        batch = TokenBatch(ids, torch.ones_like(ids), None, 0, (1.0,))
        scalars, _ = tapped.run(batch, torch.ones_like, Nothing)
        assert scalars.shape == (2, 1)
        taps.append(len(tapped.taps))
        return TokenBudget(4096)

    monkeypatch.setattr("bayesrm_fast.model.reward_model.BATCH_TOKENS", {})
    monkeypatch.setattr("bayesrm_fast.model.reward_model.measured_budget", trial)
    rm = virtual_model("llama")
    rm.rewards([PROMPT] * 3, RESPONSES)
    rm.fit(tiny_pairs(), prior_precision=PRECISION).score([PROMPT] * 3, RESPONSES)
    assert taps == [0, 0, len(rm.virtual.taps)]


class Nothing:
    gradients_alone = True

    def consume(self, site, p, q, offsets):
        pass
