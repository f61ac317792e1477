"""What errors' messages share."""

import pytest

from bayesrm_fast.errors import named


@pytest.mark.parametrize(
    ("names", "told"),
    [(["a"], "a"), (list("abcd"), "a, b, c, d"), (list("abcdef"), "a, b, c, d and 2 more")],
)
def test_at_most_four_names_are_told(names, told):
    assert named(names) == told
