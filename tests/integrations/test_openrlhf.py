"""The function that OpenRLHF calls, called as it does."""

import asyncio
import math
from types import SimpleNamespace

import pytest
import torch
from listening import served_at
from tiny import words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.integrations.openrlhf import reward_function
from bayesrm_fast.serve.engine import AsyncScorer

QUERIES = [f"<s>{words(3 + i, i)} {words(2, 3 * i)}</s>" for i in range(12)]


def by_threads(score, queries):
    """One sample a call, all of them under way at once."""

    async def run():
        return await asyncio.gather(*(asyncio.to_thread(score, [query], [""], [None]) for query in queries))

    return asyncio.run(run())


def test_samples_of_many_threads_have_the_rewards_of_their_texts_as_they_stand(rm):
    found = by_threads(reward_function(rm, k=0.5, threshold=0.1), QUERIES)
    rows = rm.encoder.encode_rendered(QUERIES, add_special_tokens=False, where=QUERIES)
    expected = rm.score_tokenized(rows)
    for one, mean, std in zip(found, expected.mean.tolist(), expected.std.tolist(), strict=True):
        assert one["rewards"].tolist() == pytest.approx([mean - 0.5 * std], rel=1e-4, abs=1e-6)
        chance = 0.5 * math.erfc((0.1 - mean) / (std * math.sqrt(2)))
        assert one["scores"].tolist() == pytest.approx([chance], rel=1e-3)
        assert one["extra_logs"]["reward_std"].tolist() == pytest.approx([std], rel=1e-3)


@pytest.fixture
def agent():
    return pytest.importorskip("openrlhf.utils.agent", reason="openrlhf is not installed: it needs no GPU for this")


class Engine:
    """Continues every prompt by the same words."""

    def __init__(self, tokenizer):
        self.ids = tokenizer(words(3), add_special_tokens=False)["input_ids"]

    async def generate(self, ids, parameters, multi_modal_data=None):
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)])


SAMPLING = SimpleNamespace(max_tokens=8, logprobs=None)


def test_the_executor_of_openrlhf_asks_a_server(rm, agent):
    prompts = [words(3 + i % 5, i) for i in range(24)]

    async def run(url):
        executor, engine = agent.SingleTurnAgentExecutor(f"{url}/get_reward?penalty=std&k=0.5"), Engine(rm.tokenizer)
        return await asyncio.gather(
            *(executor.execute(prompt, "label", SAMPLING, 64, rm.tokenizer, engine) for prompt in prompts)
        )

    with served_at({"rm": AsyncScorer(rm)}) as url:
        found = asyncio.run(run(url))
    queries = [f"{prompt} {words(3)}" for prompt in prompts]
    rows = rm.encoder.encode_rendered(queries, add_special_tokens=False, where=queries)
    expected = rm.score_tokenized(rows)
    for one, mean, std in zip(found, expected.mean.tolist(), expected.std.tolist(), strict=True):
        assert one["reward"] == pytest.approx([mean - 0.5 * std], rel=1e-4, abs=1e-6)
        assert 0 < one["scores"][0] < 1
        assert one["extra_logs"]["reward_std"] == pytest.approx([std], rel=1e-3)


def test_the_executor_of_openrlhf_takes_it(rm, agent, tmp_path, monkeypatch):
    file = tmp_path / "my_reward.py"
    file.write_text("import builtins\nreward_func = builtins.reward_func_of_the_test\n")
    monkeypatch.setattr("builtins.reward_func_of_the_test", reward_function(rm), raising=False)
    executor = agent.SingleTurnAgentExecutor(str(file))
    found = asyncio.run(executor.execute(words(4), "label", SAMPLING, 64, rm.tokenizer, Engine(rm.tokenizer)))
    assert torch.isfinite(found["reward"]).all()
    assert ((found["scores"] > 0) & (found["scores"] < 1)).all()
    assert set(found["extra_logs"]) == {"reward_mean", "reward_std"}


def test_what_cannot_be_read_is_refused(rm, adapter_folder):
    with pytest.raises(InputError, match="text 1"):
        reward_function(rm)([None], [""], [None])
    with pytest.raises(InputError, match="penalty must be one of"):
        reward_function(rm, "sd")
    with pytest.raises(InputError, match="there is no posterior"):
        reward_function(BayesianRewardModel.from_pretrained(adapter_folder, device="cpu"))
