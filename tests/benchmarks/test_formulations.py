"""The baselines in plain torch that the kernels are compared with."""

import pytest
import torch
from formulas import almost_inside, ggn_almost_inside, ggn_outside

from bayesrm_fast.ops import ggn_project, kron_variance
from benchmarks.formulations import (
    GGN_NO_RIVALS,
    GGN_PLAIN_TORCH,
    LOSES_DIGITS,
    PLAIN_TORCH,
    ggn_inputs,
    inputs,
    rectangles,
)


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


def of_plain_torch(name, p, q, bases):
    return GGN_PLAIN_TORCH[name](p, q, bases.double() if name == "held_in_float64" else bases)


@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GGN_PLAIN_TORCH)
def test_the_baselines_of_ggn_project_are_right(name, basis_dtype):
    arguments = p, q, _, bases = ggn_inputs(2, 3, 1000, 5, basis_dtype)
    found = of_plain_torch(name, p.view(2, 128, 3), q.view(2, 128, 1000), bases)
    expected = ggn_project(*arguments)
    scale = float(expected[1].max() ** 0.5)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", GGN_PLAIN_TORCH)
def test_a_baseline_of_ggn_project_that_loses_digits_is_no_rival(name):
    (p, q, _, bases), exact = ggn_almost_inside(torch.float32, torch.float32, 1)
    found = ggn_outside(*(x.double() for x in of_plain_torch(name, p[None], q[None], bases)), bases).item()
    assert name in GGN_NO_RIVALS or found == pytest.approx(exact, rel=1e-4)
    assert (abs(found / exact - 1) > 1e-4) == (name == "in_float32")
