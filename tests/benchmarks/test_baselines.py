"""What scoring is compared with computes the same rewards."""

import torch

from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.text.batches import plan_batches
from benchmarks.baselines import empty_pass, our_batches, plain_forward
from benchmarks.shapes import LlamaShape, passes_of, random_pairs, random_rows


def test_the_plain_forward_gives_our_rewards_in_the_order_of_its_batches():
    model = LlamaShape(64, 1).model()
    passes = passes_of(model, batch_tokens=64)
    rows = random_rows([9, 30, 17, 25, 12])
    plan = plan_batches(rows, 64)
    assert len(plan) > 1
    plain = plain_forward(model, our_batches(passes, rows))
    order = [position for batch in plan for position in batch]
    torch.testing.assert_close(plain, rewards_of(passes, rows)[order], rtol=1e-4, atol=1e-6)


def test_an_empty_pass_takes_rows_and_pairs():
    passes = passes_of(LlamaShape(64, 1).model(), batch_tokens=64)
    empty_pass(passes, random_rows([9, 30]))
    empty_pass(passes, random_pairs(2, 9), gradients_alone=False)
