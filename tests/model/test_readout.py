"""What is scored of a model's output: a classifier's logits, or the tensor of a model of one's own."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from dense_reference import DensePosterior
from peft import LoraConfig, get_peft_model
from test_against_dense_reference import assert_all_numbers_agree, token_rows
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_step_model, tiny_steps, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE, RELATIVE
from torch import nn

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.readout import PooledReadout, TensorReadout, TokenReadout, checked_output_weights
from bayesrm_fast.text.batches import TokenBatch

PRECISION = 0.7
PROMPT, RESPONSES = words(4, 100), [words(2, 101), words(7, 102), words(5, 103)]
BODY = {"llama": "model", "bert": "bert"}
HEAD = {"llama": "score", "bert": "classifier"}
TARGETS = {"llama": ["q_proj", "v_proj", "up_proj"], "bert": ["query", "value", "output.dense"]}


class OwnRewardModel(nn.Module):
    """Any module: a transformer's body, and a reward read as its author likes; with a `.config` or without one."""

    def __init__(self, classifier, architecture, has_config, shape):
        super().__init__()
        self.body = getattr(classifier, BODY[architecture])
        self.head = getattr(classifier, HEAD[architecture])
        self.is_decoder, self.shape = architecture == "llama", shape
        if has_config:
            self.config = classifier.config

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.body(input_ids=input_ids, attention_mask=attention_mask, **types)
        if self.is_decoder:
            rows = torch.arange(len(input_ids))
            hidden = found.last_hidden_state[rows, attention_mask.sum(1) - 1]
        else:
            hidden = found.pooler_output
        return self.head(hidden).view(self.shape)


class DenseOwn(DensePosterior):
    def reward(self, row):
        ids, types = row if isinstance(row[0], list) else (row, None)
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        return self.model(**inputs, **({} if types is None else {"token_type_ids": torch.tensor([types])})).view(())


def with_lora(model, architecture, dtype=torch.float64):
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS[architecture]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return adapted.to(dtype).eval()


def own(architecture="llama", *, has_config=True, shape=(-1,), lora=True, dtype=torch.float64, **options):
    model = OwnRewardModel(tiny_base(architecture, dtype=dtype), architecture, has_config, shape).eval()
    if lora:
        model = with_lora(model, architecture, dtype)
    return BayesianRewardModel(model, tiny_tokenizer(architecture), readout=TensorReadout(), max_length=64, **options)


def classifier(architecture="llama", *, lora=True, **options):
    model = tiny_base(architecture, dtype=torch.float64)
    if lora:
        model = with_lora(model, architecture)
    return BayesianRewardModel(model, tiny_tokenizer(architecture), **options)


def dense_of(rm, pairs, **options):
    prompts = [pair["prompt"] for pair in pairs]
    sides = [token_rows(rm, prompts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")]
    return DenseOwn(rm.model, list(zip(*sides, strict=True)), **options)


@pytest.mark.parametrize(("structure", "rank"), [("ggn", 16), ("kfac", None), ("ekfac", 5)])
@pytest.mark.parametrize(
    ("architecture", "has_config", "shape"),
    [("llama", True, (-1,)), ("llama", False, (-1, 1)), ("bert", False, (-1,)), ("bert", True, (-1, 1))],
)
def test_all_numbers_of_a_model_of_ones_own_are_those_of_the_dense_posterior(
    architecture, has_config, shape, structure, rank
):
    rm, pairs = own(architecture, has_config=has_config, shape=shape), tiny_pairs()
    rm.fit(pairs, structure=structure, rank=rank, prior_precision=PRECISION)
    assert_all_numbers_agree(rm, dense_of(rm, pairs), pairs, structure, rank, FLOAT32_INSIDE)


@pytest.mark.parametrize(("structure", "rank"), [("ggn", 16), ("ekfac", 5)])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_virtual_adapters_of_a_model_of_ones_own(architecture, structure, rank):
    rm, pairs = own(architecture, has_config=False, lora=False, virtual_rank=2), tiny_pairs()
    rm.fit(pairs, structure=structure, rank=rank, prior_precision=PRECISION)
    assert all(tap.name.startswith("body.") for tap in rm.virtual.taps)
    dense = dense_of(rm, pairs, virtual={tap.name: tap.down for tap in rm.virtual.taps})
    rows = token_rows(rm, [PROMPT] * 3, RESPONSES)
    expected = torch.tensor(dense.covariance(rows, structure, rank, PRECISION))
    scale = {"rtol": FLOAT32_INSIDE, "atol": FLOAT32_INSIDE * expected.abs().max().item()}
    torch.testing.assert_close(rm.covariance(PROMPT, RESPONSES).covariance.double(), expected, **scale)
    torch.testing.assert_close(rm.score([PROMPT] * 3, RESPONSES).variance.double(), expected.diagonal(), **scale)


@pytest.mark.parametrize("has_config", [True, False])
def test_the_same_weights_as_a_sequence_classifier_give_the_same(has_config):
    rms = [own(has_config=has_config), classifier()]
    for rm in rms:
        rm.fit(tiny_pairs(), rank=None, prior_precision=PRECISION)
    found, expected = rms
    close = {"rtol": RELATIVE[torch.float64], "atol": RELATIVE[torch.float64]}
    texts = [PROMPT] * 3, RESPONSES
    torch.testing.assert_close(found.rewards(*texts), expected.rewards(*texts), **close)
    torch.testing.assert_close(
        found.score(*texts).variance, expected.score(*texts).variance, rtol=FLOAT32_INSIDE, atol=0
    )
    pairs = found.score_pairs(tiny_pairs(3)), expected.score_pairs(tiny_pairs(3))
    torch.testing.assert_close(pairs[0].probability, pairs[1].probability, rtol=FLOAT32_INSIDE, atol=0)
    many = [words(2 + i % 6, i) for i in range(20)]
    best = found.best_of_n(PROMPT, many, k=0.3), expected.best_of_n(PROMPT, many, k=0.3)
    assert best[0].index == best[1].index
    torch.testing.assert_close(best[0].mean, best[1].mean, **close)


def test_the_author_of_a_model_may_read_the_whole_row():
    """Where the reward reads every token, no shortcut to one token is taken."""
    rm = own()
    body = rm.model.get_base_model()
    body.forward = lambda input_ids, attention_mask: (
        body.head(body.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)[..., 0]
        * attention_mask
    ).sum(1)
    rm.fit(tiny_pairs(), rank=None, prior_precision=PRECISION)
    assert rm.shortcuts.scored_token is None
    assert not rm.shortcuts.no_mask  # which this model asks for
    rows = token_rows(rm, [PROMPT] * 3, RESPONSES)
    means = [rm.model(torch.tensor([row]), torch.ones(1, len(row))).item() for row in rows]
    torch.testing.assert_close(rm.rewards([PROMPT] * 3, RESPONSES), torch.tensor(means, dtype=torch.float64))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda reward: torch.stack([reward, reward], 1), r"not a tensor \[\d, 2\]"),
        (lambda reward: reward.sum(), r"not a tensor \[\]"),
        (lambda reward: reward[:, None, None], r"not a tensor \[\d, 1, 1\]"),
        (lambda reward: (reward,), "not tuple"),
        (lambda reward: {"reward": reward}, "not dict"),
    ],
)
def test_a_model_that_gives_anything_else_is_refused(give, message):
    rm = own()
    body = rm.model.get_base_model()
    forward = body.forward
    body.forward = lambda **inputs: give(forward(**inputs))
    for ask in (lambda: rm.fit(tiny_pairs()), lambda: rm.rewards(["able"], ["act"])):
        with pytest.raises(InputError, match=rf"must give one reward a row, a tensor \[\d\] or \[\d, 1\], {message}"):
            ask()


def batch(rows):
    ids = torch.ones(rows, 3, dtype=torch.long)
    return TokenBatch(ids, torch.ones_like(ids), None, 0, (1.0,))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scalars_are_float32_at_least_and_autograd_sees_through(given, dtype):
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=given, requires_grad=True)
    pooled = PooledReadout(torch.tensor([1.0, -0.5])).scalars(SimpleNamespace(logits=logits), batch(2))
    assert (pooled.dtype, pooled.tolist()) == (dtype, [[0.0], [1.0]])
    own = TensorReadout().scalars(logits[:, 1], batch(2))
    assert (own.dtype, own.tolist()) == (dtype, [[2.0], [4.0]])
    (pooled.sum() + own.sum()).backward()
    assert logits.grad.tolist() == [[1.0, 0.5]] * 2


def test_weights_made_under_inference_mode_are_no_obstacle():
    with torch.inference_mode():
        weights = checked_output_weights([2.0], 1)
    logits = torch.ones(2, 1, requires_grad=True)
    PooledReadout(weights).scalars(SimpleNamespace(logits=logits), batch(2)).sum().backward()
    assert logits.grad.tolist() == [[2.0], [2.0]]


def test_output_weights_are_one_for_each_output():
    assert checked_output_weights(None, 1).tolist() == [1.0]
    assert checked_output_weights([1, -0.5], 2).tolist() == [1.0, -0.5]
    with pytest.raises(InputError, match="the model has 3 outputs: give output_weights"):
        checked_output_weights(None, 3)
    for bad in ([1.0], [1.0, float("nan")], [[1.0, 2.0]], ["a", "b"], "ab"):
        with pytest.raises(InputError, match=r"must be (2 )?finite numbers"):
            checked_output_weights(bad, 2)


def test_weights_of_tokens_are_numbers_in_any_container():
    assert TokenReadout((-1, 1)).output_weights.tolist() == [-1.0, 1.0]
    for bad in ("ab", None, [[1.0]], [float("nan"), 1.0]):
        with pytest.raises(InputError, match="output_weights must be finite numbers"):
            TokenReadout(bad)


class Negated(PooledReadout):
    def scalars(self, output, batch):
        return -super().scalars(output, batch)


class Several(PooledReadout):
    def scalars(self, output, batch):
        return super().scalars(output, batch).expand(-1, 2)


def test_a_readout_that_a_file_cannot_hold_is_not_saved(tmp_path):
    readout = Negated(torch.ones(1))
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), readout=readout).fit(tiny_pairs(), rank=4)
    with pytest.raises(InputError, match="readout of its own cannot be saved"):
        rm.save_pretrained(tmp_path / "rm")
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize("structure", ["kfac", "ggn"])
def test_several_scalars_are_no_reward(structure):
    readout = Several(torch.ones(1))
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), readout=readout)
    with pytest.raises(InputError, match="one scalar for each row, and this model's readout gives 2"):
        rm.fit(tiny_pairs(), structure=structure, rank=4)
    with pytest.raises(InputError, match="one scalar for each row"):
        rm.rewards(["a"], ["able"])


def test_what_a_model_of_ones_own_lacks_is_told():
    module = torch.nn.Sequential(torch.nn.Embedding(44, 4), torch.nn.Linear(4, 1))
    with pytest.raises(InputError, match="give readout=TensorReadout"):
        BayesianRewardModel(module, tiny_tokenizer("llama"), virtual_rank=2)
    with pytest.raises(InputError, match="output_weights are for sequence classifiers"):
        BayesianRewardModel(
            module, tiny_tokenizer("llama"), virtual_rank=2, readout=TensorReadout(), output_weights=[1.0]
        )


def test_a_token_classifier_is_read_where_the_batch_says():
    logits = torch.arange(12.0).view(2, 3, 2)
    logits[:, :, 1] *= 2
    read = replace(batch(2), read_at=torch.tensor([[0, 2], [1, 1]]))
    found = TokenReadout(torch.tensor([-1.0, 1.0])).scalars(SimpleNamespace(logits=logits), read)
    assert found.tolist() == [[2.0, 6.0], [10.0, 10.0]]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (SimpleNamespace(logits=torch.ones(2, 2)), r"gives logits \[2, 3, 1\], and it gives \[2, 2\]"),
        (SimpleNamespace(logits=torch.ones(2, 3, 2)), r"and it gives \[2, 3, 2\]"),
        (SimpleNamespace(logits=torch.ones(2, 2, 1)), r"and it gives \[2, 2, 1\]"),
        (torch.ones(2, 3, 1), "and it gives none"),
    ],
)
def test_other_logits_than_those_of_tokens_are_refused(output, message):
    with pytest.raises(InputError, match=message):
        TokenReadout(torch.ones(1)).scalars(output, replace(batch(2), read_at=torch.zeros(2, 1, dtype=torch.long)))


class OwnTokenClassifier(nn.Module):
    """A token classifier that transformers does not know, as Qwen's process reward models are."""

    def __init__(self, classifier):
        super().__init__()
        self.inner, self.config = classifier, classifier.config

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.inner(input_ids=input_ids, attention_mask=attention_mask).logits)


def test_a_token_classifier_of_ones_own_is_read_by_the_same_readout(tmp_path):
    model, tokenizer = tiny_step_model("llama", dtype=torch.float64)
    known = BayesianRewardModel(model, tokenizer).fit(tiny_steps(), rank=8, prior_precision=PRECISION)
    own = BayesianRewardModel(
        OwnTokenClassifier(model), tokenizer, readout=TokenReadout(torch.tensor([-1.0, 1.0])), max_length=64
    ).fit(tiny_steps(), rank=8, prior_precision=PRECISION)
    for row in tiny_steps(2, seed=5):
        scores = [rm.score_segments(row["prompt"], row["completions"]) for rm in (known, own)]
        torch.testing.assert_close(scores[0].mean, scores[1].mean, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
        torch.testing.assert_close(scores[0].covariance, scores[1].covariance, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
    with pytest.raises(InputError, match="readout of its own cannot be saved"):
        own.save_pretrained(tmp_path / "own")


@pytest.mark.parametrize(
    ("labels", "is_refused"),
    [
        (("LABEL_0", "LABEL_1"), False),
        (("wrong", "correct"), False),
        (("Correct", "Wrong"), True),
        (("O", "error"), True),
        (("+", "LABEL_1"), True),
    ],
)
def test_outputs_that_are_named_the_other_way_round_are_not_read_by_default(labels, is_refused):
    model, tokenizer = tiny_step_model("llama")
    model.config.id2label = dict(enumerate(labels))
    if is_refused:
        called = re.escape(f"calls its outputs {labels[0]!r} and {labels[1]!r}")
        with pytest.raises(InputError, match=rf"{called}.*output_weights, \[1, -1\]"):
            BayesianRewardModel(model, tokenizer)
    else:
        assert BayesianRewardModel(model, tokenizer).output_weights.tolist() == [-1.0, 1.0]
    assert BayesianRewardModel(model, tokenizer, output_weights=[1, -1]).output_weights.tolist() == [1.0, -1.0]


def test_a_separator_is_for_token_classifiers():
    with pytest.raises(InputError, match="step_separator is for token classifiers, and LlamaForSeq"):
        BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), step_separator="art")
