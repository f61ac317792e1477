"""Rows that begin alike have the variances of whole rows where their beginning's forward pass is shared."""

import pytest
import torch
from tiny import DECODERS, tiny_adapter, tiny_pairs, tiny_step_model, tiny_steps, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model import shared_backward
from bayesrm_fast.model.passes import KeptGradients, unit_cotangent
from bayesrm_fast.model.shared_backward import over_examples, run_after
from bayesrm_fast.text.examples import TokenizedRow

PROMPT, RESPONSES = words(14, 1), [words(1 + 3 * i % 7, 50 + i) for i in range(6)]
OTHERS = ([words(3, 5)] * 2, [words(4, 6), words(2, 7)])


@pytest.fixture
def shares(monkeypatch):
    """Every group that can share does."""
    monkeypatch.setattr(shared_backward, "LEAST_SAVED", 1)
    monkeypatch.setattr(shared_backward, "WORTH_SHARING", 1 / 4)
    monkeypatch.setattr(shared_backward, "SMALLEST_BATCH", 0)


@pytest.fixture
def passed(monkeypatch):
    """What `run_after` was called on: rows of each call."""
    seen = []

    def counted(tapped, beginning, following, *rest):
        seen.append((beginning.input_ids.shape, following.input_ids.shape))
        return run_after(tapped, beginning, following, *rest)

    monkeypatch.setattr(shared_backward, "run_after", counted)
    return seen


def fitted(architecture, dtype=torch.float64, virtual=False, max_batch_tokens=4096, **options):
    model = tiny_adapter(architecture, dtype=dtype)
    if virtual:
        rm = BayesianRewardModel(model.merge_and_unload(), tiny_tokenizer(architecture), virtual_rank=3)
    else:
        rm = BayesianRewardModel(model, tiny_tokenizer(architecture), max_batch_tokens=max_batch_tokens)
    return rm.fit(tiny_pairs(), prior_precision=1.0, **options)


def prompts_and_responses():
    return [PROMPT] * 6 + OTHERS[0], RESPONSES + OTHERS[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"include_head": True}, {"structure": "kfac", "rank": 4}, {"structure": "ekfac", "rank": None}],
    ids=["ggn", "with the head", "kfac", "ekfac"],
)
@pytest.mark.parametrize("architecture", DECODERS)
def test_variances_are_those_of_whole_rows(architecture, options, shares, passed, monkeypatch):
    rm = fitted(architecture, **options)
    texts = prompts_and_responses()
    absolute, relative = rm.score(*texts), rm.score(*texts, relative_to="prompt")
    joint = rm.covariance(PROMPT, RESPONSES)
    assert shared_backward._served[rm.model]
    monkeypatch.setattr(shared_backward, "_groups", lambda *_: [])
    passed.clear()
    for found, expected in (
        (absolute.mean, rm.score(*texts).mean),
        (absolute.variance, rm.score(*texts).variance),
        (relative.variance, rm.score(*texts, relative_to="prompt").variance),
        (joint.covariance, rm.covariance(PROMPT, RESPONSES).covariance),
    ):
        rounding = 2e-6 if architecture == "gemma2" else 1e-9  # its float64 attention is in float32 inside
        torch.testing.assert_close(found, expected, rtol=0, atol=rounding * float(expected.abs().max()))
    assert not passed


def test_aggregates_of_steps_share_among_rows_of_as_many_steps(shares, passed, monkeypatch):
    rm = BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64)).fit(tiny_steps(), prior_precision=1.0)
    rows = [row | {"prompt": PROMPT} for row in tiny_steps(7, seed=5)]
    found = rm.score_aggregates(rows, relative_to="prompt")
    assert sorted(following[0] for _, following in passed[1:]) == [2, 3]
    monkeypatch.setattr(shared_backward, "_groups", lambda *_: [])
    expected = rm.score_aggregates(rows, relative_to="prompt").variance
    torch.testing.assert_close(found.variance, expected, rtol=0, atol=1e-9 * float(expected.max()))


def test_virtual_adapters_too(shares, passed, monkeypatch):
    rm = fitted("llama", virtual=True)
    found = rm.score(*prompts_and_responses()).variance
    assert passed
    monkeypatch.setattr(shared_backward, "_groups", lambda *_: [])
    torch.testing.assert_close(found, rm.score(*prompts_and_responses()).variance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_the_models_own_precision(dtype, shares, passed, monkeypatch):
    rm = fitted("llama", dtype=dtype)
    found = rm.score(*prompts_and_responses()).variance
    assert passed
    monkeypatch.setattr(shared_backward, "_groups", lambda *_: [])
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found, rm.score(*prompts_and_responses()).variance, rtol=64 * rounding, atol=0)


def test_the_beginning_runs_once_and_small_batches_follow_it(shares, passed):
    whole = fitted("llama").score([PROMPT] * 6, RESPONSES)
    rm = fitted("llama", max_batch_tokens=60)
    rows = rm.tokenize([PROMPT] * 6, RESPONSES)
    passed.clear()
    shared_backward._served[rm.model] = True
    found = rm.score_tokenized(rows)
    (beginning,) = {shape for shape, _ in passed}
    assert beginning[0] == 1
    assert sum(rows for _, (rows, _) in passed) == 6
    assert len(passed) > 1
    torch.testing.assert_close(found.variance, whole.variance, rtol=1e-9, atol=0)


def test_a_model_whose_cache_lets_no_gradient_through_does_not_share(shares, passed, monkeypatch, caplog):
    rm = fitted("llama")
    from bayesrm_fast.model.forward import Forward, cache_of, held_in

    bare = Forward.keys_and_values

    def cut(self, batch):
        return cache_of(
            (keys.detach(), values.detach().requires_grad_()) for keys, values in held_in(bare(self, batch))
        )

    monkeypatch.setattr(Forward, "keys_and_values", cut)
    with caplog.at_level("INFO", logger="bayesrm_fast"):
        found = [rm.score(*prompts_and_responses()).variance for _ in range(2)]
    assert len(passed) == 1, "it is tried once"
    assert "do not share the forward pass of their beginning" in caplog.text
    monkeypatch.setattr(shared_backward, "_groups", lambda *_: [])
    expected = rm.score(*prompts_and_responses()).variance
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=0)


def test_a_model_in_float16_does_not_share(shares, passed):
    rm = fitted("llama", dtype=torch.float16)
    rm.score(*prompts_and_responses())
    assert not passed


def test_a_model_that_becomes_float16_no_longer_shares(shares, passed):
    rm = fitted("llama", dtype=torch.float32)
    rm.score(*prompts_and_responses())
    assert passed
    rm.model.half()
    rm.fit(tiny_pairs(), prior_precision=1.0)
    passed.clear()
    rm.score(*prompts_and_responses())
    assert not passed


def test_a_model_that_cannot_since_its_trial_runs_whole_rows(shares, monkeypatch):
    """As one that was compiled in between, whose backward pass nothing can batch."""
    rm = fitted("llama")
    expected = rm.score(*prompts_and_responses()).variance

    def failing(*_):
        raise RuntimeError("compiled backward function within vmap")

    monkeypatch.setattr(shared_backward, "run_after", failing)
    for _ in range(2):
        found = rm.score(*prompts_and_responses()).variance
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert not shared_backward._served[rm.model]


def test_a_model_whose_layers_are_run_again_does_not_share(shares, passed, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.model.shared_beginnings.LEAST_SAVED", 0)
    rm = fitted("llama")
    texts = prompts_and_responses()
    expected, rewards = rm.score(*texts), rm.rewards(*texts)
    rm.model.gradient_checkpointing_enable()
    passed.clear()
    torch.testing.assert_close(rm.score(*texts).variance, expected.variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(rm.rewards(*texts), rewards, rtol=1e-9, atol=1e-12)
    assert not passed


def test_what_follows_has_its_token_types(shares, passed):
    rm = fitted("gpt2")
    ids, types = [1, 5, 6, 7, 8, 9], [0, 0, 0, 1, 1, 1]
    rows = [TokenizedRow([*ids, 10 + i], [*types, 1], False) for i in range(4)]
    found = rm.score_tokenized(rows)
    assert passed
    alone = [rm.score_tokenized([row]) for row in rows]
    torch.testing.assert_close(found.mean, torch.cat([one.mean for one in alone]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.variance, torch.cat([one.variance for one in alone]), rtol=1e-9, atol=0)


def test_where_memory_is_short_rows_run_whole(shares, passed):
    rm = fitted("llama")
    passes = rm.passes()
    passes.budget.checkpoints = True
    rows = rm.tokenize([PROMPT] * 6, RESPONSES)
    batches = list(over_examples(passes, rows, unit_cotangent, KeptGradients))
    assert sorted(i for batch in batches for i in batch.positions) == list(range(6))
    assert not passed


def test_a_batch_that_does_not_fit_is_run_again_in_parts(shares, monkeypatch):
    rm = fitted("llama")
    expected = rm.score([PROMPT] * 6, RESPONSES).variance
    sizes = []

    def failing(tapped, beginning, following, *rest):
        sizes.append(len(following.input_ids))
        if len(following.input_ids) > 2:
            raise torch.OutOfMemoryError("no memory")
        return run_after(tapped, beginning, following, *rest)

    monkeypatch.setattr(shared_backward, "run_after", failing)
    torch.testing.assert_close(rm.score([PROMPT] * 6, RESPONSES).variance, expected, rtol=1e-9, atol=0)
    assert max(sizes) > 2
    assert sizes[-1] <= 2


def test_a_trial_that_does_not_fit_is_made_again_another_time(shares, monkeypatch):
    rm = fitted("llama")

    def failing(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(shared_backward, "run_after", failing)
    expected = rm.score([PROMPT] * 6, RESPONSES).variance
    monkeypatch.setattr(shared_backward, "run_after", run_after)
    torch.testing.assert_close(rm.score([PROMPT] * 6, RESPONSES).variance, expected, rtol=1e-9, atol=0)
    assert shared_backward._served[rm.model]


def test_a_row_whose_reward_is_nan_has_its_own_number(shares):
    rm = fitted("llama", dtype=torch.float32)
    rows = rm.tokenize([PROMPT.replace("art", "a")] * 4, ["able", "about", "above art", "act"])
    passes = rm.passes()
    list(over_examples(passes, rows, unit_cotangent, KeptGradients))
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[rm.tokenizer("art").input_ids[1]] = float("nan")
    with pytest.raises(InputError, match=r"row 3: .*NaN"):
        list(over_examples(passes, rows, unit_cotangent, KeptGradients))


def test_progress_counts_rows_alone_and_in_groups(shares):
    told = []
    fitted("llama").score(*prompts_and_responses(), progress=lambda *at: told.append(at))
    assert told[-1] == (8, 8)
    assert told == sorted(told)
