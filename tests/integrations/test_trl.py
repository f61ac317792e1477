"""Reward functions inside trl's trainers."""

import asyncio
import pickle

import pytest
import torch
from datasets import Dataset
from tiny import tiny_tokenizer, words
from transformers import AutoConfig, AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from whole_rows import whole_rows

from bayesrm_fast import InputError
from bayesrm_fast.integrations.trl import async_reward_function, reward_function
from bayesrm_fast.score.variances import RewardScores

CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def policy():
    config = AutoConfig.for_model(
        "llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, vocab_size=len(tiny_tokenizer("llama")),
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("trainer", "config", "make", "conversations"),
    [(GRPOTrainer, GRPOConfig, reward_function, True), (RLOOTrainer, RLOOConfig, async_reward_function, False)],
)
def test_a_trainer_takes_two_steps(rm, tmp_path, trainer, config, make, conversations):
    prompts = [words(3, i) for i in range(8)]
    if conversations:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rows = Dataset.from_list([{"prompt": prompt, "greedy": words(3, 5)} for prompt in prompts])
    options = config(
        str(tmp_path), use_cpu=True, bf16=False, max_steps=2, num_generations=4, per_device_train_batch_size=8,
        max_completion_length=6, report_to=[], logging_steps=1, beta=0.0, save_strategy="no",
    )  # fmt: skip
    rewards = [make(rm), make(rm, "entropic", 2.0, relative_to="greedy", name="second")]
    run = trainer(
        policy(),
        reward_funcs=rewards,
        args=options,
        train_dataset=rows,
        processing_class=tiny_tokenizer("llama", CHAT if conversations else None),
    )
    run.train()
    logged = [one for one in run.state.log_history if "reward" in one]
    assert len(logged) == 2
    for one in logged:
        assert one["bayesrm/penalty"] == pytest.approx(one["bayesrm/std"], rel=1e-4)
        for name in ("bayesrm", "second"):
            assert one[f"{name}/std"] > 0
            assert 0 <= one[f"{name}/advantage_flips"] <= 1
            by_parts = one[f"{name}/mean"] - one[f"{name}/penalty"]
            assert one[f"rewards/{name}/mean"] == pytest.approx(by_parts, rel=1e-4, abs=1e-6)


def test_rows_are_logged_and_unreadable_ones_are_none(rm):
    told, extra = {}, {}
    with pytest.warns(UserWarning, match="no reward for row 3"):
        found = reward_function(rm)(
            [words(3)] * 4,
            [words(2), words(3), None, words(4)],
            told.__setitem__,
            extra.__setitem__,
            trainer_state=None,
        )
    assert found[2] is None
    assert all(isinstance(found[i], float) for i in (0, 1, 3))
    names = ("mean", "std", "penalty", "penalised", "advantage_flips", "truncated")
    assert told.keys() == {f"bayesrm/{name}" for name in names}
    assert [len(column) for column in extra.values()] == [4, 4]


def test_a_function_is_pickled_with_its_scorer():
    again = pickle.loads(pickle.dumps(reward_function(Known(), k=0.5)))
    assert again(["a"] * 2, ["b", "cc"]) == [0.5, 1.5]
    assert again.__name__ == "bayesrm"


class Known:
    """A scorer without a model: a reward is a text's length, and its std is 1."""

    def score(self, prompts, responses, *, relative_to=None):
        mean = torch.tensor([float(len(response)) for response in responses])
        return RewardScores(mean, torch.ones_like(mean), *whole_rows(len(mean)))


def test_a_column_that_is_not_there_is_named(rm):
    score = async_reward_function(rm, relative_to="greedy")
    with pytest.raises(InputError, match="relative_to names the column 'greedy'"):
        asyncio.run(score([words(3)], [words(2)]))
    with pytest.raises(InputError, match="relative_to must be 'group', the name of a column or None"):
        reward_function(rm, relative_to=["greedy"])
