"""What errors' messages share."""

import pytest

from bayesrm_fast.errors import named, shortened, shown


@pytest.mark.parametrize(
    ("names", "told"),
    [(["a"], "a"), (list("abcd"), "a, b, c, d"), (list("abcdef"), "a, b, c, d and 2 more")],
)
def test_at_most_four_names_are_told(names, told):
    assert named(names) == told


def test_a_text_is_cut_to_what_is_left():
    assert [shortened("abcdef", n) for n in (6, 4)] == ["abcdef", "abc…"]
    assert shown("a" * 100) == "'" + "a" * 38 + "…"
    assert shown(3) == "3"
