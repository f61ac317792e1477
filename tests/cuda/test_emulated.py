"""The CUDA kernels' own source on a CPU: a machine that is as hostile as the hardware may be, see emulated_ptx.h."""

import ctypes
import itertools
import shutil
import subprocess
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CHIPS, CUDA_CASES
from formulas import (
    HALVES,
    almost_inside,
    close,
    formulas,
    ggn_almost_inside,
    ggn_close,
    ggn_formulas,
    ggn_made,
    ggn_outside,
    made,
)

from bayesrm_fast.ops.chips import MOST_SEGMENTS_STREAMED
from bayesrm_fast.ops.cuda import binding, chip_refuses, ggn_refuses
from bayesrm_fast.ops.cuda import ggn_project as ggn_launcher
from bayesrm_fast.ops.cuda.configs import MOST_K, MOST_R, launch
from bayesrm_fast.ops.cuda.ggn_project import ggn_project
from bayesrm_fast.ops.cuda.kron_project import kron_project
from bayesrm_fast.ops.cuda.kron_variance import kron_variance

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")

KERNELS = ["sm80", "sm90"]


class Problem(ctypes.Structure):
    """csrc/cuda/kernels.h has the same."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("p", "p_low", "q", "offsets", "basis_p", "basis_q_t")),
        *((name, ctypes.c_void_p) for name in ("weight", "residual", "variance", "coordinates", "outside", "parts")),
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("count", "r", "p_stride", "d", "k")),
    )


class Launch(ctypes.Structure):
    """csrc/cuda/kernels.h has the same."""

    _fields_ = tuple((name, ctypes.c_int) for name in ("rows", "basis", "groups", "blocks"))


class GgnProblem(ctypes.Structure):
    """csrc/cuda/kernels.h has the same."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("p", "p_low", "q", "offsets", "bases")),
        *((name, ctypes.c_void_p) for name in ("parts", "products", "squared_norm")),
        ("tokens", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("count", "r", "p_stride", "d", "k", "bases_are_float")),
    )


class Emulated:
    """In place of the compiled module `_cuda`: the arguments of csrc/cuda/bind.cpp, in its order."""

    architectures = "80-real 90a-real"
    seed = 0

    def __init__(self, library):
        self.library = library

    def shared_memory(self, sm90, rows, basis):
        return self.library.shared_memory(int(sm90), ctypes.byref(Launch(rows, basis, 1, 1)))

    def split_halves(self, _device, _stream, p, is_float, high, low, tokens, r, stride):
        pointers = (ctypes.c_void_p(p), is_float, ctypes.c_void_p(high), ctypes.c_void_p(low))
        self.library.emulate_split(*pointers, ctypes.c_int64(tokens), r, stride)

    def project(self, _device, _stream, *arguments):
        *problem, rows, basis, groups, blocks, sm90 = arguments
        error = ctypes.create_string_buffer(200)
        problem, launch = Problem(*problem), Launch(rows, basis, groups, blocks)
        sizes = (int(sm90), ctypes.c_uint64(self.seed), error, len(error))
        assert not self.library.emulate(ctypes.byref(problem), ctypes.byref(launch), *sizes), error.value.decode()

    def ggn_project(self, _device, _stream, *arguments):
        *problem, rows, bases = arguments
        error = ctypes.create_string_buffer(200)
        problem, sizes = GgnProblem(*problem), (rows, bases, ctypes.c_uint64(self.seed), error, len(error))
        assert not self.library.emulate_ggn(ctypes.byref(problem), *sizes), error.value.decode()


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    built = tmp_path_factory.mktemp("emulator") / "emulated.so"
    source = Path(__file__).with_name("emulated.cpp")
    options = ["-std=c++20", "-O2", "-fPIC", "-shared", "-DBAYESRM_EMULATED", f"-I{ROOT / 'csrc' / 'cuda'}"]
    subprocess.run(["g++", *options, f"-I{source.parent}", source, "-o", built], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def emulator(library, monkeypatch):
    """The launchers of `ops/cuda`, on CPU tensors; fresh memory is NaN."""
    emulated = Emulated(library)
    monkeypatch.setattr(binding, "compiled", emulated)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: types.SimpleNamespace(cuda_stream=0))
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield emulated
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("chip", CHIPS)
def test_every_launch_fits_its_chip_or_is_refused(emulator, chip):
    chip = CHIPS[chip]
    for r, k, segments in itertools.product(range(1, MOST_R + 1), range(MOST_K + 1), (1, 1000)):
        how = launch(r, 4096, k, segments, 64 * segments, chip, sm90=chip.capability == 90)
        refused = chip_refuses(chip, r, k)
        if refused is None:
            assert emulator.shared_memory(how.kernel == "sm90", how.rows, how.basis) <= chip.shared_memory
        else:
            assert chip.capability == 89
            assert r > 32
            assert refused == "for this r and k it needs 136 KiB of shared memory, not 99"


@pytest.mark.skipif(binding.missing is not None, reason=str(binding.missing))
def test_the_built_kernels_take_as_much_shared_memory(library):
    for arguments in itertools.product((False, True), (16, 32, 64), (16, 64)):
        assert binding.compiled.shared_memory(*arguments) == Emulated(library).shared_memory(*arguments)


RESIDENT = 3
"""Blocks of the sm90 kernel: each takes several items, or has none."""


def run(emulator, monkeypatch, kernel, arguments, groups, seed=0):
    """Variance, coordinates and what is outside, by a kernel and a number of groups that are not left to `launch`."""
    blocks = (len(arguments[2]) - 1) * groups if kernel == "sm80" else RESIDENT
    how = {"kernel": kernel, "groups": groups, "blocks": blocks}
    monkeypatch.setattr(binding, "launch", lambda *a, **b: replace(launch(*a, **b), **how))
    emulator.seed = seed
    return kron_variance(*arguments), *kron_project(*arguments[:5])


@pytest.mark.parametrize(
    ("case", "groups"),
    [(case, groups) for case, (_, _, d, _) in CUDA_CASES.items() for groups in (1, 2, 4) if groups <= -(-d // 256)],
)
@pytest.mark.parametrize("p_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_against_their_formulas(emulator, monkeypatch, kernel, case, groups, p_dtype):
    arguments = made(*CUDA_CASES[case], torch.bfloat16, p_dtype=p_dtype)
    _, rotated, c, outside, variance = formulas(*arguments)
    found_variance, found_c, found_outside = run(emulator, monkeypatch, kernel, arguments, groups, seed=groups)
    close(found_variance, variance, torch.bfloat16, budget=HALVES)
    close(found_c, c, torch.bfloat16, budget=HALVES)
    close(found_outside, outside, torch.bfloat16, scale=rotated.square().sum(-1), budget=HALVES)
    assert (found_outside >= 0).all()
    assert (found_variance >= 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gradient_almost_inside_the_basis_keeps_its_digits(emulator, monkeypatch, kernel):
    arguments, exact = almost_inside(torch.bfloat16)
    assert run(emulator, monkeypatch, kernel, arguments, groups=1)[0].item() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_events_changes_a_bit(emulator, monkeypatch, seed):
    """A barrier that is missing shows as a difference, as NaN, or as a deadlock."""
    arguments = made([40, 3, 130, 0, 64, 17], 8, 776, 12, torch.bfloat16)
    for kernel, groups in itertools.product(KERNELS, (2, 4)):
        first, second = (run(emulator, monkeypatch, kernel, arguments, groups, seed=s) for s in (100, seed))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_segment_with_infinities_leaves_the_others_alone(emulator, monkeypatch, kernel):
    lengths = [5, 20, 7, 70]
    p, q, *rest = made(lengths, 3, 264, 4, torch.bfloat16)
    expected = formulas(p, q, *rest)[-1]
    q[5:25], p[5:25] = torch.inf, torch.nan
    found = run(emulator, monkeypatch, kernel, (p, q, *rest), groups=2)[0]
    close(found[[0, 2, 3]], expected[[0, 2, 3]], torch.bfloat16, budget=HALVES)
    assert not found[1].isfinite()


def test_launchers_choose_by_the_number_of_segments_and_take_strides(emulator):
    """As a call comes: odd strides, addresses between 16 bytes, and as many blocks as `launch` says."""
    for lengths in ([20] * 40, [30, 9]):
        p, q, offsets, basis_p, basis_q, *rest = made(lengths, 3, 520, 4, torch.bfloat16)
        expected = formulas(p, q, offsets, basis_p, basis_q, *rest)[-1]
        shifted = torch.cat([q.new_zeros(1), q.flatten()])[1:].view_as(q)
        strided = torch.stack([p, p], -1)[..., 0]
        assert shifted.data_ptr() % 16
        assert not strided.is_contiguous()
        close(
            kron_variance(strided, shifted, offsets, basis_p, basis_q.T.contiguous().T, *rest),
            expected,
            torch.bfloat16,
            budget=HALVES,
        )


def test_no_segments_and_no_tokens_need_no_kernel(emulator):
    p, q, offsets, *rest = made([0, 0], 2, 8, 3, torch.bfloat16)
    assert torch.equal(kron_variance(p, q, offsets, *rest), torch.zeros(2))
    assert torch.equal(kron_project(p, q, offsets, *rest[:2])[0], torch.zeros(2, 2, 3))
    assert kron_variance(p, q, offsets[:1], *rest).shape == (0,)


@pytest.mark.parametrize("kernel", KERNELS)
def test_elements_beyond_two_to_the_31(emulator, monkeypatch, kernel):
    """An array whose untouched pages cost nothing; the launchers take offsets that begin late."""
    d = 264
    tokens = 2**31 // d + 100
    near = made([3, 60], 4, d, 8, torch.bfloat16)
    far = []
    for x in near[:2]:
        memory = np.zeros((tokens, x.shape[1]), dtype=np.uint16)
        memory[-63:] = x.view(torch.uint16).numpy()
        far.append(torch.from_numpy(memory).view(torch.bfloat16))
    arguments = (*far, near[2] + tokens - 63, *near[3:])
    close(
        run(emulator, monkeypatch, kernel, arguments, groups=2)[0], formulas(*near)[-1], torch.bfloat16, budget=HALVES
    )


GGN_CASES = {
    "one short segment": ([7], 3, 16, 5),
    "no basis": ([4], 2, 8, 0),
    "empty segments": ([0, 70, 0], 8, 72, 9),
    "a token more and less than a stage": ([65, 63, 64], 16, 136, 17),
    "rows between the compiled sizes": ([40, 150], 23, 136, 12),
    "all rows": ([33], 64, 64, 40),
}
"""Columns in eights; tiles are 64 columns by 64 tokens, and a block has 8 to 64 bases."""


@pytest.mark.parametrize("blocks_bases", [8, 16, 64])
@pytest.mark.parametrize("basis_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", GGN_CASES)
def test_ggn_project_against_its_formula(emulator, monkeypatch, case, basis_dtype, blocks_bases):
    monkeypatch.setattr(ggn_launcher, "bases_of_block", lambda *_: blocks_bases)
    emulator.seed = blocks_bases
    arguments = ggn_made(*GGN_CASES[case], torch.bfloat16, basis_dtype)
    ggn_close(ggn_project(*arguments), ggn_formulas(*arguments), torch.bfloat16)


@pytest.mark.parametrize("directions", [1, 16])
def test_a_gradient_almost_inside_the_directions_keeps_its_digits(emulator, directions):
    arguments, exact = ggn_almost_inside(torch.bfloat16, torch.bfloat16, directions)
    found = ggn_outside(*ggn_project(*arguments), arguments[-1])
    assert found.item() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_events_changes_a_bit_of_ggn_project(emulator, seed):
    p, *rest = ggn_made([40, 130, 17], 8, 136, 12, torch.bfloat16)
    for arguments in ((p, *rest), (p.float() * 1.001, *rest)):
        found = []
        for emulator.seed in (100, seed):
            found.append(ggn_project(*arguments))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_ggn_project_in_float32_halves_and_from_odd_addresses(emulator):
    p, q, offsets, bases = ggn_made([20, 9], 3, 72, 10, torch.bfloat16, torch.bfloat16)
    p = p.float() * 1.001
    expected = ggn_formulas(p, q, offsets, bases)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x) for x in (q, bases)]
    products, squared_norm = ggn_project(p, shifted[0], offsets, shifted[1])
    scale = expected[1].sqrt()[:, None]
    assert ((products - expected[0]).abs() <= HALVES * scale).all()
    assert ((squared_norm - expected[1]).abs() <= HALVES * expected[1]).all()


def test_one_segment_with_infinities_leaves_the_products_of_others_alone(emulator):
    p, q, offsets, bases = ggn_made([5, 20, 70], 3, 136, 4, torch.bfloat16)
    expected = ggn_formulas(p, q, offsets, bases)
    q[5:25], p[5:25] = torch.inf, torch.nan
    found = ggn_project(p, q, offsets, bases)
    ggn_close([x[[0, 2]] for x in found], [x[[0, 2]] for x in expected], torch.bfloat16)
    assert not found[0][1].isfinite().any()
    assert not found[1][1].isfinite()


def test_no_segments_and_no_tokens_need_no_kernel_for_ggn_project(emulator):
    p, q, offsets, bases = ggn_made([0, 0], 2, 8, 3, torch.bfloat16)
    assert torch.equal(ggn_project(p, q, offsets, bases)[0], torch.zeros(2, 3, dtype=torch.float64))
    assert ggn_project(p, q, offsets[:1], bases)[1].shape == (0,)


@pytest.mark.parametrize(
    ("segments", "basis_dtype", "reason"),
    [
        (MOST_SEGMENTS_STREAMED + 1, torch.bfloat16, "it serves up to 3 segments, not 4"),
        (1, torch.float16, "it serves bases in bfloat16 and float32, not torch.float16"),
    ],
)
def test_what_ggn_project_leaves_to_triton_is_said(segments, basis_dtype, reason):
    assert ggn_refuses(segments, torch.zeros(1, 2, 8, dtype=basis_dtype)) == reason
    assert ggn_refuses(MOST_SEGMENTS_STREAMED, torch.zeros(1, 2, 8, dtype=torch.bfloat16)) is None
