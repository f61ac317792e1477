"""Penalties and ties."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.selection import first_best, penalised

MEAN, VARIANCE = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 9.0])


@pytest.mark.parametrize(
    ("penalty", "k", "scores"),
    [("none", 5.0, [1, 2, 3]), ("std", 0.5, [1, 1.5, 1.5]), ("variance", 0.5, [1, 1.5, -1.5]), ("std", 0.0, [1, 2, 3])],
)
def test_penalties(penalty, k, scores):
    assert penalised(MEAN, VARIANCE, penalty, k).tolist() == scores


def test_of_equal_scores_the_lower_index_wins():
    assert first_best(torch.tensor([1.0, 1.5, 1.5])) == 1


@pytest.mark.parametrize(("penalty", "k"), [("sdt", 1.0), ("std", -1.0), ("std", float("nan")), ("std", float("inf"))])
def test_unknown_penalties_are_refused(penalty, k):
    with pytest.raises(InputError, match=r"penalty|k must be"):
        penalised(MEAN, VARIANCE, penalty, k)
