"""Which CUDA kernel is launched, and in how many blocks; tests/cuda has what those take of shared memory."""

import pytest

from bayesrm_fast.ops.chips import A100, H100
from bayesrm_fast.ops.cuda.configs import MOST_BLOCKS_A_CLUSTER, MOST_IDLE, TILE_COLUMNS, bases_of_block, launch


@pytest.mark.parametrize("segments", [1, 2, 9, 64, 256, 100_000])
@pytest.mark.parametrize("d", [8, 256, 264, 768, 1024, 1280, 2304, 4096, 14_336, 32_768])
def test_blocks_of_a_segment_all_have_columns(segments, d):
    columns = -(-d // TILE_COLUMNS)
    for r, k in ((1, 0), (16, 16), (17, 17), (64, 64)):
        for chip, sm90 in ((A100, False), (H100, False), (H100, True)):
            found = launch(r, d, k, segments, chip, sm90)
            assert found.rows in (16, 32, 64)
            assert found.rows >= r
            assert found.basis in (16, 64)
            assert found.basis >= k
            assert 1 <= found.blocks <= columns
            if found.kernel == "sm90":
                assert sm90
                assert found.blocks in (1, 2, 4, MOST_BLOCKS_A_CLUSTER)
                rounds = -(-columns // found.blocks)
                assert columns >= (1 - MOST_IDLE) * rounds * found.blocks
            else:
                assert found.blocks == columns or segments * found.blocks >= 2 * chip.multiprocessors


def test_few_segments_take_the_kernel_that_splits_them_further():
    assert launch(16, 4096, 64, 64, H100, sm90=True).kernel == "sm90"
    few = launch(16, 4096, 64, 2, H100, sm90=True)
    assert (few.kernel, few.blocks) == ("sm80", 16)
    assert launch(16, 4096, 64, 64, A100, sm90=False).kernel == "sm80"


@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("d", [8, 768, 4096, 14_336, 32_768])
@pytest.mark.parametrize("k", [0, 1, 17, 128, 512])
def test_blocks_of_ggn_project_fill_the_chip_or_have_a_base_for_each_warp(segments, d, k):
    for chip in (A100, H100):
        bases = bases_of_block(d, k, segments, chip)
        assert bases in (8, 16, 32, 64)
        blocks = segments * -(-d // 64) * max(1, -(-k // bases))
        assert bases == 8 or blocks >= 2 * chip.multiprocessors
    assert bases_of_block(4096, 128, 1, H100) == 16
