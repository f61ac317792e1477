"""What a folder says of how its model was trained."""

import shutil

import pytest
from tiny import tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.saved.joining import record_joining

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


def test_an_adapter_of_trl_is_told_where_plain_text_is_scored_and_after_a_save(adapter_folder, tmp_path):
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    (folder / "README.md").write_text(CARD.format(tag="reward-trainer"))
    rm = BayesianRewardModel.from_pretrained(folder, device="cpu")
    with pytest.warns(UserWarning, match="trained by trl"):
        rm.rewards([words(3)], [words(4, 1)])
    rm.save_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match="trained by trl"):
        BayesianRewardModel.from_pretrained(tmp_path / "saved", device="cpu").rewards([words(3)], [words(4, 1)])
