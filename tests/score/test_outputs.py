"""Outputs together say what any reward made of them would say by itself."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from whole_rows import whole_rows

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.readout import PooledReadout
from bayesrm_fast.score.outputs import OutputScores

PROMPT, RESPONSES = words(5, 1), [words(1 + 2 * i, 50 + i) for i in range(4)]
OTHER_WEIGHTS = [[0.0, 1.0, 0.0], [0.3, -2.0, 0.7]]


@pytest.fixture(scope="module", params=["llama", "bert"])
def rm(request):
    model = tiny_adapter(request.param, dtype=torch.float64, num_labels=3)
    rm = BayesianRewardModel(model, tiny_tokenizer(request.param), output_weights=[1.0, 0.5, -0.25])
    return rm.fit(tiny_pairs(), prior_precision=0.7)


@pytest.mark.parametrize("weights", [None, *OTHER_WEIGHTS])
def test_a_preference_has_the_joint_posterior_of_a_model_that_is_read_so(rm, weights, monkeypatch):
    scores = rm.score_outputs(PROMPT, RESPONSES)
    if weights is None:
        weights = rm.output_weights
    else:
        monkeypatch.setattr(rm, "readout", PooledReadout(torch.tensor(weights)))
    expected, found = rm.covariance(PROMPT, RESPONSES), scores.preferred(weights)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.tokens, expected.tokens)


def test_weights_may_depend_on_the_prompt(rm):
    scores = rm.score_outputs(PROMPT, RESPONSES)
    asked = []

    def gating(prompt):
        asked.append(prompt)
        return torch.tensor(OTHER_WEIGHTS[1], requires_grad=True)

    torch.testing.assert_close(scores.preferred(gating).mean, scores.preferred(OTHER_WEIGHTS[1]).mean)
    assert asked == [PROMPT]


def test_a_std_is_that_of_each_output(rm):
    scores = rm.score_outputs(PROMPT, RESPONSES)
    assert scores.std.shape == scores.mean.shape == (4, 3)
    for output in range(3):
        alone = scores.preferred(torch.eye(3)[output])
        torch.testing.assert_close(scores.std[:, output], alone.covariance.diagonal().sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, float("nan")], "abc", lambda prompt: None, torch.zeros(3, 1)])
def test_other_weights_are_refused(rm, weights):
    with pytest.raises(InputError, match="weights must be 3 finite numbers"):
        rm.score_outputs(PROMPT, RESPONSES).preferred(weights)


def gaussian(mean, std):
    mean = torch.tensor(mean)
    covariance = torch.eye(mean.numel()).mul(std**2).view(*mean.shape, *mean.shape)
    return OutputScores("a", mean, covariance, *whole_rows(len(mean)))


def test_who_is_on_the_front_where_nothing_is_uncertain():
    scores = gaussian([[1.0, 0.0], [0.0, 1.0], [0.5, -1.0], [1.0, -0.5]], 0.0)
    assert scores.pareto_probability(10).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_equal_candidates_do_not_dominate_each_other():
    assert gaussian([[1.0, 2.0], [1.0, 2.0]], 0.0).pareto_probability(10).tolist() == [1.0, 1.0]


def test_of_one_output_the_front_is_the_best():
    scores = gaussian([[0.2], [0.0], [0.5]], 1.0)
    expected = scores.preferred([1.0]).probability_of_being_best(20_000)
    torch.testing.assert_close(scores.pareto_probability(20_000), expected, rtol=0, atol=5 * (0.25 / 20_000) ** 0.5)


def test_two_independent_candidates_of_two_outputs():
    """One dominates the other where both differences have one sign: with probability ½ of either of two."""
    found = gaussian([[0.0, 0.0], [0.0, 0.0]], 1.0).pareto_probability(40_000)
    torch.testing.assert_close(found, torch.full((2,), 0.75).double(), rtol=0, atol=5 * (0.1875 / 40_000) ** 0.5)


def test_a_model_of_tokens_is_refused(rm, monkeypatch):
    from bayesrm_fast.model.readout import TensorReadout

    monkeypatch.setattr(rm, "readout", TensorReadout())
    with pytest.raises(InputError, match="is for sequence classifiers"):
        rm.score_outputs(PROMPT, RESPONSES)
