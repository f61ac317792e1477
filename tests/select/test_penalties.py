"""What a reward is lessened by for its std."""

import math

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.select.penalties import PenaltyOfStd

STD = [0.0, 0.25, 3.0]


@pytest.mark.parametrize(
    ("kind", "formula"),
    [("std", lambda k, std: k * std), ("entropic", lambda k, std: k * std**2 / 2), ("none", lambda k, std: 0.0)],
)
def test_a_penalty_is_the_same_of_numbers_and_of_tensors(kind, formula):
    penalty = PenaltyOfStd(kind, 1.5)
    expected = [formula(1.5, std) for std in STD]
    assert [penalty.of(std) for std in STD] == expected
    found = penalty.of(torch.tensor([*STD, math.nan], dtype=torch.float64))
    assert found[:-1].tolist() == expected
    assert found[-1].isnan()


def test_by_default_there_is_none():
    assert PenaltyOfStd().of(2.0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sd",), "penalty must be one of std, entropic, none, not 'sd'"),
        (("std", -1.0), "k must be a finite number of at least 0, not -1.0"),
        (("std", math.nan), "k must be a finite number"),
        (("std", math.inf), "k must be a finite number"),
        (("std", True), "k must be a finite number"),
    ],
)
def test_what_is_none_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        PenaltyOfStd(*options)
