"""The baselines in plain torch that the kernels are compared with."""

import pytest
import torch
from formulas import almost_inside

from bayesrm_fast.ops import kron_variance
from benchmarks.formulations import LOSES_DIGITS, PLAIN_TORCH, inputs, rectangles


@pytest.mark.parametrize("lengths", [[5, 0, 12], [6, 6, 6]], ids=["ragged", "even"])
@pytest.mark.parametrize("name", PLAIN_TORCH)
def test_the_baselines_of_the_kernels_are_right(name, lengths):
    arguments = p, q, _, *constants = inputs(lengths, 3, 20, 4, torch.float32, torch.float32)
    found = PLAIN_TORCH[name](*rectangles(p, q, lengths), *constants)
    torch.testing.assert_close(found, kron_variance(*arguments), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", PLAIN_TORCH)
def test_a_baseline_that_loses_digits_is_no_rival(name):
    (p, q, offsets, *constants), exact = almost_inside(torch.float32)
    found = PLAIN_TORCH[name](*rectangles(p, q, offsets.diff().tolist()), *constants).item()
    assert (abs(found / exact - 1) > 1e-4) == (name in LOSES_DIGITS[torch.float32])
