"""What a pass keeps alive once it is over."""

import contextlib
import gc
import weakref

import pytest
import torch
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.lora import find_lora_taps
from bayesrm_fast.model.readout import PooledReadout
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.examples import TokenizedRow


class Watched:
    """A consumer that keeps what it gets; `fails` at its first site, if it is to."""

    gradients_alone = True

    def __init__(self, fails=False):
        self.kept, self.fails = [], fails

    def consume(self, site, p, q, offsets):
        if self.fails:
            raise RuntimeError("in the middle of a backward pass")
        self.kept.append((p, q))


def dead_when_dropped(run, make_consumer=Watched):
    """Whether a pass leaves nothing behind that keeps its consumer, nor what the model's layers were called on."""
    made, inputs = [], []

    def consumer():
        one = make_consumer()
        made.append(weakref.ref(one))
        return one

    def saw(module, args):
        inputs.append(weakref.ref(args[0]))

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            run(consumer, saw)
        return made and inputs and not any(one() is not None for one in made + inputs)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("fails", ["", "forward", "backward"])
def test_a_pass_keeps_neither_its_consumer_nor_its_activations(dtype, checkpoints, fails):
    model = tiny_adapter("llama", base=tiny_base("llama", dtype=dtype))
    batch = Collator(0, 40, torch.device("cpu"))([TokenizedRow([1, 2, 3], None, False)])
    tapped = TappedModel(Forward(model, PooledReadout(torch.ones(1))), find_lora_taps(model))

    def run(consumer, saw):
        inner = tapped.taps[-1].module
        handles = [inner.register_forward_pre_hook(saw)]
        if fails == "forward":

            def fail(*_):
                raise RuntimeError("in the middle of a forward pass")

            handles.append(model.get_base_model().score.register_forward_pre_hook(fail))
        try:
            tapped.run(batch, torch.ones_like, consumer, checkpoints=checkpoints)
        finally:
            for handle in handles:
                handle.remove()

    assert dead_when_dropped(run, lambda: Watched(fails == "backward"))


@pytest.mark.parametrize("structure", ["ggn", "kfac"])
def test_a_pass_over_many_examples_keeps_no_consumer(structure):
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), max_batch_tokens=30)
    rm.fit(tiny_pairs(3), structure=structure, rank=4)
    passes, pairs = rm.passes(), rm.tokenize_pairs(tiny_pairs(6))

    def run(consumer, saw):
        handle = passes.tapped.taps[0].module.register_forward_pre_hook(saw)
        passes.gather(pairs, torch.ones_like, consumer)
        for _ in passes.over(pairs, torch.ones_like, consumer):
            pass
        handle.remove()

    for make_consumer in (Watched, rm.posterior.variance_consumer, rm.posterior.feature_consumer):
        assert dead_when_dropped(run, make_consumer)
