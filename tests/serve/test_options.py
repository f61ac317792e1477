"""What a server is told when it starts."""

import math

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.serve.options import RewardChoice, ServerOptions


def test_the_reward_is_the_mean_or_a_lower_bound():
    assert RewardChoice("mean", 2.0).of(1.0, 0.25) == 1.0
    assert RewardChoice("lcb", 2.0).of(1.0, 0.25) == 0.5


def test_a_bound_that_no_number_can_hold_is_refused():
    with pytest.raises(InputError, match="not a finite number"):
        RewardChoice("lcb", 1e308).of(0.0, 1e3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RewardChoice("relative"), "difference to the prompt's other candidates"),
        (lambda: RewardChoice("best"), "must be one of mean, lcb, not 'best'"),
        (lambda: RewardChoice("lcb", -1.0), "k must be a finite number"),
        (lambda: RewardChoice("lcb", math.nan), "k must be a finite number"),
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
