"""What a fit can be asked for, and what is refused before it begins."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.fit.options import DEFAULT_RANK, FitOptions, check_precision
from bayesrm_fast.fit.sketches import GGN_OVERSAMPLING


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"structure": "dense"}, "structure must be one of kfac, ekfac, ggn"),
        ({"rank": 0}, "rank must be"),
        ({"rank": 2.0}, "rank must be"),
        ({"rank": True}, "rank must be"),
        ({"rank": "all"}, "rank must be"),
        ({"prior_precision": "guess"}, "'evidence', 'validation' or 'margins'"),
        ({"prior_precision": 0.0}, "positive number"),
        ({"prior_precision": float("nan")}, "positive number"),
        ({"structure": "kfac", "second_pass": True}, "for structure='ggn' alone"),
        ({"structure": "ekfac", "basis_dtype": torch.bfloat16}, "for structure='ggn' alone"),
        ({"basis_dtype": torch.float16}, "basis_dtype must be"),
    ],
)
def test_what_cannot_be_served_is_refused(named, message):
    with pytest.raises(InputError, match=message):
        FitOptions(**named)


@pytest.mark.parametrize("structure", DEFAULT_RANK)
def test_a_rank_is_the_structures_default_where_none_is_asked_for_and_none_is_all(structure):
    assert FitOptions(structure).kept == DEFAULT_RANK[structure]
    assert FitOptions(structure, 3).kept == 3
    assert FitOptions(structure, None).kept is None


def test_passes_are_two_where_a_second_one_changes_something():
    assert FitOptions("kfac").passes(10**6) == 1
    assert FitOptions("ekfac").passes(1) == 2
    many = 4 + GGN_OVERSAMPLING + 1
    assert FitOptions("ggn", 4).passes(many) == 1
    assert FitOptions("ggn", 4, second_pass=True).passes(many) == 2
    assert FitOptions("ggn", 4, second_pass=True).passes(many - 1) == 1


def test_a_default_prior_precision_gives_way_to_one_that_is_asked_for():
    assert FitOptions("kfac", 7).with_default("margins") == FitOptions("kfac", 7, "margins")
    assert FitOptions(prior_precision=2.0).with_default("margins").chosen == 2.0


@pytest.mark.parametrize("precision", ["evidence", "validation", "margins", 1e-9, 3])
def test_a_choice_or_a_positive_number_is_a_precision(precision):
    check_precision(precision)
    assert FitOptions(prior_precision=precision).chosen == precision
