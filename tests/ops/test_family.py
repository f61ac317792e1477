"""Every operation against its formula, written out segment by segment in float64."""

import pytest
import torch
from cases import CASES

from bayesrm_fast import ops

# float32: sums of up to some hundred products, unit roundoff 6e-8. bfloat16: its products are exact in float32, so the
# inputs' own values, not rounding, are what the reference sees too.
BUDGET = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def inputs(case, dtype, seed=0):
    lengths, r, d, k = CASES[case]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    total = sum(lengths)
    p, q = normal(total, r).to(dtype), normal(total, d).to(dtype)
    offsets = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    basis_p, basis_q = (torch.linalg.qr(normal(n, n)).Q.contiguous().to(wide) for n in (r, d))
    return p, q, offsets, basis_p, basis_q[:, :k].contiguous(), normal(r, k).abs().to(wide), normal(r).abs().to(wide)


def gradients(p, q, offsets):
    p, q = p.double(), q.double()
    return torch.stack(
        [sum((torch.outer(p[t], q[t]) for t in range(a, b)), torch.zeros(p.shape[1], q.shape[1]).double())
         for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
        or [torch.zeros(p.shape[1], q.shape[1]).double()]
    )[: len(offsets) - 1]  # fmt: skip


def close(found, expected, dtype):
    scale = max(float(expected.abs().max()), 1e-300) if expected.numel() else 1.0
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max().item() <= BUDGET[dtype] * scale if expected.numel() else True


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_operations_equal_their_formulas(case, dtype):
    p, q, offsets, v, u, weight, residual = inputs(case, dtype)
    g = gradients(p, q, offsets)
    rotated = v.double().T @ g
    c = rotated @ u.double()
    outside = (rotated - c @ u.double().T).square().sum(-1)
    variance = (weight.double() * c.square()).sum((1, 2)) + outside @ residual.double()

    close(ops.segment_outer(p, q, offsets), g, dtype)
    found_c, found_outside = ops.kron_project(p, q, offsets, v, u)
    close(found_c, c, dtype)
    assert (found_outside >= 0).all()
    # What is left of a row is small beside the row, whose size sets the rounding.
    assert (
        (found_outside.double() - outside).abs().max()
        <= BUDGET[dtype] * (rotated.square().sum(-1).max() if len(g) else 1)
        if len(g)
        else True
    )
    close(ops.kron_variance(p, q, offsets, v, u, weight, residual), variance, dtype)
    moment = torch.ones(q.shape[1], q.shape[1], dtype=torch.float64)
    close(ops.second_moment(q, moment), 1 + q.double().T @ q.double(), dtype)
    sketch = torch.zeros(u.shape, dtype=torch.float64)
    close(ops.second_moment(q, sketch, u), q.double().T @ (q.double() @ u.double()), dtype)


def test_a_gradient_almost_inside_the_basis_keeps_its_digits():
    """99.99 % of ‖G‖² inside span(U), and outside a weight of 10⁶ times the mean: a difference of norms fails this."""
    generator = torch.Generator().manual_seed(0)
    r, d, k, length = 8, 256, 16, 64
    v = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q.contiguous()
    u = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q.contiguous()
    p = torch.randn(length, r, generator=generator)
    inside = torch.randn(length, k, generator=generator) @ u.T
    stray = torch.randn(length, d, generator=generator)
    stray = stray - stray @ u @ u.T
    q = inside / inside.norm() * 0.9999**0.5 + stray / stray.norm() * 0.0001**0.5
    weight, residual = torch.ones(r, k), torch.full((r,), 1e6)
    offsets = torch.tensor([0, length])
    g = p.double().T @ q.double()
    rotated = v.double().T @ g
    c = rotated @ u.double()
    exact = (c.square().sum() + 1e6 * (rotated - c @ u.double().T).square().sum()).item()
    found = ops.kron_variance(p, q, offsets, v, u, weight, residual).item()
    assert found == pytest.approx(exact, rel=1e-4)


def test_two_runs_are_bitwise_equal():
    arguments = inputs("ragged", torch.float32)
    assert torch.equal(ops.kron_variance(*arguments), ops.kron_variance(*arguments))


def test_non_contiguous_inputs_give_the_same():
    p, q, offsets, *rest = inputs("ragged", torch.float32)
    strided = [torch.stack([x, x], -1)[..., 0] for x in (p, q)]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        ops.kron_variance(*strided, offsets, *rest), ops.kron_variance(p, q, offsets, *rest), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 8)}, r"q must have shape \[21, \*\]"),
        ({"p": torch.zeros(21)}, r"p must have shape"),
        ({"p": torch.zeros(21, 4, dtype=torch.int64)}, "p must be floating point"),
        ({"offsets": torch.tensor([0, 5, 3, 21])}, "must not decrease"),
        ({"offsets": torch.tensor([0, 22])}, "from 0 to 21"),
        ({"offsets": torch.tensor([1, 21])}, "from 0 to 21"),
        ({"offsets": torch.tensor([0, 21], dtype=torch.int32)}, "int64"),
        ({"basis_p": torch.zeros(3, 3)}, "basis_p"),
        ({"basis_q": torch.zeros(32, 8)}, "basis_q"),
        ({"weight": torch.zeros(4, 7)}, "weight"),
        ({"residual": torch.zeros(5)}, "residual"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    names = ["p", "q", "offsets", "basis_p", "basis_q", "weight", "residual"]
    arguments = dict(zip(names, inputs("ragged", torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ops.kron_variance(**arguments)
