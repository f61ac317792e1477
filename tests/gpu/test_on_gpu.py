"""The numerical table of tests/ops on a real device, and what only a device can show."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or plain torch's products are not deterministic

import pytest
import torch
from cases import CASES, CUDA_CASES
from formulas import (
    BUDGET,
    HALVES,
    almost_inside,
    close,
    formulas,
    ggn_almost_inside,
    ggn_close,
    ggn_formulas,
    ggn_made,
    ggn_of_unit_bases,
    ggn_outside,
    made,
)

from bayesrm_fast import ops
from bayesrm_fast.ops.backends import BACKENDS, PREFERENCE, choose, refusal, use_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use here"),
]

LENGTHS_AND_SIZES = CASES | CUDA_CASES
BUDGETS = {"cuda": HALVES}


@pytest.fixture(params=PREFERENCE["cuda"])
def backend(request):
    reason = BACKENDS[request.param].unavailable()
    if reason is not None:
        pytest.skip(reason)
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    with use_backend(request.param):
        yield request.param
    torch.use_deterministic_algorithms(False)


def on_gpu(arguments):
    return tuple(x.cuda() for x in arguments)


def served(backend, operation, tensors):
    """Whether a backend takes a call; one that does not must say why."""
    if refusal(backend, operation, tensors) is None:
        return True
    with pytest.raises(ValueError, match=f"{backend} cannot serve {operation}: "):
        choose(operation, tensors)
    return False


def test_the_compiled_part_is_the_first_choice():
    arguments = on_gpu(made([20] * 4, 8, 512, 16, torch.bfloat16))
    assert BACKENDS["cuda"].unavailable() is None
    assert choose("kron_variance", arguments) == "cuda"
    assert choose("segment_outer", arguments[:3]) == "triton"
    for segments, backend in ((1, "cuda"), (3, "cuda"), (4, "triton")):
        few = on_gpu(ggn_made([20] * segments, 8, 512, 16, torch.bfloat16, torch.bfloat16))
        assert choose("ggn_project", few) == backend
    assert choose("kron_variance", on_gpu(made([20], 8, 512, 16, torch.float32))) == "triton"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", LENGTHS_AND_SIZES)
def test_operations_against_their_formulas(backend, case, dtype):
    tensors = on_gpu(made(*LENGTHS_AND_SIZES[case], dtype))
    gradients, rotated, c, outside, variance = formulas(*tensors)
    if served(backend, "segment_outer", tensors[:3]):
        close(ops.segment_outer(*tensors[:3]), gradients, dtype, budget=BUDGETS.get(backend))
    if served(backend, "kron_project", tensors[:5]):
        found_c, found_outside = ops.kron_project(*tensors[:5])
        close(found_c, c, dtype, budget=BUDGETS.get(backend))
        close(found_outside, outside, dtype, scale=rotated.square().sum(-1), budget=BUDGETS.get(backend))
        assert (found_outside >= 0).all()
    if served(backend, "kron_variance", tensors):
        found = ops.kron_variance(*tensors)
        close(found, variance, dtype, budget=BUDGETS.get(backend))
        assert (found >= 0).all()


@pytest.mark.parametrize("basis_dtype", [torch.bfloat16, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", LENGTHS_AND_SIZES)
def test_ggn_project_against_its_formulas(backend, case, dtype, basis_dtype):
    tensors = on_gpu(ggn_made(*LENGTHS_AND_SIZES[case], dtype, basis_dtype))
    if served(backend, "ggn_project", tensors):
        # A matrix unit truncates as it sums a gradient's tokens.
        results = ops.ggn_project(*tensors), ggn_formulas(*tensors)
        unit_found, unit_expected = (ggn_of_unit_bases(one, tensors[-1]) for one in results)
        ggn_close(unit_found, unit_expected, dtype, BUDGET[dtype])


@pytest.mark.parametrize("segments", [1, 3, 4, 70])
@pytest.mark.parametrize(("r", "d", "k"), [(8, 4096, 32), (16, 4096, 128), (64, 14_336, 40)])
def test_ggn_project_at_shapes_of_large_models(backend, r, d, k, segments):
    """The bases are not orthonormal here, which no product asks for."""
    lengths = [2048, *((37 * n) % 160 for n in range(1, segments))]
    p, q, offsets, *_ = on_gpu(made(lengths, r, d, 0, torch.bfloat16))
    generator = torch.Generator("cuda").manual_seed(1)
    bases = (torch.randn(k, r, d, generator=generator, device="cuda") / (r * d) ** 0.5).bfloat16()
    for tensors in ((p, q, offsets, bases), (p.float() * 1.001, q, offsets, bases)):
        if served(backend, "ggn_project", tensors):
            products, squared_norm = ops.ggn_project(*tensors)
            expected, norms = ggn_formulas(*tensors)
            # p as two bfloat16 halves is good to 2⁻¹⁸, and a long sum in a matrix unit to 10⁻⁶.
            assert ((products - expected).abs() <= HALVES * norms.sqrt()[:, None]).all()
            assert ((squared_norm - norms).abs() <= HALVES * norms).all()


@pytest.mark.parametrize("directions", [1, 16])
@pytest.mark.parametrize("basis_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)], ids=str)
def test_a_gradient_almost_inside_the_directions_keeps_its_digits(
    backend, dtype, relative, copies, basis_dtype, directions
):
    """Of one segment, and of as many as are multiplied together."""
    (p, q, offsets, bases), exact = ggn_almost_inside(dtype, basis_dtype, directions)
    bounds = torch.arange(copies + 1) * offsets[-1]
    tensors = on_gpu((p.repeat(copies, 1), q.repeat(copies, 1), bounds, bases))
    if served(backend, "ggn_project", tensors):
        found = ggn_outside(*(x.cpu() for x in ops.ggn_project(*tensors)), bases)
        assert found.tolist() == pytest.approx([exact] * copies, rel=relative)


@pytest.mark.parametrize("case", CUDA_CASES)
def test_p_in_float32_beside_q_in_bfloat16(backend, case):
    """What a bfloat16 model's layers hand over."""
    tensors = on_gpu(made(*CUDA_CASES[case], torch.bfloat16, p_dtype=torch.float32))
    if served(backend, "kron_variance", tensors):
        close(ops.kron_variance(*tensors), formulas(*tensors)[-1], torch.bfloat16, budget=BUDGETS.get(backend))


@pytest.mark.parametrize("segments", [1, 9, 300])
@pytest.mark.parametrize(("r", "d", "k"), [(8, 4096, 16), (16, 4096, 64), (64, 14_336, 64)])
def test_shapes_of_large_models(backend, r, d, k, segments):
    """Few items and many, segments that are sorted and that are not."""
    lengths = [(37 * n) % 160 for n in range(segments)]
    lengths[0] = 2048
    p, *rest = on_gpu(made(lengths, r, d, k, torch.bfloat16))
    for tensors in ((p, *rest), (p.float() * 1.001, *rest)):
        close(ops.kron_variance(*tensors), formulas(*tensors)[-1], torch.bfloat16, budget=BUDGETS.get(backend))


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)], ids=str)
def test_a_gradient_almost_inside_the_basis_keeps_its_digits(backend, dtype, relative):
    arguments, exact = almost_inside(dtype)
    tensors = on_gpu(arguments)
    if served(backend, "kron_variance", tensors):
        assert ops.kron_variance(*tensors).item() == pytest.approx(exact, rel=relative)


def test_one_segment_with_infinities_leaves_the_others_alone(backend):
    p, q, *rest = made([5, 20, 7, 70], 3, 264, 4, torch.bfloat16)
    expected = formulas(p, q, *rest)[-1]
    q[5:25], p[5:25] = torch.inf, torch.nan
    found = ops.kron_variance(*on_gpu((p, q, *rest))).cpu()
    close(found[[0, 2, 3]], expected[[0, 2, 3]], torch.bfloat16, budget=BUDGETS.get(backend))
    assert not found[1].isfinite()


def test_two_runs_are_bitwise_equal(backend):
    arguments = on_gpu(made([150, 65, 64, 1, 130] * 9, 13, 2304, 29, torch.bfloat16))
    first, *others = (ops.kron_variance(*arguments) for _ in range(20))
    assert all(torch.equal(first, other) for other in others)
    for lengths in ([150, 65], [150, 65, 64, 1, 130] * 9):
        arguments = on_gpu(ggn_made(lengths, 13, 2304, 29, torch.bfloat16, torch.bfloat16))
        if served(backend, "ggn_project", arguments):
            first, *others = (torch.cat([x.flatten() for x in ops.ggn_project(*arguments)]) for _ in range(20))
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("segments", [2, 40])
def test_another_stream_and_a_captured_graph(segments):
    """As an inference server calls: nothing on the way may wait for the device, or for the default stream."""
    arguments = on_gpu(made([40] * segments, 8, 1024, 16, torch.bfloat16))
    expected = ops.kron_variance(*arguments)
    with use_backend("cuda"):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            alone = ops.kron_variance(*arguments)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.kron_variance(*arguments)
        captured.fill_(torch.nan)
        graph.replay()
    assert torch.equal(alone, expected)
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("r", [8, 64])
def test_more_than_two_to_the_31_elements(backend, r):
    """The last segments of a q of 4.4 GB, whose offsets in elements are beyond 32 bits."""
    d, k, tokens = 4096, 16, 2**31 // 4096 + 5000
    if backend == "reference":
        pytest.skip("plain torch has no index arithmetic of ours")
    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.zeros(tokens, d, dtype=torch.bfloat16, device="cuda")
    p = torch.zeros(tokens, r, dtype=torch.bfloat16, device="cuda")
    for x in (p, q):
        x[-3000:].normal_(generator=generator)
    offsets = torch.tensor([0, tokens - 3000, tokens - 40, tokens], device="cuda")
    rest = on_gpu(made([1], r, d, k, torch.bfloat16)[3:])
    found = ops.kron_variance(p, q, offsets, *rest)
    near = ops.kron_variance(p[-3000:], q[-3000:], offsets[1:] - (tokens - 3000), *rest)
    assert found[0].item() == 0
    torch.testing.assert_close(found[1:], near, rtol=1e-5, atol=0)
    bases = torch.randn(k, r, d, generator=generator, device="cuda").bfloat16()
    for cuts in ([], [tokens - 2000, tokens - 1000]):
        bounds = torch.tensor([0, tokens - 3000, *cuts, tokens - 40, tokens], device="cuda")
        if served(backend, "ggn_project", (p, q, bounds, bases)):
            far_sums = ops.ggn_project(p, q, bounds, bases)
            near_sums = ops.ggn_project(p[-3000:], q[-3000:], bounds[1:] - (tokens - 3000), bases)
            for far_sum, near_sum in zip(far_sums, near_sums, strict=True):
                assert not far_sum[0].any()
                torch.testing.assert_close(far_sum[1:], near_sum, rtol=1e-5, atol=1e-5 * float(near_sum.abs().max()))
    if served(backend, "segment_outer", (p, q, offsets)):
        last = ops.segment_outer(p, q, offsets)[-1]
        expected = p[-40:].double().T @ q[-40:].double()
        assert (last - expected).abs().max() <= BUDGET[torch.bfloat16] * expected.abs().max()
