"""What a pass runs over: rows and pairs, and which are equal."""

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.text.examples import SegmentedRow, TokenizedPair, TokenizedRow, distinct


def row(*ids, truncated=False, where="a row", types=None):
    return TokenizedRow(list(ids), types, truncated, where)


def test_equal_rows_are_found_whatever_an_error_calls_them():
    assert distinct([row(1), row(2), row(1, where="row 3")]) == ([0, 1], [0, 1, 0])
    assert row(1) == row(1, where="row 3")
    assert TokenizedPair(row(1), row(2)) == TokenizedPair(row(1), row(2), "pair 4")
    assert distinct([row(2), row(2), row(2)]) == ([0], [0, 0, 0])
    assert distinct([]) == ([], [])


def test_rows_that_differ_in_token_types_are_not_equal():
    assert distinct([row(1), row(1, types=[1])]) == ([0, 1], [0, 1])
    assert distinct([row(1, types=[0]), row(1, types=[1])]) == ([0, 1], [0, 1])


def test_pairs_are_equal_where_both_rows_are_and_their_order_counts():
    a, b, c = row(1), row(2), row(3)
    pairs = [TokenizedPair(a, b), TokenizedPair(b, a), TokenizedPair(a, c), TokenizedPair(a, b, "pair 4")]
    assert distinct(pairs) == ([0, 1, 2], [0, 1, 2, 0])


def test_rows_that_are_read_elsewhere_are_others():
    segmented = SegmentedRow(row(1, 2, 3), [0, 2], [True, False])
    assert distinct(segmented.reads(is_causal=False)) == ([0, 1], [0, 1])
    assert distinct([*segmented.steps(is_causal=False), *segmented.steps(is_causal=False)]) == ([0, 1], [0, 1, 0, 1])


def test_where_one_row_ends_and_the_next_begins_counts():
    assert distinct([TokenizedPair(row(1, 2), row(3)), TokenizedPair(row(1), row(2, 3))]) == ([0, 1], [0, 1])


def test_a_pair_is_as_long_as_its_longer_row_and_has_the_tokens_of_both():
    pair = TokenizedPair(row(1, 2, truncated=True), row(3, 4, 5))
    assert (pair.length, pair.tokens, pair.is_truncated) == (3, 5, True)
    assert [one.input_ids for one in pair.rows] == [[1, 2], [3, 4, 5]]
    assert pair.signs == (1.0, -1.0)
    alone = pair.rejected
    assert (alone.length, alone.tokens, alone.is_truncated, alone.signs) == (3, 3, False, (1.0,))


def test_a_part_of_a_row_has_its_types_and_its_name():
    part = row(5, 6, 7, 8, truncated=True, where="row 9", types=[0, 0, 1, 1]).part(1, 3)
    assert (part.input_ids, part.token_type_ids, part.truncated, part.where) == ([6, 7], [0, 1], True, "row 9")
    assert row(5, 6, 7).part(1, None) == row(6, 7)
    assert SegmentedRow(row(5, 6, 7), [1, 2]).whole(is_causal=True).part(1, None).read_at == (0, 1)


def test_a_row_without_tokens_is_refused_by_name():
    with pytest.raises(InputError, match=r"^pairs, row 2: chosen has no tokens"):
        row(where="pairs, row 2: chosen")
