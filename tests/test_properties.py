"""What must hold for any texts through a model; `posterior/test_family.py` has what must hold for any tokens."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.ops import segment_outer
from bayesrm_fast.posterior.files import CLASSES

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


@pytest.mark.parametrize("structure", CLASSES)
def test_order_and_sharding_of_the_pairs_change_nothing(structure):
    pairs = tiny_pairs(8)
    results = []
    for some, budget in ((pairs, 4096), (pairs[::-1], 30)):
        model = tiny_adapter("bert", dtype=torch.float32)
        rm = BayesianRewardModel(model, tiny_tokenizer("bert"), max_batch_tokens=budget)
        rm.fit(some, structure=structure, rank=6, prior_precision=0.5)
        results.append(rm.score([words(3, 1)] * 4, [words(5, i) for i in range(4)]).variance)
    torch.testing.assert_close(results[0], results[1], rtol=RELATIVE[torch.float32], atol=0)
