"""What a folder says of how its model was trained."""

import shutil

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_pairs, tiny_tokenizer, words
from transformers import AutoModelForSequenceClassification

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.saved.joining import record_joining

CHAT = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
CARD = "---\nbase_model: gpt2\ntags:\n- generated_from_trainer\n- {tag}\nlicence: license\n---\n\n# Model Card\n"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (CARD.format(tag="reward-trainer"), "trl"),
        ("---\ntags: [trl, reward-trainer]\n---\n", "trl"),
        (CARD.format(tag="dpo"), None),
        ("# Not by reward-trainer\n", None),
        (CARD.format(tag="sft") + "Unlike those of reward-trainer.\n", None),
        (None, None),
    ],
)
def test_a_model_card_tells_of_trl(tmp_path, card, expected):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    tokenizer = tiny_tokenizer("llama")
    record_joining(tokenizer, tmp_path)
    assert tokenizer.init_kwargs.get("trained_joining") == expected


def test_what_training_has_left_is_kept(tmp_path):
    (tmp_path / "README.md").write_text(CARD.format(tag="reward-trainer"))
    tokenizer = tiny_tokenizer("llama")
    tokenizer.init_kwargs["trained_joining"] = "blank line"
    record_joining(tokenizer, tmp_path)
    assert tokenizer.init_kwargs["trained_joining"] == "blank line"


def test_plain_text_is_joined_as_trl_does_where_it_trained_also_after_a_save(adapter_folder, tmp_path):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    (folder / "README.md").write_text(CARD.format(tag="reward-trainer"))
    rm = BayesianRewardModel.from_pretrained(folder, device="cpu")
    prompt, response = words(3), words(4, 1)
    expected = rm.tokenizer(prompt + response + rm.tokenizer.eos_token)["input_ids"]
    assert rm.tokenize([prompt], [response])[0].input_ids == expected
    rm.save_pretrained(tmp_path / "saved")
    loaded = BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.tokenize([prompt], [response])[0].input_ids == expected


def _fitted(adapter_folder, **options):
    return BayesianRewardModel.from_pretrained(adapter_folder, device="cpu", **options).fit(tiny_pairs(6))


def by_colon(prompt, response):
    return f"{prompt}: {response}"


@pytest.mark.parametrize("options", [{"joining": "concatenate", "appends_eos": True}, {"joining": "blank line"}, {}])
def test_a_saved_posterior_keeps_how_rows_are_joined(adapter_folder, tmp_path, options):
    rm = _fitted(adapter_folder, **options)
    rm.save_pretrained(tmp_path / "saved")
    loaded = BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.tokenize(["above"], ["again"]) == rm.tokenize(["above"], ["again"])
    same = BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu", **options)
    assert same.posterior is not None
    other = BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu", joining=by_colon)
    assert other.posterior is None
    assert other.fit(tiny_pairs(6)).posterior is not None


def test_a_function_that_joins_is_asked_for_where_its_posterior_is_loaded(adapter_folder, tmp_path):
    rm = _fitted(adapter_folder, joining=by_colon)
    rm.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="fitted on rows joined by a function: give it as joining"):
        BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu")
    loaded = BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu", joining=by_colon)
    scores, again = (model.score(["above"], ["again"]) for model in (rm, loaded))
    torch.testing.assert_close(again.variance, scores.variance)


@pytest.mark.parametrize("conversations", [False, True])
def test_a_model_that_trl_trains_is_scored_on_the_rows_that_it_learnt_from(base_folder, tmp_path, conversations):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    pairs = tiny_pairs(3)
    tokenizer = tiny_tokenizer("llama", CHAT if conversations else None)
    if conversations:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        pairs = [{side: [{"role": roles[side], "content": text}] for side, text in pair.items()} for pair in pairs]
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1),
        RewardConfig(str(tmp_path / "adapter"), use_cpu=True, report_to=[], max_steps=1, bf16=False),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"]),
    )
    trainer.save_model()
    trainer.create_model_card()
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    rows = [[row.input_ids for row in pair.rows] for pair in rm.tokenize_pairs(pairs)]
    assert rows == [[one["chosen_ids"], one["rejected_ids"]] for one in trainer.train_dataset]
