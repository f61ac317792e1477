"""Training a token classifier on steps, laid out as scoring lays them out."""

import json

import pytest
import torch
from tiny import tiny_base, tiny_steps, tiny_token_classifier, tiny_tokenizer
from torch.nn.functional import binary_cross_entropy_with_logits

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.train.adapter import TrainOptions
from bayesrm_fast.train.steps import train_step_adapter

WITHOUT_DROPOUT = {
    "llama": {"classifier_dropout": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
ONE_BATCH = TrainOptions(lora_rank=2, batch_size=8, epochs=10.0, learning_rate=0.0)
"""Ten updates are one entry of the log."""


def save_base(folder, model, architecture):
    model.save_pretrained(folder)
    tiny_tokenizer(architecture, knows_line_breaks=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("architecture", "outputs", "separator"), [("llama", 2, None), ("bert", 1, "")])
def test_the_loss_is_that_of_the_scores_at_the_same_tokens(architecture, outputs, separator, tmp_path):
    model = tiny_token_classifier(architecture, outputs, **WITHOUT_DROPOUT[architecture])
    base = save_base(tmp_path / "base", model, architecture)
    (entry,) = train_step_adapter(base, tiny_steps(), tmp_path / "adapter", ONE_BATCH, step_separator=separator)
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    rm.fit(tiny_steps(), rank=4, prior_precision=1.0)
    log_odds = torch.cat([scores.mean for scores in rm.score_steps(tiny_steps())])
    labels = torch.tensor([label for row in tiny_steps() for label in row["labels"]])
    expected = binary_cross_entropy_with_logits(log_odds.double(), labels.double())
    # Both read float32 logits, and the log sums ten float32 losses: some tens of roundings.
    assert entry["loss"] == pytest.approx(float(expected), rel=64 * torch.finfo(torch.float32).eps, abs=1e-6)


def test_training_fits_the_labels_and_tells_its_updates(step_base_folder, tmp_path):
    options = TrainOptions(lora_rank=4, batch_size=4, epochs=40.0, learning_rate=1e-2)
    told = []
    log = train_step_adapter(step_base_folder, tiny_steps(), tmp_path / "adapter", options, lambda *at: told.append(at))
    assert told[-1] == (40, 40)
    assert log[-1]["loss"] < log[0]["loss"] / 2


def test_a_base_without_a_head_gets_one_with_two_outputs_and_the_adapter_knows_its_separator(tmp_path):
    base = save_base(tmp_path / "base", tiny_base("llama", vocab_size=41).model, "llama")
    tokenizer_config = base / "tokenizer_config.json"
    noted = json.loads(tokenizer_config.read_text()) | {"trained_joining": "blank line"}
    tokenizer_config.write_text(json.dumps(noted))
    train_step_adapter(base, tiny_steps(), tmp_path / "adapter", TrainOptions(lora_rank=2), step_separator="art")
    rm = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert rm.output_weights.tolist() == [-1, 1]
    assert (rm.segment_encoder.separator, rm.encoder.joining) == ("art", "concatenate")
    (row, *_) = rm.tokenize_steps(tiny_steps())
    assert {row.row.input_ids[end] for end in row.ends} == {rm.tokenizer.convert_tokens_to_ids("art")}
    other = BayesianRewardModel.from_pretrained(tmp_path / "adapter", device="cpu", step_separator="\n")
    assert other.segment_encoder.separator == "\n"


def test_what_cannot_be_trained_is_refused_and_leaves_no_folder(step_base_folder, base_folder, tmp_path):
    three = save_base(tmp_path / "three", tiny_token_classifier("llama", 3), "llama")
    long = tiny_steps(1)[0]
    short = TrainOptions(max_length=8)
    for base, rows, options, separator, message in (
        (three, tiny_steps(), TrainOptions(), None, "classifies tokens with 3 outputs, and steps need one or two"),
        (base_folder, tiny_steps(), TrainOptions(), None, r"holds score\.weight in other sizes than .* 2 output\(s\)"),
        ("/nothing/here", tiny_steps(), TrainOptions(), None, "the base model /nothing/here cannot be loaded"),
        (
            step_base_folder,
            [long | {"completions": [""]}],
            TrainOptions(),
            None,
            r"row 1: completions\[0\] is an empty",
        ),
        (step_base_folder, tiny_steps(), TrainOptions(), "a b", "row 1: the tokenizer splits the step separator"),
        (step_base_folder, tiny_steps(), short, None, r"row \d: the response takes .* and max_length is 8"),
    ):
        with pytest.raises(InputError, match=message):
            train_step_adapter(base, rows, tmp_path / "adapter", options, step_separator=separator)
    assert not (tmp_path / "adapter").exists()
