"""What a server is told when it starts."""

import math

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.serve.options import ServerOptions


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ServerOptions(threshold=math.inf), "threshold must be"),
        (lambda: ServerOptions(patience=0.0), "patience must be"),
        (lambda: ServerOptions(token=""), "the token is empty"),
        (lambda: ServerOptions(max_body_bytes=0), "max_body_bytes must be at least 1"),
        (lambda: ServerOptions(max_nesting=0), "max_nesting must be at least 1"),
        (lambda: ServerOptions(max_responses=0), "max_responses must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_the_token_is_not_shown():
    assert "s3cret" not in repr(ServerOptions(token="s3cret"))
