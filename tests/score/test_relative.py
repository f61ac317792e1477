"""Differences to a baseline: exact for every structure, however many rows fit in memory."""

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from tolerances import FLOAT32_INSIDE, RELATIVE

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.head import find_head
from bayesrm_fast.posterior.files import CLASSES
from bayesrm_fast.score import relative
from bayesrm_fast.score.relative import Comparison, positions_of_equals, score_differences

PROMPT = words(4, 100)
RESPONSES = [words(2 + i, 10 + i) for i in range(5)]


def fitted(architecture="llama", structure="ggn", dtype=torch.float64, rank=5, **options):
    rm = BayesianRewardModel(tiny_adapter(architecture, dtype=dtype), tiny_tokenizer(architecture), **options)
    return rm.fit(tiny_pairs(), structure=structure, rank=rank, prior_precision=0.7)


def virtual(architecture="llama", structure="ggn"):
    rm = BayesianRewardModel(tiny_base(architecture, dtype=torch.float64), tiny_tokenizer(architecture), virtual_rank=2)
    return rm.fit(tiny_pairs(), structure=structure, rank=5, prior_precision=0.7)


def of_covariance(covariance, weights):
    """`(e_i − w)ᵀ C (e_i − w)` of every candidate."""
    away = np.eye(len(weights)) - np.asarray(weights)
    return np.einsum("ij,jk,ik->i", away, covariance, away)


@pytest.fixture(params=["kept", "two passes"])
def memory(request, monkeypatch):
    """Gradients wait for their baseline, or are too many for that."""
    if request.param == "two passes":
        monkeypatch.setattr(relative, "free_bytes", lambda _: 0)


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_variances_of_differences_to_the_mean_are_those_of_the_joint_posterior(architecture, structure, dtype, memory):
    rm = fitted(architecture, structure, dtype)
    covariance = rm.covariance(PROMPT, RESPONSES).covariance.double().numpy()
    found = rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt")
    expected = of_covariance(covariance, [0.2] * 5)
    # A covariance's rounding is relative to the variances, which the differences' own are a part of.
    slack = RELATIVE[dtype] * np.diag(covariance).max()
    np.testing.assert_allclose(found.variance.double(), expected, rtol=RELATIVE[dtype], atol=slack)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture):
    rm = fitted(architecture)
    covariance = rm.covariance(PROMPT, RESPONSES).covariance.numpy()
    found = rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt")
    expected = of_covariance(covariance, [0.2] * 5)
    np.testing.assert_allclose(found.variance, expected, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE * covariance.max())


@pytest.mark.parametrize("structure", CLASSES)
def test_virtual_adapters(structure, memory):
    rm = virtual(structure=structure)
    covariance = rm.covariance(PROMPT, RESPONSES).covariance.numpy()
    found = rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt")
    np.testing.assert_allclose(found.variance, of_covariance(covariance, [0.2] * 5), rtol=1e-8)


def test_a_response_counts_as_often_as_it_is_given(memory):
    rm = fitted()
    given = [*RESPONSES[:3], RESPONSES[0], RESPONSES[0]]
    covariance = rm.covariance(PROMPT, RESPONSES[:3]).covariance.numpy()
    found = rm.score([PROMPT] * 5, given, relative_to="prompt")
    expected = of_covariance(covariance, [0.6, 0.2, 0.2])
    np.testing.assert_allclose(found.variance, expected[[0, 1, 2, 0, 0]], rtol=1e-8)
    rewards = rm.rewards([PROMPT] * 5, given)
    torch.testing.assert_close(found.mean, rewards - rewards.mean(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.baseline, rewards.mean().expand(5), rtol=1e-8, atol=1e-10)


def test_prompts_are_compared_within_themselves_whatever_shares_their_window(monkeypatch):
    rm = fitted()
    prompts, responses = [PROMPT, words(3, 7)] * 4, [words(2 + i, 40 + i) for i in range(8)]
    whole = rm.score(prompts, responses, relative_to="prompt")
    for own in (slice(0, None, 2), slice(1, None, 2)):
        alone = rm.score(prompts[own], responses[own], relative_to="prompt")
        torch.testing.assert_close(whole.variance[own], alone.variance, rtol=1e-8, atol=0)
        torch.testing.assert_close(whole.mean[own], alone.mean, rtol=1e-8, atol=1e-10)
    size = rm.posterior.parameters * 8
    for rows in (1, 4, 5, 7, 8):
        monkeypatch.setattr(
            relative, "free_bytes", lambda _, rows=rows: int(rows * size / relative.SHARE_FOR_GRADIENTS)
        )
        again = rm.score(prompts, responses, relative_to="prompt")
        torch.testing.assert_close(again.variance, whole.variance, rtol=1e-8, atol=0)
        torch.testing.assert_close(again.mean, whole.mean, rtol=1e-8, atol=1e-10)


def test_a_window_has_no_more_differences_than_rows_that_fit():
    """Of a few rows there are many pairs, each of whose differences is as large as a gradient."""
    comparisons = [relative.Comparison([i], [j]) for i in range(5) for j in range(i)]
    assert [len(window) for window in relative._windows(comparisons, 4)] == [4, 2, 3, 1]


def test_gradients_that_turn_out_not_to_fit_take_two_passes(monkeypatch):
    rm = fitted()
    prompts, responses = [PROMPT, words(3, 7)] * 3, [words(2 + i, 40 + i) for i in range(6)]
    expected = rm.score(prompts, responses, relative_to="prompt")
    feed, calls = relative.feed_gradients, []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        feed(*arguments)

    monkeypatch.setattr(relative, "feed_gradients", fails_once)
    found = rm.score(prompts, responses, relative_to="prompt")
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-8, atol=1e-10)


def test_windows_are_no_larger_than_batches_need(monkeypatch):
    monkeypatch.setattr(relative, "WINDOW_ROWS", 4)
    told = []
    prompts = [words(3, i) for i in range(6) for _ in range(2)]
    responses = [words(2 + i % 5, 40 + i) for i in range(12)]
    fitted().score(prompts, responses, relative_to="prompt", progress=lambda *at: told.append(at))
    assert told == [(4, 12), (8, 12), (12, 12)]


def test_a_half_precision_model_keeps_no_graph():
    rm = BayesianRewardModel(
        tiny_adapter("llama", base=tiny_base("llama", dtype=torch.float16)), tiny_tokenizer("llama")
    )
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    for scores in (rm.score([PROMPT] * 5, RESPONSES), rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt")):
        assert not scores.variance.requires_grad
    assert not rm.covariance(PROMPT, RESPONSES).covariance.requires_grad


def test_references_of_ones_own(memory):
    rm = fitted()
    references = [words(6, 70), words(6, 70), words(2, 71), words(2, 71), words(6, 70)]
    found = rm.score([PROMPT] * 5, RESPONSES, relative_to=references)
    pairs = [
        {"prompt": PROMPT, "chosen": response, "rejected": reference}
        for response, reference in zip(RESPONSES, references, strict=True)
    ]
    expected = rm.score_pairs(pairs)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-7, atol=1e-9)
    assert found.baseline.unique().numel() == 2


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_candidates_differ_by_nothing(count):
    found = fitted(dtype=torch.float32).score([PROMPT] * count, [RESPONSES[0]] * count, relative_to="prompt")
    assert found.mean.tolist() == found.variance.tolist() == [0.0] * count


def test_a_single_response_has_nothing_to_differ_from_and_it_is_told():
    rm = fitted()
    with pytest.warns(UserWarning, match=r"1 prompt\(s\) with a single response"):
        found = rm.score([PROMPT, "above", "above"], RESPONSES[:3], relative_to="prompt")
    assert (found.mean[0], found.variance[0]) == (0.0, 0.0)
    assert (found.variance[1:] > 0).all()
    with pytest.warns(UserWarning, match=r"1 prompt\(s\) with a single response"):
        best = rm.best_of_n(PROMPT, RESPONSES[:1])
    assert (best.index, float(best.variance[0])) == (0, 0.0)


def test_a_constant_on_a_prompts_rewards_changes_nothing():
    model = tiny_adapter("bert", dtype=torch.float64)
    rm = BayesianRewardModel(model, tiny_tokenizer("bert")).fit(tiny_pairs(), rank=5, prior_precision=0.7)
    before, best = rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt"), rm.best_of_n(PROMPT, RESPONSES)
    absolute = rm.score([PROMPT] * 5, RESPONSES)
    with torch.no_grad():
        find_head(model).module.bias.add_(3.0)
    rm.posterior = rm.posterior  # of the model as it is now
    after, again = rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt"), rm.best_of_n(PROMPT, RESPONSES)
    torch.testing.assert_close(after.mean, before.mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(again.scores, best.scores, rtol=1e-8, atol=1e-10)
    assert (rm.score([PROMPT] * 5, RESPONSES).mean - absolute.mean > 2.9).all()


def test_a_difference_without_a_baseline_is_the_reward_itself():
    rm = fitted()
    rows = rm.tokenize([PROMPT] * 5, RESPONSES)
    found = score_differences(rm.passes(), rows, [Comparison([4, 0, 1, 2, 3], [])], rm.posterior)
    expected = rm.score([PROMPT] * 5, RESPONSES)
    torch.testing.assert_close(found.variance, expected.variance[[4, 0, 1, 2, 3]], rtol=1e-8, atol=0)
    assert found.baseline.tolist() == [0.0] * 5


def test_progress_counts_the_differences(memory):
    told = []
    rm = fitted(max_batch_tokens=30)
    rm.score([PROMPT] * 5, RESPONSES, relative_to="prompt", progress=lambda *at: told.append(at))
    assert told[-1] == (5, 5)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("mean", "'prompt', a reference for each row or None"),
        (["able"], "5 prompts but 1 references"),
        (np.zeros(5), "reference 1 must be a string"),
        (iter(["able"] * 5), "a reference for each row"),
        ([3] * 5, "reference 1 must be a string"),
    ],
)
def test_references_that_cannot_be_read(references, message):
    with pytest.raises(InputError, match=message):
        fitted().score([PROMPT] * 5, RESPONSES, relative_to=references)


def test_equals_are_found_in_their_order():
    assert positions_of_equals(["b", "a", "b", "c", "a"]) == [[0, 2], [1, 4], [3]]


def test_the_joint_posterior_relative_to_its_mean_says_the_same_of_a_choice():
    joint = fitted().covariance(PROMPT, RESPONSES)
    relative_joint = joint.relative()
    assert abs(float(relative_joint.mean.sum())) < 1e-12
    expected = of_covariance(joint.covariance.numpy(), [0.2] * 5)
    np.testing.assert_allclose(relative_joint.covariance.diagonal(), expected, rtol=1e-10)
    for name in ("preference_probability", "expected_regret"):
        found, same = getattr(relative_joint, name)(), getattr(joint, name)()
        # Regrets are drawn: 65,536 draws have a standard error of std / 256.
        torch.testing.assert_close(found, same, rtol=1e-6, atol=0.02 if name == "expected_regret" else 1e-9)


def test_a_prompt_is_the_same_in_whatever_order_its_columns_come():
    rm = fitted()
    one, other = (
        [{"role": "user", "content": PROMPT}],
        [{"content": [{"type": "text", "text": PROMPT}], "role": "user"}],
    )
    expected = rm.score([one] * 5, RESPONSES, relative_to="prompt")
    found = rm.score([one, other, one, other, one], RESPONSES, relative_to="prompt")
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.variance, expected.variance)


def test_responses_that_bring_different_beginnings_answer_different_prompts():
    rm = fitted()
    asked, told = [{"role": "user", "content": PROMPT}], [{"role": "system", "content": "act"}]
    answers = [[{"role": "assistant", "content": one}] for one in RESPONSES]
    whole = [[*(told if i < 2 else []), *asked, *one] for i, one in enumerate(answers)]
    found = rm.score([PROMPT] * 5, whole, relative_to="prompt")
    parts = [
        rm.score([[*told, *asked]] * 2, answers[:2], relative_to="prompt"),
        rm.score([asked] * 3, answers[2:], relative_to="prompt"),
    ]
    torch.testing.assert_close(found.mean, torch.cat([one.mean for one in parts]))
    torch.testing.assert_close(found.variance, torch.cat([one.variance for one in parts]))
