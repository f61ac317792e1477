"""The manager and the function that verl calls, called as it does."""

import asyncio
import importlib.util
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from listening import served_at
from tiny import tiny_tokenizer, words

from bayesrm_fast import InputError
from bayesrm_fast.serve.engine import AsyncScorer

BASE = "verl.experimental.reward_loop.reward_manager.base"
PROMPT = [{"role": "user", "content": words(4)}]
RESPONSE, REFERENCE = words(3, 5), words(2, 9)


@pytest.fixture(scope="module")
def verl():
    """Our module on verl's base class; where verl is not installed, on one of the same form."""
    stand_ins = {}
    if importlib.util.find_spec("verl") is None:

        class RewardManagerBase:
            def __init__(self, config, tokenizer, compute_score):
                self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score

        names = BASE.split(".")
        stand_ins = {".".join(names[: i + 1]): ModuleType(name) for i, name in enumerate(names)}
        stand_ins[BASE].RewardManagerBase = RewardManagerBase
        sys.modules.update(stand_ins)
    from bayesrm_fast.integrations import verl

    yield verl
    for name in stand_ins:
        del sys.modules[name]


def config(**options):
    return SimpleNamespace(reward={"bayesrm": options} if options else {})


class Data(list):
    """As much of verl's DataProto as a manager reads."""

    def __getitem__(self, at):
        return Data(super().__getitem__(at)) if isinstance(at, slice) else super().__getitem__(at)


def sample(rm, response=RESPONSE, **extra_info):
    ids = torch.tensor(rm.tokenizer(response, add_special_tokens=False)["input_ids"])
    padded = torch.cat([ids, torch.zeros(3, dtype=ids.dtype)])
    mask = torch.cat([torch.ones(5), torch.ones(len(ids)), torch.zeros(3)])
    held = {"raw_prompt": np.array(PROMPT, dtype=object), "extra_info": extra_info}
    return SimpleNamespace(batch={"responses": padded, "attention_mask": mask}, non_tensor_batch=held)


@pytest.mark.parametrize("reference", [None, "greedy"])
def test_a_manager_scores_the_last_response_to_its_prompt(verl, rm, model_folder, reference):
    options = {"model": str(model_folder), "k": 0.5} | ({"reference": reference} if reference else {})
    manager = verl.BayesianRewardManager(config(**options), rm.tokenizer, None, reward_router_address=None)
    data = Data([sample(rm, words(2)), sample(rm, greedy=REFERENCE)])
    found = asyncio.run(manager.run_single(data))
    mean = float(rm.rewards([PROMPT], [RESPONSE]))
    relative_to = [REFERENCE] if reference else None
    std = float(rm.score([PROMPT], [RESPONSE], relative_to=relative_to).std)
    assert found["reward_score"] == pytest.approx(mean - 0.5 * std, rel=1e-4, abs=1e-6)
    told = {"mean": mean, "std": std, "penalty": 0.5 * std}
    assert found["reward_extra_info"] == pytest.approx(told, rel=1e-4, abs=1e-6)


def test_a_function_finds_the_prompt_in_the_rows_extra_info(verl, rm, model_folder):
    options = {"model": str(model_folder), "penalty": "entropic", "k": 2.0, "reward_router_address": None}
    score = verl.compute_score("made", RESPONSE, None, {"prompt": PROMPT}, **options)
    found = asyncio.run(score)
    scores = rm.score([PROMPT], [RESPONSE])
    assert found["score"] == pytest.approx(float(scores.mean - scores.variance), rel=1e-4, abs=1e-6)
    with pytest.raises(InputError, match="extra_info has no 'prompt'"):
        asyncio.run(verl.compute_score("made", RESPONSE, None, {}, **options))


def test_a_row_without_its_reference_is_refused_and_not_scored_by_its_own_std(verl, rm, model_folder):
    options = {"model": str(model_folder), "reference": "greedy"}
    with pytest.raises(InputError, match="extra_info has no 'greedy'"):
        asyncio.run(verl.compute_score("made", RESPONSE, None, {"prompt": PROMPT, "greedy": None}, **options))
    with pytest.raises(InputError, match="extra_info must be an object, not str"):
        asyncio.run(verl.compute_score("made", RESPONSE, None, "{}", **options))
    manager = verl.BayesianRewardManager(config(**options), rm.tokenizer)
    with pytest.raises(InputError, match="extra_info has no 'greedy'"):
        asyncio.run(manager.run_single(Data([sample(rm, greedy=None)])))


CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_reward_loop_worker_of_verl_asks_a_server(rm, model_folder, tmp_path, engine):
    reward_loop = pytest.importorskip("verl.experimental.reward_loop.reward_loop", reason="verl is not installed")
    from omegaconf import OmegaConf
    from verl import DataProto

    tiny_tokenizer("llama", CHAT).save_pretrained(tmp_path)
    model = {"enable": True, "model_path": str(tmp_path), "rollout": {"name": engine}}
    manager = {"source": "register", "name": "naive"}
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {"model": {"path": str(model_folder), "tokenizer_path": None}},
            "reward": {"custom_reward_function": {"path": None}, "reward_manager": manager, "reward_model": model},
        }
    )
    responses = [words(4, i) for i in range(6)]
    ids = torch.tensor(rm.tokenizer(responses, add_special_tokens=False)["input_ids"])
    data = DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": torch.ones(6, 4, dtype=torch.int64)},
        non_tensors={"raw_prompt": np.array([PROMPT] * 6 + [None], dtype=object)[:6]},
    )
    with served_at({str(tmp_path): AsyncScorer(rm)}) as url:
        worker = reward_loop.RewardLoopWorker(config, url.removeprefix("http://"))
        found = asyncio.run(worker.compute_score_batch(data))
    texts = [f"user {PROMPT[0]['content']} assistant {response} " for response in responses]
    rows = rm.encoder.encode_rendered(texts, add_special_tokens=True, where=texts)
    expected = rm.score_tokenized(rows).mean.tolist()
    assert [one["reward_score"] for one in found] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "verl's configuration has no reward.bayesrm.model"),
        ({"model": "folder", "kk": 2}, "reward.bayesrm has no option kk"),
        ({"model": "folder", "k": -1}, "k must be a finite number"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(verl, options, message):
    with pytest.raises(InputError, match=message):
        verl.BayesianRewardManager(config(**options), None, None)


def test_samples_that_come_together_load_one_model(verl, rm, monkeypatch):
    loaded = []

    def load(folder):
        loaded.append(folder)
        time.sleep(0.2)
        return rm

    monkeypatch.setattr(verl.BayesianRewardModel, "from_pretrained", load)
    extra_info = {"prompt": PROMPT}

    async def together():
        return await asyncio.gather(
            *(verl.compute_score("", RESPONSE, None, extra_info, model="together") for _ in range(4))
        )

    asyncio.run(together())
    assert loaded == ["together"]
