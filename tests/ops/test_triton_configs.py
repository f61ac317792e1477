"""Block sizes are a pure function, and legal wherever they are asked for."""

import itertools
import subprocess
import sys

import pytest
import torch
from cases import CHIPS
from formulas import made

from bayesrm_fast.ops import triton
from bayesrm_fast.ops.chips import H100, Chip, tiles_per_program
from bayesrm_fast.ops.triton.configs import (
    GGN_PROGRAMS_A_MULTIPROCESSOR,
    MOST_ROWS_A_PROGRAM,
    ggn_splits,
    product_tiles,
    stream_tiles,
    takes_gradients,
    tiles,
)

SIZES = [1, 2, 8, 15, 16, 17, 33, 64, 65, 100, 256]
DTYPES = [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (torch.float32, torch.float32)]
SITES = list(itertools.product(SIZES, [1, 7, 17, 33, 64, 384, 14_336, 32_768], [0, *SIZES]))


def served(*arguments, **options):
    try:
        tiles(*arguments, **options)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("second_pass", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("chip", CHIPS)
def test_tiles_fit_the_chip(chip, dtypes, second_pass):
    for r, d, k in SITES:
        found = tiles(r, d, k, *dtypes, CHIPS[chip], second_pass)
        assert found.shared_memory(*dtypes, second_pass) <= CHIPS[chip].shared_memory
        assert found.stages == 3
        for size in (found.rows, found.basis, found.tokens, found.columns):
            assert size >= 16
            assert size & (size - 1) == 0


@pytest.mark.parametrize(("p", "q"), DTYPES, ids=str)
@pytest.mark.parametrize("kib", [32, 48, 64, 80, 96])
def test_where_the_first_pass_fits_the_second_does_and_so_do_rows_in_turns(kib, p, q):
    """`refuses` asks for the first pass of p as it comes; one with many rows is in float32 before it meets a tile."""
    chip = Chip(80, 100, kib * 1024)
    for r, d, k in SITES:
        if served(r, d, k, p, q, chip):
            assert served(r, d, k, p, q, chip, second_pass=True)
            assert r <= MOST_ROWS_A_PROGRAM or served(r, d, k, torch.float32, q, chip)
            assert r <= MOST_ROWS_A_PROGRAM or served(r, d, k, torch.float32, q, chip, second_pass=True)


@pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))
def test_a_chip_without_room_is_refused_and_not_a_failed_launch(monkeypatch):
    monkeypatch.setattr(triton, "chip_of", lambda _: Chip(75, 40, 64 * 1024))
    small, large = (made([3], r, 64, r, torch.bfloat16) for r in (8, 64))
    if torch.cuda.is_available():
        small, large = (tuple(x.cuda() for x in arguments) for arguments in (small, large))
    assert triton.refuses("kron_variance", small) is None
    assert triton.refuses("kron_variance", large) == "for this r and k it needs 86 KiB of shared memory, not 64"


def test_a_small_chip_gets_fewer_stages_or_an_error():
    half = (torch.bfloat16, torch.bfloat16)
    wide = tiles(64, 4096, 64, *half, H100)
    need = wide.shared_memory(*half)
    assert tiles(64, 4096, 64, *half, Chip(86, 84, need - 1)).stages < wide.stages
    with pytest.raises(ValueError, match="KiB of shared memory, not 9"):
        tiles(64, 4096, 64, *half, Chip(70, 80, 10_000))


@pytest.mark.parametrize("segments", [1, 3, 64, 10_000])
@pytest.mark.parametrize("d", [1, 64, 384, 14_336, 32_768])
def test_every_column_has_one_program_and_few_segments_fill_the_chip(segments, d):
    columns = tiles(16, d, 64, torch.bfloat16, torch.bfloat16, H100).columns
    per_program = tiles_per_program(segments, columns, d, H100)
    blocks = -(-d // columns)
    splits = -(-blocks // per_program)
    walked = [
        tile for split in range(splits) for tile in range(split * per_program, min((split + 1) * per_program, blocks))
    ]
    assert walked == list(range(blocks))
    assert splits == blocks or segments * splits >= 2 * H100.multiprocessors


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("programs", [1, 2, 8, 64, 10_000])
@pytest.mark.parametrize("d", [1, 33, 384, 4096, 14_336, 32_768])
def test_every_column_of_ggn_project_has_one_program_and_all_are_resident(chip, programs, d):
    """What is stored between its kernels is a tile for each program, and so no more than the chip can hold."""
    for k, dtypes in itertools.product([0, 1, 32, 128, 1000], DTYPES):
        for t in (stream_tiles(d, k, *dtypes), product_tiles(k)):
            for size in (t.bases, t.columns):
                assert size & (size - 1) == 0
            columns = -(-d // t.columns)
            per_program, splits = ggn_splits(programs, columns, CHIPS[chip])
            assert (splits - 1) * per_program < columns <= splits * per_program
            resident = GGN_PROGRAMS_A_MULTIPROCESSOR * CHIPS[chip].multiprocessors
            assert programs * splits <= max(programs, resident)
            assert splits == columns or 2 * programs * splits > resident - programs


def test_only_many_segments_of_bfloat16_are_multiplied_together():
    assert [takes_gradients(n, torch.bfloat16) for n in (1, 3, 4, 1000)] == [False, False, True, True]
    assert not takes_gradients(1000, torch.float32)
    assert not takes_gradients(1000, torch.float16)


def test_block_sizes_need_no_triton():
    code = "import sys; sys.modules['triton'] = None; from bayesrm_fast.ops.triton.configs import tiles"
    subprocess.run([sys.executable, "-c", code], check=True)
