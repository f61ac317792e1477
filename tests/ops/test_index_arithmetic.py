"""Elements beyond 2³¹, on a CPU: an array whose untouched pages cost nothing, of which a launcher reads the end."""

import math

import numpy as np
import pytest
import torch
from formulas import close, formulas, ggn_close, ggn_formulas, ggn_made, made

from bayesrm_fast.ops.backends import BACKENDS, use_backend
from bayesrm_fast.ops.cpu.binding import missing

D = 264
TOKENS = 2**31 // D + 100


@pytest.fixture(scope="module")
def far():
    """p and q of which only the last tokens are there, and the arguments of the same tokens alone."""
    arguments = made([3, 60], 4, D, 8, torch.bfloat16)
    far_arrays = []
    for x in arguments[:2]:
        try:
            memory = np.zeros((TOKENS, x.shape[1]), dtype=np.uint16)
        except MemoryError:
            pytest.skip("this system does not lend memory that is not there")
        memory[-x.shape[0] :] = x.view(torch.uint16).numpy()
        far_arrays.append(torch.from_numpy(memory).view(torch.bfloat16))
    offsets = arguments[2] + TOKENS - 63
    assert math.prod(far_arrays[1].shape) > 2**31
    return (*far_arrays, offsets, *arguments[3:]), arguments


# The faces of the operations check that offsets begin at 0; the launchers below them do not, and read no other token.
@pytest.mark.skipif(missing is not None, reason=str(missing))
def test_cpu(far):
    from bayesrm_fast.ops.cpu.kron_variance import kron_variance

    close(kron_variance(*far[0]), formulas(*far[1])[-1], torch.bfloat16)


@pytest.mark.skipif(BACKENDS["triton"].unavailable() is not None, reason=str(BACKENDS["triton"].unavailable()))
def test_triton(far):
    from bayesrm_fast.ops.triton.ggn_project import ggn_project
    from bayesrm_fast.ops.triton.kron_variance import kron_variance
    from bayesrm_fast.ops.triton.segment_outer import segment_outer

    bases = ggn_made([], 4, D, 8, torch.bfloat16)[-1]
    with use_backend("triton"):
        close(kron_variance(*far[0]), formulas(*far[1])[-1], torch.bfloat16)
        close(segment_outer(*far[0][:3]), formulas(*far[1])[0], torch.bfloat16)
        for cuts in ([], [3, 7, 20]):  # a segment a program, and their gradients together
            bounds = torch.tensor([0, *cuts, 63])
            arguments = (*far[1][:2], bounds, bases)
            found = ggn_project(*far[0][:2], bounds + TOKENS - 63, bases)
            ggn_close(found, ggn_formulas(*arguments), torch.bfloat16)


@pytest.mark.skipif(BACKENDS["triton"].unavailable() is not None, reason=str(BACKENDS["triton"].unavailable()))
@pytest.mark.parametrize("k", [0, 9])
def test_gradients_that_triton_writes_in_several_turns_give_what_they_give_together(monkeypatch, k):
    from bayesrm_fast.ops.triton import ggn_project as launcher

    arguments = ggn_made([5, 0, 17, 3, 9, 1, 30], 3, 70, k, torch.bfloat16, torch.bfloat16)
    with use_backend("triton"):
        together = launcher.ggn_project(*arguments)
        monkeypatch.setattr(launcher, "MOST_GRADIENTS", 2 * 3 * 70)
        in_turns = launcher.ggn_project(*arguments)
    for one, other in zip(together, in_turns, strict=True):
        assert torch.equal(one, other)
    ggn_close(in_turns, ggn_formulas(*arguments), torch.bfloat16)
