"""What the operations must give, in float64: inputs, the formulas, and how far a result may be from them."""

import torch
from cases import CASES, GGN_CASES

# Relative to the largest element. float32: sums of up to a thousand products with unit roundoff 6e-8, in blocks.
# bfloat16 and float16: their products are exact in float32, and the reference sees the same values.
BUDGET = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}

HALVES = 6 * 2**-18
"""Budget of the CUDA kernels: p, G and U are sums of two bfloat16 values (2⁻¹⁸ each), and what they give is squared."""


def made(lengths, r, d, k, dtype, seed=0, p_dtype=None):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    total = sum(lengths)
    p, q = normal(total, r).to(p_dtype or dtype), normal(total, d).to(dtype)
    offsets = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    basis_p = torch.linalg.qr(normal(r, r)).Q.contiguous().to(wide)
    basis_q = torch.linalg.qr(normal(d, k)).Q.contiguous().to(wide)
    return p, q, offsets, basis_p, basis_q, normal(r, k).abs().to(wide), normal(r).abs().to(wide)


def inputs(case, dtype):
    return made(*CASES[case], dtype)


def formulas(p, q, offsets, v, u, weight, residual):
    """Gradients, coordinates, squared norms outside the basis, and variances, in float64."""
    p, q, v, u = (x.double() for x in (p, q, v, u))
    bounds = offsets.tolist()
    g = torch.zeros(len(bounds) - 1, p.shape[1], q.shape[1], dtype=torch.float64, device=p.device)
    for n, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        g[n] = torch.einsum("ti,tj->ij", p[start:stop], q[start:stop])
    rotated = v.T @ g
    c = rotated @ u
    outside = (rotated - c @ u.T).square().sum(-1)
    return g, rotated, c, outside, (weight.double() * c.square()).sum((1, 2)) + outside @ residual.double()


def close(found, expected, dtype, scale=None, budget=None):
    assert found.shape == expected.shape
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if not expected.numel():
        return
    error = found.double() - expected
    budget = budget or BUDGET[dtype]
    scale = max(float((expected if scale is None else scale).abs().max()), 1e-300)
    assert error.abs().max().item() <= budget * scale
    # Rounding has no preferred sign: a bias over many elements shows a sum that loses its low digits.
    assert abs(error.mean().item()) <= budget / min(5, error.numel() ** 0.5) * scale


def almost_inside(dtype):
    """99.99 % of ‖G‖² inside span(U), and outside a weight of 10⁶ times the mean: arguments, and the exact variance."""
    generator = torch.Generator().manual_seed(0)
    r, d, k, length = 8, 256, 16, 64
    v = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q.contiguous()
    u = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q.contiguous()
    p = torch.randn(length, r, generator=generator)
    inside = torch.randn(length, k, generator=generator) @ u.T
    stray = torch.randn(length, d, generator=generator)
    stray = stray - stray @ u @ u.T
    q = inside / inside.norm() * 0.9999**0.5 + stray / stray.norm() * 0.0001**0.5
    arguments = (p.to(dtype), q.to(dtype), torch.tensor([0, length]), v, u, torch.ones(r, k), torch.full((r,), 1e6))
    return arguments, formulas(*arguments)[-1].item()


def ggn_made(lengths, r, d, k, dtype, basis_dtype=None):
    """p, q, offsets, and k directions `[k, r, d]` that are orthonormal before they are rounded to `basis_dtype`.

    In int8 each is as many times longer as it takes for its largest number to be 127.
    """
    p, q, offsets, *_ = made(lengths, r, d, 0, dtype)
    normal = torch.randn(r * d, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bases = torch.linalg.qr(normal).Q.T.reshape(k, r, d).contiguous()
    if basis_dtype == torch.int8:
        bases = (bases / bases.abs().amax((1, 2), keepdim=True) * 127).round()
    return p, q, offsets, bases.to(basis_dtype or wide)


def ggn_inputs(case, dtype, basis_dtype=None):
    return ggn_made(*GGN_CASES[case], dtype, basis_dtype)


def ggn_formulas(p, q, offsets, bases):
    """Products with the bases, and squared norms, in float64."""
    _, r, d = bases.shape
    nothing = (torch.eye(r), torch.zeros(d, 0), torch.zeros(r, 0), torch.zeros(r))
    g = formulas(p, q, offsets, *(x.to(p.device) for x in nothing))[0]
    return torch.einsum("nij,kij->nk", g, bases.double()), g.square().sum((1, 2))


def ggn_of_unit_bases(results, bases):
    """Those of the bases as vectors of norm 1, which they are but for their rounding where they are floating."""
    products, squared_norm = results
    return (products / bases.flatten(1).double().norm(dim=1) if bases.dtype == torch.int8 else products), squared_norm


def ggn_close(found, expected, dtype, budget=None):
    """Each gradient's rounding, which its norm sets, is all that a product may be off by."""
    (products, squared_norm), (expected_products, expected_norm) = found, expected
    assert products.shape == expected_products.shape
    assert squared_norm.shape == expected_norm.shape
    assert products.dtype == squared_norm.dtype == torch.float64
    budget = budget or (1e-12 if dtype == torch.float64 else 2e-7)
    assert ((products - expected_products).abs() <= budget * expected_norm.sqrt()[:, None]).all()
    assert ((squared_norm - expected_norm).abs() <= 2 * budget * expected_norm).all()


def ggn_outside(products, squared_norm, bases):
    """`‖G‖²` less what is in the span of the bases, `[N]`; their roundings have made them a little oblique."""
    flat = bases.flatten(1).double()
    return squared_norm - (products * torch.linalg.solve(flat @ flat.T, products.T).T).sum(1)


def ggn_almost_inside(dtype, basis_dtype, directions):
    """99.99 % of ‖G‖² in the span of the bases, along so many of their directions: arguments, and what is outside."""
    generator = torch.Generator().manual_seed(0)
    r, d, k, length = 8, 256, 16, 64
    bases = ggn_made([], r, d, k, torch.float32, basis_dtype)[-1]
    flat = bases.flatten(1).double()
    inside = torch.randn(directions, generator=generator, dtype=torch.float64) @ flat[:directions]
    stray = torch.randn(r * d, generator=generator, dtype=torch.float64)
    stray = stray - flat.T @ torch.linalg.solve(flat @ flat.T, flat @ stray)
    gradient = (inside / inside.norm() * 0.9999**0.5 + stray / stray.norm() * 0.0001**0.5).view(r, d)
    p = torch.randn(length, r, generator=generator, dtype=torch.float64).to(dtype)
    q = p.double() @ torch.linalg.solve(p.double().T @ p.double(), gradient)
    arguments = p, q.to(dtype), torch.tensor([0, length]), bases
    return arguments, ggn_outside(*ggn_formulas(*arguments), bases).item()
