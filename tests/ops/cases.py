"""Named ragged shapes: lengths of the segments, r, d, k."""

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
