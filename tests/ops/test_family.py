"""Every operation, by every backend that serves it, against its formula in float64."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from cases import CASES, GGN_CASES
from formulas import (
    BUDGET,
    almost_inside,
    close,
    formulas,
    ggn_almost_inside,
    ggn_close,
    ggn_formulas,
    ggn_inputs,
    ggn_made,
    ggn_of_unit_bases,
    ggn_outside,
    inputs,
    made,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_states import STATES

from bayesrm_fast import ops
from bayesrm_fast.ops.backends import BACKENDS, PREFERENCE, choose, refusal, use_backend

OPERATORS = {
    "kron_variance": inputs,
    "kron_project": lambda *a: inputs(*a)[:5],
    "ggn_project": ggn_inputs,
    "segment_outer": lambda *a: inputs(*a)[:3],
}
"""The arguments of each for a case and a dtype."""


@pytest.fixture(params=[*PREFERENCE["cpu"], "triton"])
def backend(request):
    reason = BACKENDS[request.param].unavailable()
    if request.param == "triton" and torch.cuda.is_available():
        reason = "where there is a GPU, triton's tests are in tests/gpu"
    if reason is not None:
        pytest.skip(reason)
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def fresh_memory_is_nan():
    """Whatever a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def served(backend, operation, tensors):
    if backend == "triton" and tensors[1].shape[1] > 10_000:
        pytest.skip("the interpreter takes half a minute for as many columns, and no block of triton's depends on them")
    if refusal(backend, operation, tensors) is not None:
        with pytest.raises(ValueError, match=f"{backend} cannot serve {operation}: "):
            choose(operation, tensors)
        return False
    assert choose(operation, tensors) == backend
    return True


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_segment_outer(backend, case, dtype):
    arguments = inputs(case, dtype)
    if served(backend, "segment_outer", arguments[:3]):
        close(ops.segment_outer(*arguments[:3]), formulas(*arguments)[0], dtype)


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kron_project(backend, case, dtype):
    arguments = inputs(case, dtype)
    _, rotated, c, outside, _ = formulas(*arguments)
    if served(backend, "kron_project", arguments[:5]):
        found_c, found_outside = ops.kron_project(*arguments[:5])
        close(found_c, c, dtype)
        assert (found_outside >= 0).all()
        # What is left of a row is small beside the row, whose size sets the rounding.
        close(found_outside, outside, dtype, scale=rotated.square().sum(-1))


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kron_variance(backend, case, dtype):
    arguments = inputs(case, dtype)
    if served(backend, "kron_variance", arguments):
        found = ops.kron_variance(*arguments)
        close(found, formulas(*arguments)[-1], dtype)
        assert (found >= 0).all()


@pytest.mark.parametrize("basis_dtype", [None, torch.bfloat16, torch.int8], ids=["as computed", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("case", GGN_CASES)
def test_ggn_project(backend, case, dtype, basis_dtype):
    arguments = ggn_inputs(case, dtype, basis_dtype)
    if backend == "triton" and (dtype == torch.float16 or (dtype == torch.bfloat16) == (basis_dtype == torch.bfloat16)):
        pytest.skip("the interpreter is slow, and every load widens what it reads")
    if served(backend, "ggn_project", arguments):
        found, expected = (ggn_of_unit_bases(f(*arguments), arguments[-1]) for f in (ops.ggn_project, ggn_formulas))
        ggn_close(found, expected, dtype)


@pytest.mark.parametrize("directions", [1, 16])
@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)], ids=str)
def test_a_gradient_almost_inside_the_directions_keeps_its_digits(backend, dtype, relative, basis_dtype, directions):
    """Sums in float32 fail this, and so do exact ones that are rounded to it."""
    arguments, exact = ggn_almost_inside(dtype, basis_dtype, directions)
    if served(backend, "ggn_project", arguments):
        found = ggn_outside(*ops.ggn_project(*arguments), arguments[-1])
        assert found.item() == pytest.approx(exact, rel=relative)


@pytest.mark.parametrize("dtype", BUDGET, ids=str)
@pytest.mark.parametrize("state", STATES)
def test_no_state_of_torch_changes_a_result(backend, state, dtype):
    """Nor its dtype: memory of another one would be written beyond its end, or read as other numbers."""
    is_slow = backend == "triton"  # which is interpreted here
    if is_slow and dtype != torch.float32:
        pytest.skip("the launcher's own memory is in float32 whatever the inputs are")
    for case in ("ragged",) if is_slow else ("ragged", "no basis", "no segments", "many rows"):
        for operation, make in OPERATORS.items():
            arguments = make(case, dtype)
            if refusal(backend, operation, arguments) is None:
                run = getattr(ops, operation)
                expected = run(*arguments)
                with STATES[state]():
                    found = run(*arguments)
                torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["ragged", "several blocks", "many rows"])
def test_p_in_float32_beside_q_in_bfloat16(backend, case):
    """What a bfloat16 model's layers hand over."""
    arguments = made(*CASES[case], torch.bfloat16, p_dtype=torch.float32)
    _, rotated, _, outside, variance = formulas(*arguments)
    close(ops.kron_variance(*arguments), variance, torch.bfloat16)
    close(ops.kron_project(*arguments[:5])[1], outside, torch.bfloat16, scale=rotated.square().sum(-1))


@given(
    lengths=st.lists(st.integers(0, 90), max_size=7),
    r=st.integers(1, 19),
    d=st.integers(8, 220),  # of fewer, all of a segment may cancel, and no digits are left to compare
    k=st.integers(1, 40),
    threads=st.sampled_from([1, 2, 5]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_by_any_number_of_threads(lengths, r, d, k, threads, dtype):
    arguments = made(lengths, r, d, min(k, d), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in PREFERENCE["cpu"]:
            if BACKENDS[name].unavailable() is None:
                with use_backend(name):
                    close(ops.kron_variance(*arguments), formulas(*arguments)[-1], dtype)
                    close(ops.segment_outer(*arguments[:3]), formulas(*arguments)[0], dtype)
                    with_bases = ggn_made(lengths, r, d, min(k, d), dtype)
                    ggn_close(ops.ggn_project(*with_bases), ggn_formulas(*with_bases), dtype)
    finally:
        torch.set_num_threads(before)


def test_segments_split_over_calls_give_the_same(backend):
    p, q, offsets, *rest = inputs("several blocks", torch.float32)
    cut = int(offsets[2])
    parts = [
        ops.kron_variance(p[:cut], q[:cut], offsets[:3], *rest),
        ops.kron_variance(p[cut:], q[cut:], offsets[2:] - cut, *rest),
    ]
    torch.testing.assert_close(torch.cat(parts), ops.kron_variance(p, q, offsets, *rest), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)], ids=str)
def test_a_gradient_almost_inside_the_basis_keeps_its_digits(backend, dtype, relative):
    """A difference of norms fails this in float32."""
    arguments, exact = almost_inside(dtype)
    assert ops.kron_variance(*arguments).item() == pytest.approx(exact, rel=relative)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_runs_are_bitwise_equal(backend, threads):
    torch.set_num_threads(threads)
    arguments = inputs("several blocks", torch.float32)
    first, *others = (ops.kron_variance(*arguments) for _ in range(5))
    torch.set_num_threads(1)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_runs_with_directions_are_bitwise_equal(backend, threads):
    arguments = ggn_inputs("several blocks", torch.float32)
    if served(backend, "ggn_project", arguments):
        torch.set_num_threads(threads)
        first, *others = (torch.cat([x.flatten() for x in ops.ggn_project(*arguments)]) for _ in range(5))
        torch.set_num_threads(1)
        assert all(torch.equal(first, other) for other in others)


def test_non_contiguous_inputs_give_the_same(backend):
    p, q, offsets, *rest = inputs("ragged", torch.float32)
    strided = [torch.stack([x, x], -1)[..., 0] for x in (p, q)]
    rest = [torch.stack([x, x], -1)[..., 0] for x in rest]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        ops.kron_variance(*strided, offsets, *rest), ops.kron_variance(p, q, offsets, *rest), rtol=1e-5, atol=0
    )


def test_non_contiguous_directions_give_the_same(backend):
    p, q, offsets, bases = ggn_inputs("ragged", torch.float32)
    strided_p, strided_q, strided_bases = (torch.stack([x, x], -1)[..., 0] for x in (p, q, bases))
    if served(backend, "ggn_project", (p, q, offsets, bases)):
        found = ops.ggn_project(strided_p, strided_q, offsets, strided_bases)
        torch.testing.assert_close(found, ops.ggn_project(p, q, offsets, bases), rtol=1e-6, atol=1e-6)


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
        ({"basis_p": torch.zeros(4, 4, device="meta")}, "basis_p must be on cpu, where p is, not on meta"),
        ({"basis_q": torch.zeros(33, 8, device="meta")}, "basis_q must be on cpu"),
        ({"weight": torch.zeros(4, 8, device="meta")}, "weight must be on cpu"),
        ({"residual": torch.zeros(4, device="meta")}, "residual must be on cpu"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    names = ["p", "q", "offsets", "basis_p", "basis_q", "weight", "residual"]
    arguments = dict(zip(names, inputs("ragged", torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ops.kron_variance(**arguments)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        (torch.zeros(5, 4, 32), r"bases must have shape \[\*, 4, 33\], not \[5, 4, 32\]"),
        (torch.zeros(5, 4, 33, dtype=torch.int16), "bases must be floating point or torch.int8, not torch.int16"),
        (torch.zeros(5, 4, 33, device="meta"), "bases must be on cpu, where p is, not on meta"),
    ],
)
def test_bases_that_do_not_fit_are_named(bases, message):
    with pytest.raises(ValueError, match=message):
        ops.ggn_project(*inputs("ragged", torch.float32)[:3], bases)


@pytest.mark.parametrize("case", ["ragged", "no segments"])
@pytest.mark.parametrize("operation", OPERATORS)
def test_opcheck(operation, case):
    operator = getattr(torch.ops.bayesrm_fast, operation).default
    torch.library.opcheck(operator, OPERATORS[operation](case, torch.float32))


def test_compiled_without_a_break():
    arguments = inputs("ragged", torch.float32)
    compiled = torch.compile(lambda *a: 2 * ops.kron_variance(*a), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), 2 * ops.kron_variance(*arguments), rtol=0, atol=0)


def test_the_environment_forces_a_backend():
    code = (
        "import torch; from bayesrm_fast.ops.backends import choose; "
        "print(choose('segment_outer', (torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0, 1]))))"
    )
    for name, code_of_end in (("reference", 0), ("mkl", 1)):
        environment = os.environ | {"BAYESRM_BACKEND": name}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code_of_end
        assert ("reference" if code_of_end == 0 else "no backend 'mkl'") in done.stdout + done.stderr


def test_unknown_backends_are_named():
    with pytest.raises(ValueError, match="there is no backend 'mkl'; there are auto, cpu, cuda, triton, reference"):
        use_backend("mkl").__enter__()


def test_a_forced_backend_ends_with_its_block():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert choose("kron_variance", inputs("ragged", torch.float64)) == "reference"
    assert choose("kron_variance", inputs("ragged", torch.float32)) == next(
        name for name in PREFERENCE["cpu"] if BACKENDS[name].unavailable() is None
    )


def test_without_the_compiled_part_the_reference_serves_and_says_so_once(monkeypatch):
    from bayesrm_fast.ops import backends

    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", lambda: "no compiler")
    monkeypatch.setattr(backends, "_told", False)
    arguments = inputs("ragged", torch.float32)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ops.kron_variance(*arguments)
        ops.kron_variance(*arguments)
    assert [str(warning.message) for warning in told] == ["the operations run in plain torch, not in C++: no compiler"]
