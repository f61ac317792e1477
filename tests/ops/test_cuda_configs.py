"""Which CUDA kernel is launched, and in how many blocks; tests/cuda has what those take of shared memory."""

import pytest

from bayesrm_fast.ops.chips import A100, H100
from bayesrm_fast.ops.cuda.configs import ITEMS_A_MULTIPROCESSOR, MOST_PARTS, TILE_COLUMNS, bases_of_block, launch


@pytest.mark.parametrize("length", [1, 64, 512, 4096])
@pytest.mark.parametrize("segments", [1, 2, 9, 64, 256, 100_000])
@pytest.mark.parametrize("d", [8, 256, 264, 768, 1024, 1280, 2304, 4096, 14_336, 32_768])
def test_groups_of_a_segment_all_have_columns_and_fill_the_chip_where_there_are_enough(segments, d, length):
    columns = -(-d // TILE_COLUMNS)
    for r, k in ((1, 0), (16, 16), (17, 17), (64, 64)):
        for chip, sm90 in ((A100, False), (H100, False), (H100, True)):
            found = launch(r, d, k, segments, segments * length, chip, sm90)
            assert (found.kernel == "sm90") == sm90
            assert found.rows in (16, 32, 64)
            assert found.rows >= r
            assert found.basis in (16, 64)
            assert found.basis >= k
            assert 1 <= found.groups <= columns
            items = segments * found.groups
            assert found.groups == columns or items >= 2 * chip.multiprocessors
            assert found.blocks == (min(items, chip.multiprocessors) if sm90 else items)


def test_wide_sums_of_short_segments_are_stored_for_several_tiles_at_a_time():
    fewest, most = (items * H100.multiprocessors for items in ITEMS_A_MULTIPROCESSOR)
    for r, k, length in ((64, 64, 64), (64, 64, 512), (16, 64, 64), (16, 16, 512)):
        found = launch(r, 14_336, k, 64, 64 * length, H100, sm90=True)
        items, parts = 64 * found.groups, 4 * found.rows * (found.rows + found.basis) * 64 * found.groups
        assert fewest <= items <= 2 * most
        assert parts <= MOST_PARTS * 64 * length * 14_336 * 2 * 1.1 or items < 2 * fewest
    assert found.groups == 56


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
