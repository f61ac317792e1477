"""A ggn fit through a model: its passes, and what its eigenvectors are kept in."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.fit.sketches import GGN_OVERSAMPLING

TEXTS = [words(3, 1)] * 6, [words(5, i) for i in range(6)]


@pytest.fixture
def rm():
    return BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))


def test_a_sketch_only_adds_to_the_variances_and_a_second_pass_finds_what_the_first_lost(rm):
    """A step of subspace iteration: of the leading eigenvalues a tenth of the loss is left, and far less."""
    pairs = tiny_pairs(2 * GGN_OVERSAMPLING + 20)
    exact = rm.fit(pairs, rank=None, prior_precision=1.0).score(*TEXTS).variance
    leading = float(rm.posterior.eigenvalues[:GGN_OVERSAMPLING].sum())
    lost, added = [], []
    for second_pass in (False, True):
        rm.fit(pairs, rank=GGN_OVERSAMPLING, prior_precision=1.0, second_pass=second_pass)
        assert len(rm.posterior.eigenvalues) == GGN_OVERSAMPLING
        variance = rm.score(*TEXTS).variance
        assert (variance > exact * (1 - 1e-4)).all()  # the prior outside of the eigenvectors only adds
        added.append(float((variance / exact - 1).mean()))
        lost.append(1 - float(rm.posterior.eigenvalues.sum()) / leading)
    assert lost[1] < lost[0] / 10
    assert added[1] <= added[0] * (1 + 1e-3) < 1.0


@pytest.mark.parametrize(("pairs", "passes"), [(4 + GGN_OVERSAMPLING, 1), (5 + GGN_OVERSAMPLING, 2)])
def test_a_second_pass_is_made_where_the_first_was_not_exact(rm, pairs, passes):
    told = []
    rm.fit(tiny_pairs(pairs), rank=4, second_pass=True, prior_precision=1.0, progress=lambda *at: told.append(at))
    assert told[-1] == (passes * pairs, passes * pairs)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.int8])
def test_eigenvectors_are_kept_in_what_is_asked_for(rm, dtype):
    """With the bound of `tests/posterior/test_ggn.py` for what the rounding does."""
    expected = rm.fit(tiny_pairs(), prior_precision=10.0).score(*TEXTS).variance
    posterior = rm.fit(tiny_pairs(), prior_precision=10.0, basis_dtype=dtype).posterior
    assert {basis.values.dtype for basis in posterior.bases.values()} == {dtype or torch.float32}
    rounding = {torch.bfloat16: 2**-8, torch.int8: 2 / 127}  # of a number; of a row's largest, which is no smaller
    bound = rounding[dtype] * float(posterior.eigenvalues.sum() / 10.0) ** 0.5 if dtype in rounding else 1e-5
    torch.testing.assert_close(rm.score(*TEXTS).variance, expected, rtol=bound, atol=0)
