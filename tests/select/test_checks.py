"""What a formula over candidates refuses, and how it says so."""

import math

import pytest
import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.select.checks import at_least, finite, finite_stds, finite_values, positive, whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_values_of_any_kind_become_float64(dtype):
    held = finite_values(torch.tensor([1, 2], dtype=dtype), "scores")
    assert held.dtype == torch.float64
    assert held.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told_by_its_position(value):
    with pytest.raises(InputError, match="scores must be finite numbers; at position 2 is"):
        finite_values(torch.tensor([0.0, 1.0, value, value]), "scores")


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 3), torch.tensor(1.0), [1.0, 2.0], None])
def test_values_are_a_tensor_of_at_least_one(values):
    with pytest.raises(InputError, match=r"gold must be a tensor \[n\]"):
        finite_values(values, "gold")


def test_stds_are_as_many_and_not_negative():
    with pytest.raises(InputError, match="each of 3 candidates, not 2"):
        finite_stds(torch.ones(2), 3)
    with pytest.raises(InputError, match="at least 0; at position 1 is -1"):
        finite_stds(torch.tensor([0.0, -1.0]), 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "a", None])
def test_a_number_is_finite(value):
    with pytest.raises(InputError, match="mean must be a finite number, not"):
        finite(value, "mean")
    assert finite(-3, "mean") == -3.0


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "a", None, torch.ones(2), 2**63, 10**400])
def test_a_positive_number_is_above_zero_and_finite(value):
    with pytest.raises(InputError, match="λ must be a finite number above 0"):
        positive(value, "λ")
    assert positive(torch.tensor(2.0), "λ") == 2.0


@pytest.mark.parametrize("value", [0.99, -1, math.nan, math.inf, "a"])
def test_a_number_may_be_its_bound(value):
    with pytest.raises(InputError, match="m must be a finite number of at least 1"):
        at_least(value, 1, "m")
    assert at_least(1, 1, "m") == 1.0


@pytest.mark.parametrize("value", [0, 4, 2.0, True, "2", math.nan])
def test_a_whole_number_has_bounds(value):
    with pytest.raises(InputError, match="n must be a whole number from 1 to 3"):
        whole(value, 1, "n", most=3)
    assert whole(3, 1, "n", most=3) == 3


def test_a_whole_number_is_one_that_a_tensor_holds():
    with pytest.raises(InputError, match=f"seed must be a whole number from 0 to {2**63 - 1}, not {2**63}"):
        whole(2**63, 0, "seed")
    with pytest.raises(InputError, match="seed must be a whole number of at least 0, not -1"):
        whole(-1, 0, "seed")
    assert whole(2**63 - 1, 0, "seed") == 2**63 - 1
