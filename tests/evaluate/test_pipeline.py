"""Our models in RewardBench's pipeline and runner."""

import json
import shutil
from unittest.mock import MagicMock

import pytest
import torch
from accelerate.state import AcceleratorState
from rewardbench_peer import needs_rewardbench, peer, runner
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.evaluate.pipeline import REWARD_MODEL_CONFIG, BayesianPipeline
from bayesrm_fast.text.files import read_rows, write_rows

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.fixture
def rm():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama", TEMPLATE))


def rendered(rm, count=4):
    def conversation(i):
        answer = {"role": "assistant", "content": words(2 + i, 50 + i)}
        return [{"role": "user", "content": words(3, i)}, answer]

    return [rm.tokenizer.apply_chat_template(conversation(i), tokenize=False) for i in range(count)]


def test_rendered_texts_have_the_rewards_of_their_conversations(rm):
    pipeline = BayesianPipeline("text-classification", model=rm, tokenizer=rm.tokenizer)
    prompts, responses = [words(3, i) for i in range(4)], [words(2 + i, 50 + i) for i in range(4)]
    expected = rm.rewards(prompts, responses)[:, None]
    torch.testing.assert_close(pipeline(rendered(rm), batch_size=2, truncation=False), expected, rtol=1e-5, atol=1e-6)
    conversations = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    torch.testing.assert_close(pipeline(conversations), expected, rtol=1e-5, atol=1e-6)


def test_inputs_are_returned_where_they_are_asked_for(rm):
    logits, inputs = BayesianPipeline("", model=rm, tokenizer=None)(rendered(rm, 3), return_inputs=True)
    assert logits.shape == (3, 1)
    assert inputs["input_ids"].shape[0] == 3
    assert (inputs["input_ids"][:, :2] == rm.tokenizer.bos_token_id).sum() == 3  # one each


def test_a_sample_that_is_no_text_is_named(rm):
    with pytest.raises(InputError, match="sample 2"):
        BayesianPipeline("", model=rm, tokenizer=None)(["able", 3])


@needs_rewardbench
def test_rewards_are_those_of_their_pipeline(rm, monkeypatch):
    """Theirs moves everything to a GPU, and masks the second of two beginning-of-sequence tokens."""
    from transformers import BatchEncoding

    monkeypatch.setattr(BatchEncoding, "to", lambda self, device: self)
    pipeline = peer("models/pipeline").RewardBenchPipeline
    theirs = pipeline("text-classification", model=rm.model, tokenizer=rm.tokenizer)(rendered(rm), max_length=64)
    ours = BayesianPipeline("text-classification", model=rm, tokenizer=rm.tokenizer)(rendered(rm))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def saved_with_template(adapter_folder, tmp_path):
    """A fitted model whose tokenizer has a chat template, in the folder `model`."""
    shutil.copytree(adapter_folder, tmp_path / "adapter")
    tiny_tokenizer("llama", TEMPLATE).save_pretrained(tmp_path / "adapter")
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    rm.fit(tiny_pairs(), structure="kfac", rank=2).save_pretrained(tmp_path / "model")
    return rm


@pytest.fixture
def their_runner(monkeypatch):
    """Without what it sets for the whole process: logging, and the state of accelerate."""
    found = runner(REWARD_MODEL_CONFIG)
    monkeypatch.setattr(found, "transformers", MagicMock())
    monkeypatch.setattr(found.logging, "basicConfig", lambda **_: None)
    yield found
    AcceleratorState._reset_state(reset_partial_state=True)


@needs_rewardbench
def test_their_runner_runs_a_saved_model(saved_with_template, their_runner, tmp_path, monkeypatch):
    rows = []
    for i in range(5):
        asked = {"role": "user", "content": words(3, i)}
        sides = {"chosen": words(4, 30 + i), "rejected": words(5, 60 + i)}
        rows.append({name: [asked, {"role": "assistant", "content": text}] for name, text in sides.items()})
    write_rows(tmp_path / "pairs.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    arguments = dict(model="model", dataset="pairs.jsonl", load_json=True, output_dir="out/", batch_size=2)
    their_runner.rewardbench(their_runner.Args(**arguments))
    told = read_rows(tmp_path / "out" / "model_outputs.jsonl")
    for side in ("chosen", "rejected"):
        expected = saved_with_template.rewards([row[side][:1] for row in rows], [row[side][1:] for row in rows])
        assert [row[f"scores_{side}"] for row in told] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    accuracy = json.loads((tmp_path / "out" / "model.json").read_text())["accuracy"]
    assert accuracy == sum(row["scores_chosen"] > row["scores_rejected"] for row in told) / 5
