"""Named ragged shapes: lengths of the segments, r, d, k."""

from bayesrm_fast.ops.chips import A100, H100, Chip

CASES = {
    "one segment": ([7], 3, 16, 5),
    "ragged": ([3, 1, 12, 5], 4, 33, 8),
    "empty segments": ([0, 4, 0, 0, 2, 0], 2, 17, 3),
    "no segments": ([], 2, 8, 3),
    "only empty segments": ([0, 0], 2, 8, 3),
    "length one": ([1, 1, 1], 1, 9, 9),
    "full rank": ([6, 6], 8, 12, 12),
    "many tiny segments": ([2] * 50, 3, 10, 4),
    "no basis": ([4, 0, 3], 2, 9, 0),
    # Beyond every block of the kernels, and multiples of none: token blocks of 32, panels of 192, 8 rows at once.
    "several blocks": ([150, 65, 64, 1, 130], 13, 427, 29),
    "one huge segment": ([1000], 5, 203, 7),
    "many rows": ([40, 70], 67, 90, 33),
    # Rows in several turns: the scratch of one segment is bounded.
    "many wide rows": ([9, 5], 21, 20_000, 3),
}

GGN_CASES = CASES | {
    # More segments than meet a direction at once, over more columns than are widened together.
    "several wide segments": ([9, 30, 4, 17, 0, 11], 3, 1300, 14),
}

# What the CUDA kernels serve: columns in eights. Their tiles are 256 columns by 64 or 32 tokens, a copy is 16 tokens.
CUDA_CASES = {
    "one short segment": ([7], 3, 16, 5),
    "ragged over tiles": ([3, 1, 12, 5, 70, 0, 130], 4, 264, 8),
    "only empty segments": ([0, 0], 2, 8, 3),
    "empty segments": ([0, 4, 0, 0, 2, 0], 2, 24, 3),
    "length one": ([1, 1, 1], 1, 8, 8),
    "full rank": ([6, 6], 8, 16, 16),
    "many tiny segments": ([2] * 30, 3, 16, 4),
    "no basis": ([4, 0, 3], 2, 8, 0),
    "whole blocks of tokens": ([64, 128, 64], 16, 512, 16),
    "a token more and less than a block": ([65, 63, 17, 15, 33, 31], 16, 520, 17),
    "one long segment": ([700], 5, 200, 7),
    "rows between the compiled sizes": ([40, 70], 23, 776, 33),
    "all rows and columns": ([64, 33], 64, 1288, 64),
    "more segments than are sorted": ([1, 2, 0] * 90, 1, 8, 2),
}

CHIPS = {"A100": A100, "H100": H100, "RTX 4090": Chip(89, 128, 99 * 1024)}
