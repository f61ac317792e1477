"""`bayesrm train`."""

import json

import pytest
from tiny import tiny_steps

from bayesrm_fast.text.files import read_rows, write_rows
from bayesrm_fast.train import adapter


@pytest.fixture
def trained(monkeypatch):
    """What `train_adapter` is called with; training itself is tests/train's."""
    calls = []

    def train_adapter(base, pairs, folder, options, progress):
        calls.append((base, pairs, folder, options))
        progress(1, 2)
        return [{"loss": 0.9, "accuracy": 0.4}, {"loss": 0.5, "accuracy": 0.75}]

    monkeypatch.setattr(adapter, "train_adapter", train_adapter)
    return calls


def test_options_reach_the_training_and_its_last_figures_are_shown(pairs_file, tmp_path, trained, summary):
    options = ("--lora-rank", "4", "--lora-alpha", "9", "--target", "q_proj", "--target", "v_proj", "--epochs", "0.5")
    more = ("--learning-rate", "1e-3", "--batch-size", "2", "--max-length", "16", "--seed", "7")
    told = summary("train", pairs_file, tmp_path / "adapter", "--base", "org/base", *options, *more)
    assert told == {"output": str(tmp_path / "adapter"), "pairs": 6, "loss": 0.5, "accuracy": 0.75}
    ((base, pairs, folder, given),) = trained
    assert (base, len(pairs), folder) == ("org/base", 6, tmp_path / "adapter")
    assert given == adapter.TrainOptions(
        lora_rank=4,
        lora_alpha=9,
        target_modules=["q_proj", "v_proj"],
        epochs=0.5,
        learning_rate=1e-3,
        batch_size=2,
        max_length=16,
        seed=7,
    )


def test_defaults_are_the_librarys(pairs_file, tmp_path, trained, summary):
    summary("train", pairs_file, tmp_path / "adapter", "--base", "org/base")
    assert trained[0][3] == adapter.TrainOptions()


def test_bad_pairs_and_folders_are_told_before_anything_is_loaded(pairs_file, tmp_path, trained, refused, bayesrm):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    base = ("--base", "org/base")
    assert "row 1 has no column 'chosen'" in refused("train", tmp_path / "bad.jsonl", tmp_path / "adapter", *base)
    assert "exists and is not a folder" in refused("train", pairs_file, pairs_file, *base)
    bayesrm("train", pairs_file, tmp_path / "adapter", *base, "--lora-rank", "0", code=2)
    bayesrm("train", pairs_file, tmp_path / "adapter", code=2)
    assert trained == []
    assert not (tmp_path / "adapter").exists()


def test_steps_are_trained_fitted_and_scored_without_an_option_for_their_separator(step_base_folder, tmp_path, summary):
    write_rows(tmp_path / "steps.jsonl", tiny_steps())
    base = ("--base", step_base_folder, "--target", "q_proj", "--step-separator", "art")
    told = summary("train", tmp_path / "steps.jsonl", tmp_path / "adapter", *base, "--epochs", "10")
    assert told["responses"] == 4
    assert told["loss"] > 0
    summary("fit", tmp_path / "adapter", tmp_path / "steps.jsonl", "--output", tmp_path / "rm")
    assert json.loads((tmp_path / "rm" / "posterior.json").read_text())["step_separator"] == "art"
    summary("score", tmp_path / "rm", tmp_path / "steps.jsonl", tmp_path / "scores.jsonl")
    scored = read_rows(tmp_path / "scores.jsonl")
    assert [len(row["variance"]) for row in scored] == [len(row["labels"]) for row in tiny_steps()]


def test_bad_steps_and_a_separator_of_pairs_are_told_before_anything_is_loaded(pairs_file, tmp_path, trained, refused):
    first, second, *_ = tiny_steps()
    write_rows(tmp_path / "steps.jsonl", [first, second | {"labels": [True]}])
    base = ("--base", "/nothing/here")
    assert "row 2 has 3 completions and 1 labels" in refused("train", tmp_path / "steps.jsonl", tmp_path / "to", *base)
    line = refused("train", pairs_file, tmp_path / "to", *base, "--step-separator", "art")
    assert "--step-separator goes with responses in steps" in line
    assert trained == []
    assert not (tmp_path / "to").exists()
