"""Block sizes are a pure function, and legal wherever they are asked for."""

import pytest

from bayesrm_fast.ops.configs import (
    A100,
    CUDA_COLUMNS,
    H100,
    MOST_BLOCKS_A_CLUSTER,
    MOST_IDLE,
    Chip,
    launch,
    tiles,
    tiles_per_program,
)

SIZES = [1, 2, 8, 15, 16, 17, 33, 64, 65, 100, 256]


@pytest.mark.parametrize("chip", [A100, H100], ids=["A100", "H100"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("second_pass", [False, True])
def test_tiles_fit_the_chip(chip, itemsize, second_pass):
    for r in SIZES:
        for k in [0, *SIZES]:
            for d in (1, 7, 64, 384, 14_336, 32_768):
                found = tiles(r, d, k, itemsize, chip, second_pass)
                assert found.shared_memory(itemsize) <= chip.shared_memory
                for size in (found.rows, found.basis, found.tokens, found.columns):
                    assert size >= 16
                    assert size & (size - 1) == 0
                assert found.stages == 3


def test_a_small_chip_gets_fewer_stages_or_an_error():
    wide = tiles(64, 4096, 64, 2, H100)
    need = wide.shared_memory(2)
    assert tiles(64, 4096, 64, 2, Chip(86, 84, need - 1)).stages < wide.stages
    with pytest.raises(ValueError, match="no tiles fit"):
        tiles(64, 4096, 64, 2, Chip(70, 80, 10_000))


@pytest.mark.parametrize("segments", [1, 3, 64, 10_000])
@pytest.mark.parametrize("d", [1, 64, 384, 14_336, 32_768])
def test_every_column_has_one_program_and_few_segments_fill_the_chip(segments, d):
    columns = tiles(16, d, 64, 2, H100).columns
    per_program = tiles_per_program(segments, columns, d, H100)
    blocks = -(-d // columns)
    splits = -(-blocks // per_program)
    walked = [
        tile for split in range(splits) for tile in range(split * per_program, min((split + 1) * per_program, blocks))
    ]
    assert walked == list(range(blocks))
    assert splits == blocks or segments * splits >= 2 * H100.multiprocessors


@pytest.mark.parametrize("segments", [1, 2, 9, 64, 256, 100_000])
@pytest.mark.parametrize("d", [8, 256, 264, 768, 1024, 1280, 2304, 4096, 14_336, 32_768])
def test_blocks_of_a_segment_all_have_columns(segments, d):
    columns = -(-d // CUDA_COLUMNS)
    for r, k in ((1, 0), (16, 16), (17, 17), (64, 64)):
        for chip, hopper in ((A100, False), (H100, False), (H100, True)):
            found = launch(r, d, k, segments, chip, hopper)
            assert found.rows in (16, 32, 64)
            assert found.rows >= r
            assert found.basis in (16, 64)
            assert found.basis >= k
            assert 1 <= found.blocks <= columns
            if found.kernel == "hopper":
                assert hopper
                assert found.blocks in (1, 2, 4, MOST_BLOCKS_A_CLUSTER)
                rounds = -(-columns // found.blocks)
                assert columns >= (1 - MOST_IDLE) * rounds * found.blocks
            else:
                assert found.blocks == columns or segments * found.blocks >= 2 * chip.multiprocessors


def test_few_segments_take_the_kernel_that_splits_them_further():
    assert launch(16, 4096, 64, 64, H100, hopper=True).kernel == "hopper"
    few = launch(16, 4096, 64, 2, H100, hopper=True)
    assert (few.kernel, few.blocks) == ("portable", 16)
    assert launch(16, 4096, 64, 64, A100, hopper=False).kernel == "portable"
