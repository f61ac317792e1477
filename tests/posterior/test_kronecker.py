"""kfac's and ekfac's blocks: their weights, and how they lie in memory."""

import pytest
import torch
from posterior.structures import Case, feed

from bayesrm_fast.posterior.kronecker import KroneckerPosterior


@pytest.fixture
def posterior():
    return Case("ekfac", 5, "a shared input", torch.float64).fit()


def test_weights_are_the_posterior_variances_of_the_coordinates(posterior):
    block = posterior.blocks["k"]
    for precision in (None, 3.0):
        inside, outside = posterior.weights("k", precision)
        torch.testing.assert_close(1 / inside - (precision or 0.5), block.eigenvalues)
        torch.testing.assert_close(1 / outside - (precision or 0.5), block.tail)


def test_what_lies_outside_of_a_basis_is_counted_and_of_a_whole_one_nothing_is_kept(posterior):
    assert posterior.blocks["q"].outside == 5
    case = Case("ekfac", None, "a shared input", torch.float64)
    whole = case.fit()
    assert {block.outside for block in whole.blocks.values()} == {0}
    inside, outside = feed(whole.feature_consumer(), case.scored_tokens, case.sites).features()
    assert not outside
    assert {name: rows.shape[1] for name, rows in inside.items()} == {"q": 30, "k": 20, "k.B": 16}


def test_bases_lie_by_columns_however_they_came(posterior):
    """As the C++ operations read them; a basis of another layout would be turned at every call."""
    tensors = {name: tensor.contiguous() for name, tensor in posterior.tensors().items()}
    arguments = posterior.record, posterior.prior, 1.0
    other = KroneckerPosterior.from_tensors(posterior.sites, tensors, *arguments)
    for one in (posterior, other):
        assert all(block.basis_q.T.is_contiguous() for block in one.blocks.values())


def test_a_missing_tensor_is_a_key_error(posterior):
    tensors = posterior.tensors()
    del tensors["k.B/tail"]
    with pytest.raises(KeyError, match=r"k\.B/tail"):
        KroneckerPosterior.from_tensors(posterior.sites, tensors, posterior.record, posterior.prior, 1.0)
