"""Whether a model is still the one that a posterior was fitted on."""

import copy
import io
import pickle

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tokenizers import processors
from torch import nn

from bayesrm_fast import BayesianRewardModel, InputError

PROMPTS, RESPONSES = [words(3, 1)] * 3, [words(4 + i, i) for i in range(3)]
Q = "model.layers.0.self_attn.q_proj"


def numbers(rm):
    found = rm.score(PROMPTS, RESPONSES)
    return torch.stack([found.mean, found.variance])


def fitted(model=None, **options):
    options = {"rank": 4, "prior_precision": 0.5} | options
    model = model or tiny_adapter("llama", target_modules=["q_proj", "up_proj"])
    return BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(3), **options)


@pytest.fixture
def rm():
    """With a second adapter beside the fitted one."""
    model = tiny_adapter("llama", target_modules=["q_proj", "up_proj"])
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    return fitted(model)


def layer(rm):
    return rm.model.get_base_model().get_submodule(Q)


def step(rm):
    """One step of an optimiser on what an adapter trains."""
    weights = [weight for name, weight in rm.model.named_parameters() if "lora_" in name and "default" in name]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD(weights, lr=1e-3).step()
    rm.model.zero_grad(set_to_none=True)


def write(path, by):
    def change(rm):
        weight = rm.model.get_base_model().get_parameter(path)
        if by == "no_grad":
            with torch.no_grad():
                weight.view(-1)[1] += 1
        elif by == "data":
            weight.data += 1
        elif by == "storage":
            weight.data = weight.data + 1
        else:
            parent, _, name = path.rpartition(".")
            setattr(rm.model.get_base_model().get_submodule(parent), name, nn.Parameter(weight.detach() + 1))

    return change


def loads(rm):
    buffer = io.BytesIO()
    torch.save({name: value + 1 for name, value in rm.model.state_dict().items()}, buffer)
    buffer.seek(0)
    rm.model.load_state_dict(torch.load(buffer))


def new_head(rm):
    rm.model.get_base_model().score = nn.Linear(16, 1, bias=False)


ENDS = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
WRITTEN = [
    (f"{Q}.lora_A.default.weight", "adapter weights"),
    (f"{Q}.lora_B.default.weight", "adapter weights"),
    ("score.modules_to_save.default.weight", "score head"),
    (f"{Q}.base_layer.weight", "base weights"),
    ("model.norm.weight", "base weights"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rm: rm.model.merge_adapter(), "merged into the base weights: call unmerge_adapter, or fit again"),
        (
            lambda rm: rm.model.set_adapter("other"),
            "fitted on the adapter 'default', and active: 'other': call",
        ),
        (lambda rm: layer(rm).set_adapter(["default", "other"]), "active: 'default', 'other'"),
        (lambda rm: rm.model.base_model.disable_adapter_layers(), "'default' is disabled: enable it"),
        (lambda rm: rm.model.delete_adapter("default"), "'default' is no longer in the model: load it again"),
        (lambda rm: rm.model.unload(), "'default' is no longer in the model"),
        (lambda rm: rm.model.merge_and_unload(), "'default' is no longer in the model"),
        (lambda rm: layer(rm).set_scale("default", 2.0), rf"scaled by 4\.0 at {Q}"),
        (lambda rm: layer(rm).scaling.update(default=0.0), rf"scaled by 0\.0 at {Q}"),
        (step, "adapter weights"),
        (loads, r"adapter weights, score head, base weights"),
        (new_head, "score head"),
        (lambda rm: setattr(rm.tokenizer, "chat_template", "{{ messages }}"), "tokenizer has changed"),
        (lambda rm: rm.tokenizer.add_tokens(["word"]), "tokenizer has changed"),
        (lambda rm: setattr(rm.tokenizer, "bos_token", None), "tokenizer has changed"),
        (lambda rm: setattr(rm.tokenizer, "eos_token", "again"), "tokenizer has changed"),
        (lambda rm: setattr(rm.tokenizer.backend_tokenizer, "post_processor", ENDS), "tokenizer has changed"),
        (lambda rm: rm.output_weights.mul_(2), "output weights"),
        (lambda rm: rm.model.to(torch.bfloat16), r"adapter weights, .*base weights"),
        *[(write(path, by), part) for path, part in WRITTEN for by in ("no_grad", "data", "storage", "parameter")],
    ],
)
def test_a_changed_model_is_refused_by_what_has_changed(rm, change, message, tmp_path):
    change(rm)
    for call in (
        lambda: numbers(rm),
        lambda: rm.rewards(PROMPTS, RESPONSES),
        lambda: rm.covariance(PROMPTS[0], RESPONSES),
        lambda: rm.best_of_n(PROMPTS[0], RESPONSES),
        lambda: rm.score_pairs(tiny_pairs()),
        lambda: rm.calibrate(tiny_pairs()),
        lambda: list(rm.score_stream(zip(PROMPTS, RESPONSES, strict=True))),
        lambda: rm.save_pretrained(tmp_path / "saved"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "change", [lambda rm: rm.model.set_adapter("other"), step, new_head, write(f"{Q}.base_layer.weight", "data")]
)
def test_a_changed_model_is_served_once_it_is_fitted_again(rm, change):
    change(rm)
    rm.fit(tiny_pairs(3), rank=4, prior_precision=0.5)
    again = BayesianRewardModel(rm.model, rm.tokenizer).fit(tiny_pairs(3), rank=4, prior_precision=0.5)
    assert torch.equal(numbers(rm), numbers(again))


def test_the_head_is_the_adapters_too():
    rm = fitted(include_head=True)
    rm.model.merge_adapter()
    with pytest.raises(InputError, match="merged"):
        numbers(rm)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (lambda rm: rm.model.merge_adapter(), lambda rm: rm.model.unmerge_adapter()),
        (lambda rm: rm.model.set_adapter("other"), lambda rm: rm.model.set_adapter("default")),
        (
            lambda rm: rm.model.base_model.disable_adapter_layers(),
            lambda rm: rm.model.base_model.enable_adapter_layers(),
        ),
        (lambda rm: layer(rm).scale_layer(2.0), lambda rm: layer(rm).unscale_layer()),
    ],
)
def test_a_model_that_is_itself_again_is_served(rm, there, back):
    before = numbers(rm)
    there(rm)
    with pytest.raises(InputError):
        numbers(rm)
    back(rm)
    torch.testing.assert_close(numbers(rm), before, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "harmless",
    [
        lambda rm: rm.model.add_adapter("third", LoraConfig(r=2, target_modules=["down_proj"])),
        lambda rm: rm.model.delete_adapter("other"),
        lambda rm: rm.model.train(),
        lambda rm: rm.model.requires_grad_(False),
        lambda rm: [setattr(weight, "data", weight.data.clone()) for weight in rm.model.parameters()],
    ],
)
def test_what_changes_no_reward_is_served(rm, harmless):
    before = numbers(rm)
    harmless(rm)
    for _ in range(2):
        torch.testing.assert_close(numbers(rm), before, rtol=0, atol=0)


def test_a_model_with_a_weight_that_is_nan_is_the_same_model(rm):
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[-1] = float("nan")
    rm.posterior = rm.posterior
    rm.check_unchanged()
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[-1] = 0.0
    with pytest.raises(InputError, match="base weights"):
        rm.check_unchanged()


def test_other_adapters_may_be_trained_meanwhile(rm):
    before = numbers(rm)
    with torch.no_grad():
        layer(rm).lora_B["other"].weight.add_(1)
    assert torch.equal(numbers(rm), before)


def test_after_a_move_writing_is_seen_again(rm):
    for weight in rm.model.parameters():
        weight.data = weight.data.clone()
    numbers(rm)
    write(f"{Q}.base_layer.weight", "no_grad")(rm)
    with pytest.raises(InputError, match="base weights"):
        numbers(rm)


def test_an_adapter_on_a_model_with_virtual_adapters_is_seen():
    base = tiny_base("llama")
    rm = BayesianRewardModel(base, tiny_tokenizer("llama"), virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    before = numbers(rm)
    tiny_adapter("llama", base=base, target_modules=["q_proj"])
    with pytest.raises(InputError, match=f"another adapter than the posterior was fitted on is applied at {Q}"):
        numbers(rm)
    assert before[1].min() > 0


def test_a_fit_that_fails_leaves_the_earlier_posterior_to_its_adapter(rm):
    before = numbers(rm)
    rm.model.set_adapter("other")

    def interrupts(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rm.fit(tiny_pairs(), rank=4, progress=interrupts)
    rm.model.set_adapter("default")
    assert torch.equal(numbers(rm), before)


def test_a_posterior_that_is_set_is_that_of_the_model_as_it_is():
    rm = fitted()
    step(rm)
    with pytest.warns(UserWarning, match="fitted on other adapter weights"):
        rm.posterior = rm.posterior
    assert numbers(rm)[1].min() > 0
    rm.posterior = None
    rm.check_unchanged()


def test_a_posterior_over_other_weights_is_refused():
    rm, other = fitted(), fitted(tiny_adapter("llama", target_modules=["q_proj"]))
    before = numbers(rm)
    with pytest.raises(InputError, match=r"what differs: model\.layers\.0\.mlp\.up_proj"):
        rm.posterior = other.posterior
    assert torch.equal(numbers(rm), before)


@pytest.mark.parametrize("how", ["copy", "pickle", "torch"])
def test_a_copied_or_pickled_model_scores_alike_and_is_checked(how):
    rm = fitted()
    buffer = io.BytesIO()
    if how == "torch":
        torch.save(rm, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = copy.deepcopy(rm) if how == "copy" else pickle.loads(pickle.dumps(rm))
    assert torch.equal(numbers(other), numbers(rm))
    step(other)
    with pytest.raises(InputError, match="adapter weights"):
        numbers(other)
    numbers(rm)
