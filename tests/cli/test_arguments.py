"""How the text of options is read."""

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.cli.arguments import dtype, number, precision, whole_number


def test_numbers():
    assert number("k", "0.5") == 0.5
    assert number("k", "1e-3") == 1e-3
    with pytest.raises(InputError, match=r"^--k must be a number, not 'much'$"):
        number("k", "much")


def test_whole_numbers():
    assert whole_number("rank", "12") == 12
    for text in ("1.5", "some", ""):
        with pytest.raises(InputError, match=f"^--rank must be a whole number, not '{text}'$"):
            whole_number("rank", text)


@pytest.mark.parametrize(
    ("text", "meant"), [("evidence", "evidence"), ("margins", "margins"), ("validation", "validation"), ("2", 2.0)]
)
def test_a_prior_precision_is_a_number_or_the_name_of_a_choice(text, meant):
    assert precision(text) == meant


def test_other_prior_precisions_are_refused():
    with pytest.raises(InputError, match=r"^--prior-precision must be a number, not 'evidense'$"):
        precision("evidense")


def test_dtypes():
    assert dtype("basis-dtype", "float32") == torch.float32
    assert dtype("basis-dtype", "bfloat16") == torch.bfloat16
    with pytest.raises(InputError, match=r"^--basis-dtype must be float32, bfloat16 or int8, not 'int4'$"):
        dtype("basis-dtype", "int4")
