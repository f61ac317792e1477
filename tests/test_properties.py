"""What must hold for any data."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.fit.kronecker import ekfac_blocks
from bayesrm_fast.fit.moments import EigenvalueCorrection
from bayesrm_fast.model.passes import likelihood_cotangent
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.kronecker import KroneckerPosterior

SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.builds(words, st.integers(1, 12), st.integers(0, 10**6))


@pytest.fixture(scope="module", params=["llama", "bert"])
def fitted(request):
    model = tiny_adapter(request.param, dtype=torch.float64)
    return BayesianRewardModel(model, tiny_tokenizer(request.param)).fit(
        tiny_pairs(), structure="ekfac", rank=6, prior_precision=0.5
    )


@SETTINGS
@given(texts=st.lists(TEXTS, min_size=1, max_size=8), budget=st.integers(1, 120), data=st.data())
def test_batches_and_order_change_nothing(fitted, texts, budget, data):
    prompt = words(3, 1)
    order = data.draw(st.permutations(range(len(texts))))
    alone = [fitted.score([prompt], [text]) for text in texts]
    other = BayesianRewardModel(fitted.model, fitted.tokenizer, max_batch_tokens=budget)
    other.posterior = fitted.posterior
    together = other.score([prompt] * len(texts), [texts[i] for i in order])
    for position, i in enumerate(order):
        # Rounding to float32 inside the model (RMSNorm) is part of "beyond rounding".
        torch.testing.assert_close(together.mean[position], alone[i].mean[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.variance[position], alone[i].variance[0], rtol=1e-5, atol=1e-6)


@SETTINGS
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), precision=st.floats(1e-6, 1e6))
def test_covariance_is_positive_semidefinite_with_the_variance_on_its_diagonal(fitted, texts, precision):
    before = fitted.posterior.prior_precision
    fitted.posterior.prior_precision = precision
    try:
        joint = fitted.covariance(words(3, 1), texts)
        scores = fitted.score([words(3, 1)] * len(texts), texts)
    finally:
        fitted.posterior.prior_precision = before
    assert (scores.variance >= 0).all()
    torch.testing.assert_close(joint.covariance.diagonal(), scores.variance, rtol=1e-5, atol=0)
    smallest = torch.linalg.eigvalsh(joint.covariance)[0]
    assert smallest >= -1e-10 * joint.covariance.diagonal().max()


def test_variance_tends_to_the_prior_as_its_precision_grows(fitted):
    class SquaredNorms:
        gradients_alone = True
        total = 0.0

        def consume(self, site, p, q, offsets):
            self.total = self.total + segment_outer(p, q, offsets).square().sum((1, 2))

    prompts, responses = [words(3, 1)] * 3, [words(4, i) for i in range(3)]
    rows = fitted.tokenize(prompts, responses)
    squared = torch.zeros(3, dtype=torch.float64)
    for batch in fitted.passes().over(rows, torch.ones_like, SquaredNorms):
        squared[batch.positions] = batch.consumer.total
    before = fitted.posterior.prior_precision
    fitted.posterior.prior_precision = 1e12
    try:
        variance = fitted.score(prompts, responses).variance
    finally:
        fitted.posterior.prior_precision = before
    torch.testing.assert_close(variance * 1e12, squared, rtol=1e-6, atol=0)


@SETTINGS
@given(count=st.integers(1, 6), more=st.integers(1, 6), seed=st.integers(0, 1000))
def test_more_pairs_never_raise_an_ekfac_variance_at_fixed_bases(fitted, count, more, seed):
    bases = {name: (block.basis_p, block.basis_q) for name, block in fitted.posterior.blocks.items()}
    pairs = tiny_pairs(count + more, seed)
    variances = []
    for some in (pairs[:count], pairs):
        _, measured = fitted.passes().gather(
            fitted.tokenize_pairs(some), likelihood_cotangent, lambda: EigenvalueCorrection(bases)
        )
        blocks = ekfac_blocks(fitted.posterior.blocks, measured)
        posterior = KroneckerPosterior(fitted.posterior.sites, blocks, fitted.posterior.record, 0.5)
        other = BayesianRewardModel(fitted.model, fitted.tokenizer)
        other.posterior = posterior
        variances.append(other.score([words(3, 1)] * 4, [words(5, i) for i in range(4)]).variance)
    assert (variances[1] <= variances[0] * (1 + 1e-6)).all()


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "ggn"])
def test_order_and_sharding_of_the_pairs_change_nothing(structure):
    pairs = tiny_pairs(8)
    results = []
    for some, budget in ((pairs, 4096), (pairs[::-1], 30)):
        model = tiny_adapter("bert", dtype=torch.float32)
        rm = BayesianRewardModel(model, tiny_tokenizer("bert"), max_batch_tokens=budget)
        rm.fit(some, structure=structure, rank=6, prior_precision=0.5)
        results.append(rm.score([words(3, 1)] * 4, [words(5, i) for i in range(4)]).variance)
    torch.testing.assert_close(results[0], results[1], rtol=RELATIVE[torch.float32], atol=0)
