"""What a pass hands over, and what it leaves behind."""

from functools import partial

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import ARCHITECTURES, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.lora import find_lora_taps
from bayesrm_fast.model.passes import Passes
from bayesrm_fast.model.readout import PooledReadout
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.model.token_budget import TokenBudget
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.text.batches import Collator, TokenBatch
from bayesrm_fast.text.examples import TokenizedRow


class Gradients:
    gradients_alone = False

    def __init__(self):
        self.by_site = {}

    def consume(self, site, p, q, offsets):
        assert site.name not in self.by_site
        assert (p.shape[1], q.shape[1]) == (site.r, site.d)
        self.by_site[site.name] = segment_outer(p, q, offsets)


def batch_of(rows, side, pad=0):
    longest = max(map(len, rows))
    pads = [[pad] * (longest - len(row)) for row in rows]
    ids = [row + p if side == "right" else p + row for row, p in zip(rows, pads, strict=True)]
    mask = [
        [1] * len(row) + [0] * len(p) if side == "right" else [0] * len(p) + [1] * len(row)
        for row, p in zip(rows, pads, strict=True)
    ]
    return TokenBatch(torch.tensor(ids), torch.tensor(mask), None, pad, (1.0,))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt"])
def test_either_padding_gives_autograds_gradient_of_each_row(architecture, side):
    """Architectures whose positions are relative or read from the mask, as a padded batch gives no positions."""
    model = tiny_adapter(architecture, dtype=torch.float64)
    taps = find_lora_taps(model)
    rows = [[1, 5, 9, 7], [1, 6], [1, 11, 12, 13, 30, 31, 8]]
    gradients = Gradients()
    tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), taps)
    tapped.run(batch_of(rows, side), torch.ones_like, lambda: gradients)
    for number, row in enumerate(rows):
        reward = model(input_ids=torch.tensor([row])).logits[0, 0]
        for tap in taps:
            expected_a, expected_b = torch.autograd.grad(reward, tap.weights, retain_graph=True)
            found_a, found_b = (gradients.by_site[site.name][number] for site in tap.sites)
            for found, expected in ((found_a, expected_a), (found_b, expected_b.T)):
                assert (found - expected).abs().max() <= FLOAT32_INSIDE * expected.abs().max()


def state_of(model):
    return (
        [
            (name, module.training, len(module._forward_hooks), "forward" in vars(module))
            for name, module in model.named_modules()
        ],
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()],
        model.config.pad_token_id,
        [vars(module).get("_gradient_checkpointing_func") for module in model.modules()],
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_left_as_it_was_found(architecture):
    model = tiny_adapter(
        architecture, base=tiny_base(architecture, pad_token_id=None) if architecture == "llama" else None
    )
    model.get_base_model().gradient_checkpointing_enable()
    model.train()
    model.get_base_model().config.problem_type = None
    before = state_of(model)
    assert any(training for _, training, _, _ in before[0])
    rm = BayesianRewardModel(model, tiny_tokenizer(architecture)).fit(tiny_pairs(3), rank=4)
    rm.score([words(2)], [words(3)])
    assert state_of(model) == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_the_model_is_left_as_it_was_found_after_a_failure(failure):
    class Fails:
        gradients_alone = False

        def consume(self, site, p, q, offsets):
            raise failure("in the middle of a backward pass")

    model = tiny_adapter("llama").train()
    before = state_of(model)
    tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), find_lora_taps(model))
    with pytest.raises(failure):
        tapped.run(batch_of([[1, 2, 3]], "right"), torch.ones_like, Fails)
    assert state_of(model) == before


def test_gradient_checkpointing_recomputes_the_layers():
    model = tiny_adapter("llama")
    calls = []
    layer = model.get_base_model().model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(3), rank=4)
    calls.clear()
    rm.score([words(2)], [words(3)])
    assert len(calls) == 1
    model.get_base_model().gradient_checkpointing_enable()
    rm.score([words(2)], [words(3)])
    assert len(calls) == 3


def test_no_parameter_gets_a_gradient_and_inference_mode_is_no_obstacle():
    model = tiny_adapter("llama").train()
    with torch.inference_mode():
        rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(3), rank=4)
        assert rm.score([words(2)], [words(3)]).variance[0] > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("dtype", "relative"), [(torch.bfloat16, 0.1), (torch.float16, 0.1 / 8)])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_half_precision_models(architecture, dtype, relative):
    """Unit roundoffs of 2⁻⁹ and 2⁻¹² through some tens of roundings, squared in a variance: 50 roundoffs."""

    def base(dtype):
        return scaled(tiny_base(architecture), 1 / 3).to(dtype)

    full = BayesianRewardModel(tiny_adapter(architecture, base=base(torch.float32)), tiny_tokenizer(architecture))
    full.fit(tiny_pairs(), rank=6, prior_precision=0.5)
    half = BayesianRewardModel(tiny_adapter(architecture, base=base(dtype)), tiny_tokenizer(architecture))
    half.posterior = full.posterior
    prompts, responses = [words(3, 1)] * 6, [words(3 + i, i) for i in range(6)]
    expected, found = full.score(prompts, responses), half.score(prompts, responses)
    assert found.variance.dtype == torch.float32
    error = ((found.variance - expected.variance).norm() / expected.variance.norm()).item()
    assert error < relative


def scaled(model, factor):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model


@pytest.mark.parametrize("head_size", [3e-7, 30.0])
def test_float16_gradients_neither_underflow_nor_overflow(head_size):
    """Unscaled, the smaller head's gradients are subnormal or zero; scaled by 2¹⁴, the larger one's overflow."""
    variances = []
    for dtype in (torch.float32, torch.float16):
        base = scaled(tiny_base("llama"), 1 / 3)
        with torch.no_grad():
            base.score.weight.mul_(head_size / base.score.weight.std())
        base = base.to(torch.float16).to(dtype)  # the same weights in either, however few of their digits are left
        rm = BayesianRewardModel(tiny_adapter("llama", base=base), tiny_tokenizer("llama"))
        # Under so large a prior precision the variance is the squared gradient divided by it.
        rm.fit(tiny_pairs(3), rank=4, prior_precision=1e6)
        variances.append(rm.score([words(4, 1), words(3, 2)], [words(5, 3), words(2, 4)]).variance)
    full, half = variances
    assert full.min() > 0
    # Lost or infinite gradients are off by everything; rounding through two layers of float16 is not off by a tenth.
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.0)


def test_layers_called_twice_or_on_other_tokens_are_refused():
    model = tiny_adapter("llama")
    attention = model.get_base_model().model.layers[0].self_attn
    attention.k_proj = attention.v_proj
    with pytest.raises(InputError, match=r"exactly once: .*layers\.0\.self_attn\.k_proj"):
        BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(3))


def test_shared_inputs_are_found():
    model = tiny_adapter("llama")
    taps = find_lora_taps(model)
    tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), taps)
    shared = tapped.shared_inputs(batch_of([[1, 2, 3]], "right"))
    layer = "model.layers.0"
    assert shared[f"{layer}.self_attn.v_proj"] == f"{layer}.self_attn.q_proj"
    assert shared[f"{layer}.mlp.up_proj"] == f"{layer}.mlp.gate_proj"
    assert shared[f"{layer}.mlp.gate_proj"] == f"{layer}.mlp.gate_proj"
    assert len(set(shared.values())) == 4
    assert all(isinstance(tap.layer, LoraLayer) for tap in taps)


class Pointers(Gradients):
    gradients_alone = True

    def __init__(self):
        super().__init__()
        self.q = {}

    def consume(self, site, p, q, offsets):
        super().consume(site, p, q, offsets)
        self.q[site.name] = q.data_ptr()
        self.tokens = q.shape[0]


def test_a_consumer_of_gradients_alone_gets_them_without_a_copy():
    model = tiny_adapter("llama")
    rows = [[1, 5, 9, 7], [1, 6], [1, 11, 12]]
    alone, whole = Pointers(), Gradients()
    tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), find_lora_taps(model))
    for consumer in (alone, whole):
        tapped.run(batch_of(rows, "right"), torch.ones_like, lambda one=consumer: one)
    layer = "model.layers.0"
    assert alone.tokens == 3 * 4
    assert len({alone.q[f"{layer}.self_attn.{name}.lora_A"] for name in ("q_proj", "k_proj", "v_proj")}) == 1
    assert len({alone.q[f"{layer}.mlp.{name}.lora_A"] for name in ("gate_proj", "up_proj")}) == 1
    for name, gradient in whole.by_site.items():
        torch.testing.assert_close(alone.by_site[name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())


def test_nothing_is_kept_for_the_layers_under_the_first_adapted_one():
    kept = []
    for layers in ([0, 1], [1]):
        model = tiny_adapter("llama", layers_to_transform=layers)
        weights = {id(parameter) for parameter in model.parameters()}
        tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), find_lora_taps(model))
        numbers = []

        def pack(tensor, weights=weights, numbers=numbers):
            if id(tensor) not in weights:
                numbers.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tapped.run(batch_of([[1, 5, 9, 7]], "right"), torch.ones_like, Gradients)
        kept.append(sum(numbers))
    assert kept[1] < 0.6 * kept[0]


class HiddenReadout:
    """Three scalars a row of a model without a head: a number at its first, second and last token."""

    reads_one_token = False

    def scalars(self, output, batch):
        hidden = output.last_hidden_state
        rows, last = torch.arange(len(hidden)), batch.attention_mask.sum(1) - 1
        weights = torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype)
        found = torch.stack([hidden[:, 0] @ weights, hidden[:, 1] @ weights.flip(0), hidden[rows, last] @ weights], 1)
        return found.to(torch.promote_types(found.dtype, torch.float32))


class LogitsReadout:
    """All logits of a classifier, each a scalar of its own."""

    reads_one_token = True

    def scalars(self, output, batch):
        return output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))


def of_three_scalars(kind, dtype=torch.float64):
    if kind == "logits":
        model = tiny_adapter("llama", dtype=dtype, num_labels=3)
        return Forward(model, LogitsReadout())
    base = tiny_base("llama", dtype=dtype).model
    return Forward(tiny_adapter("llama", base=base, dtype=dtype, task_type="FEATURE_EXTRACTION"), HiddenReadout())


def batch_of_examples(rows, signs):
    plain = batch_of(rows, "right")
    return TokenBatch(plain.input_ids, plain.attention_mask, None, plain.pad_token_id, signs)


ROWS = [[2, 5, 9, 7], [3, 6], [4, 11, 12, 13, 30, 31, 8], [5, 20, 21]]


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("signs", [(1.0,), (1.0, -1.0)], ids=["rows", "pairs"])
@pytest.mark.parametrize("kind", ["logits", "hidden"])
def test_each_of_three_scalars_has_its_own_backward_pass(kind, signs, checkpoints):
    forward = of_three_scalars(kind)
    taps = find_lora_taps(forward.model)
    before = state_of(forward.model)
    made = []

    def make_consumer():
        made.append(Gradients())
        return made[-1]

    def cotangent(scalars):
        return 2 * scalars  # so that what is seen depends on which scalar the pass is of

    tapped = TappedModel(forward, taps)
    scalars, consumers = tapped.run(batch_of_examples(ROWS, signs), cotangent, make_consumer, checkpoints=checkpoints)
    assert state_of(forward.model) == before
    assert consumers == made
    assert scalars.shape == (len(ROWS) // len(signs), 3)
    assert not scalars.requires_grad
    for number in range(len(scalars)):
        rows = ROWS[number * len(signs) : (number + 1) * len(signs)]
        found = [forward(batch_of([row], "right"))[0] for row in rows]
        expected = sum(sign * one for sign, one in zip(signs, found, strict=True))
        torch.testing.assert_close(scalars[number], expected.detach(), rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
        for column, consumer in enumerate(consumers):
            weights = [weight.requires_grad_() for tap in taps for weight in tap.weights]
            own = torch.autograd.grad(expected[column].square(), weights, retain_graph=True)
            # A first token's query changes nothing: its gradient is rounding, and the others' the scale to err by.
            largest = max(gradient.abs().max() for gradient in own)
            for site, gradient in zip(tapped.sites, own, strict=True):
                seen = consumer.by_site[site.name][number]
                seen = seen.T if site.name.endswith("lora_B") else seen
                assert (seen - gradient).abs().max() <= FLOAT32_INSIDE * largest, (site.name, column)


@pytest.mark.parametrize("kind", ["logits", "hidden"])
def test_three_scalars_in_float16_are_scaled_each_by_itself(kind):
    """The last one's backward pass overflows at the first scale, which the first one's gradients need."""
    gradients = []
    for dtype in (torch.float32, torch.float16):
        forward = of_three_scalars(kind, torch.float32)
        scaled(forward.model, 1 / 3)
        forward.model.to(torch.float16).to(dtype)
        tapped = TappedModel(forward, find_lora_taps(forward.model))
        sizes = iter([1e-4, 1.0, 300.0])

        def cotangent(scalars, sizes=sizes):
            return torch.full_like(scalars, next(sizes))

        _, consumers = tapped.run(batch_of(ROWS, "right"), cotangent, Gradients)
        gradients.append(consumers)
    for full, half in zip(*gradients, strict=True):
        expected, found = (torch.cat([g.flatten() for g in one.by_site.values()]) for one in (full, half))
        assert (found - expected).norm() < 0.1 * expected.norm()


def test_a_pass_over_many_batches_yields_every_scalar_and_its_consumers():
    forward = of_three_scalars("hidden", torch.float32)
    passes = Passes(
        TappedModel(forward, find_lora_taps(forward.model)), Collator(0, 44, torch.device("cpu")), TokenBudget(14)
    )
    examples = [TokenizedRow(row, None, False) for row in ROWS]
    found = list(passes.over(examples, torch.ones_like, Gradients))
    assert len(found) > 1
    assert sorted(i for batch in found for i in batch.positions) == [0, 1, 2, 3]
    for batch in found:
        assert batch.scalars.shape == (len(batch.positions), 3)
        assert len({id(consumer) for consumer in batch.consumers}) == 3
        for position, scalars in zip(batch.positions, batch.scalars, strict=True):
            alone = forward.scalars(batch_of([ROWS[position]], "right"))[0]
            torch.testing.assert_close(scalars, alone, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="too many values"):
            batch.consumer  # noqa: B018

    class Total:
        gradients_alone = True

        def __init__(self):
            self.by_site = {}

        def consume(self, site, p, q, offsets):
            seen = segment_outer(p, q, offsets).sum(0)
            self.by_site[site.name] = self.by_site.get(site.name, 0) + seen

    scalars, total = passes.gather(examples, torch.ones_like, Total)  # one consumer of all scalars' gradients
    assert scalars.shape == (4, 3)
    for name, gradient in total.by_site.items():
        expected = sum(consumer.by_site[name].sum(0) for batch in found for consumer in batch.consumers)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_without_taps_there_is_no_backward_pass():
    tapped = TappedModel(Forward(tiny_base("llama"), PooledReadout(torch.ones(1))), [])
    consumer = Gradients()
    scalars, consumers = tapped.run(batch_of(ROWS, "right"), torch.ones_like, lambda: consumer)
    assert scalars.shape == (4, 1)
    assert consumers == [consumer]
    assert consumer.by_site == {}


def gradients_of(model):
    gradients = Gradients()
    tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), find_lora_taps(model))
    tapped.run(batch_of([[1, 5, 9, 7]], "right"), torch.ones_like, lambda: gradients)
    return gradients.by_site


def assert_autograds_gradients(model):
    found = gradients_of(model)
    taps = find_lora_taps(model)
    reward = model(input_ids=torch.tensor([[1, 5, 9, 7]])).logits[0, 0]
    expected = torch.autograd.grad(reward, [weight.requires_grad_() for tap in taps for weight in tap.weights])
    for site, gradient in zip([site.name for tap in taps for site in tap.sites], expected, strict=True):
        seen = found[site][0].T if site.endswith("lora_B") else found[site][0]
        assert (seen - gradient).abs().max() <= FLOAT32_INSIDE * gradient.abs().max(), site


def change_output(module, args, output):
    return 3 * output + 1


@pytest.mark.parametrize("side", ["output", "input"])
def test_hooks_of_others_change_the_reward_and_its_gradient_alike(side):
    model = tiny_adapter("llama", dtype=torch.float64)
    layer = find_lora_taps(model)[3].layer
    if side == "output":
        layer.register_forward_hook(change_output)
    else:
        layer.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    assert_autograds_gradients(model)


@pytest.mark.parametrize("matrix", ["lora_A", "lora_B"])
def test_hooks_inside_of_an_adapter_are_refused(matrix):
    model = tiny_adapter("llama")
    getattr(find_lora_taps(model)[3].layer, matrix)["default"].register_forward_hook(change_output)
    with pytest.raises(InputError, match=r"hooks of others .*: model\.layers\.0\.mlp\.gate_proj"):
        gradients_of(model)


def test_a_forward_that_others_have_put_on_an_adapters_layer_is_called():
    model = tiny_adapter("llama", dtype=torch.float64)
    for tap in find_lora_taps(model):
        plain = tap.layer.forward
        tap.layer.forward = lambda x, plain=plain: plain(x)
    assert_autograds_gradients(model)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda layer, x: 2 * type(layer).forward(layer, x), "whose replaced forward does other than add the adapter"),
        (lambda layer, x: layer.base_layer(x), "whose forward does not call their adapter"),
    ],
)
def test_a_forward_that_changes_what_the_adapter_does_is_refused(forward, message):
    model = tiny_adapter("llama")
    layer = find_lora_taps(model)[3].layer
    layer.forward = partial(forward, layer)
    with pytest.raises(InputError, match=rf"{message}.*: model\.layers\.0\.mlp\.gate_proj"):
        gradients_of(model)
