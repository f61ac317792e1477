"""`bayesrm calibrate`."""

import shutil

import pytest
from tiny import tiny_steps

from bayesrm_fast.text.files import read_rows, write_rows


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "rm")


def test_a_calibration_is_saved_and_used(folder, model_folder, pairs_file, tmp_path, summary, bayesrm):
    found = summary("calibrate", folder, pairs_file, "--plot", tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5_000
    assert set(found) >= {"pairs", "temperature", "nll_before", "nll_after", "ece_before", "ece_after"}
    record = summary("info", folder)
    assert (record["temperature"], record["prior_precision"]) == (found["temperature"], found["prior_precision"])
    bayesrm("score", folder, pairs_file, tmp_path / "after.jsonl")
    bayesrm("score", model_folder, pairs_file, tmp_path / "before.jsonl")
    after, before = read_rows(tmp_path / "after.jsonl"), read_rows(tmp_path / "before.jsonl")
    assert [row["mean"] for row in after] == [row["mean"] for row in before]
    assert [row["probability"] for row in after] != [row["probability"] for row in before]


def test_a_prior_precision_that_is_given_is_taken(folder, pairs_file, summary):
    assert summary("calibrate", folder, pairs_file, "--prior-precision", "3")["prior_precision"] == 3.0
    assert summary("info", folder)["prior"]["method"] == "given"


def test_all_else_in_the_folder_stays(folder, pairs_file, summary):
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    summary("calibrate", folder, pairs_file)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {"posterior.json"}


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    folder, pairs_file, tmp_path, refused, no_model, monkeypatch
):
    def read_only(*args, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("bayesrm_fast.atomic.tempfile.TemporaryFile", read_only)
        line = refused("calibrate", folder, pairs_file)
    assert line == f"bayesrm: {folder} cannot be written: Read-only file system"
    line = refused("calibrate", folder, pairs_file, "--plot", tmp_path / "nothing" / "plot.png")
    assert "plot.png cannot be written: No such file or directory" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prior-precision", "much"), "--prior-precision must be a number"),
        (("--prior-precision", "-1"), "positive"),
    ],
)
def test_bad_options_leave_the_posterior_as_it_was(folder, pairs_file, refused, arguments, message):
    before = (folder / "posterior.json").read_bytes()
    assert message in refused("calibrate", folder, pairs_file, *arguments)
    assert (folder / "posterior.json").read_bytes() == before


@pytest.mark.parametrize("name", ["plot.xyz", "plot", "folder.png", "nowhere/plot.png"])
def test_a_plot_that_cannot_be_drawn_is_told_before_the_model_is_loaded(
    folder, pairs_file, tmp_path, refused, no_model, name
):
    (tmp_path / "folder.png").mkdir()
    refused("calibrate", folder, pairs_file, "--plot", tmp_path / name)


def test_bad_pairs_are_told_before_the_model_is_loaded(folder, tmp_path, refused, no_model):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    assert "pairs.jsonl, row 1 has no column 'rejected'" in refused("calibrate", folder, tmp_path / "pairs.jsonl")
    assert "is not a folder" in refused("calibrate", tmp_path / "nothing", tmp_path / "pairs.jsonl")


def test_without_a_posterior_there_is_nothing_to_calibrate(adapter_folder, pairs_file, refused):
    assert "there is no posterior" in refused("calibrate", adapter_folder, pairs_file)
    assert not (adapter_folder / "posterior.json").exists()


def test_a_reward_that_is_nan_is_named_by_its_row(folder, tmp_path, refused, nan_at):
    pairs = [{"prompt": "able", "chosen": "act", "rejected": text} for text in ("all", "add", "art")]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    nan_at("art")
    line = refused("calibrate", folder, tmp_path / "pairs.jsonl")
    assert line == f"bayesrm: {tmp_path}/pairs.jsonl, row 3: the model's reward is NaN or infinite"


def test_steps_calibrate_a_token_classifier(folder, step_adapter_folder, tmp_path, summary, refused):
    for name, seed in (("steps", 0), ("held-out", 11)):
        write_rows(tmp_path / f"{name}.jsonl", tiny_steps(seed=seed))
    summary("fit", step_adapter_folder, tmp_path / "steps.jsonl", "--output", tmp_path / "steps")
    found = summary("calibrate", tmp_path / "steps", tmp_path / "held-out.jsonl", "--prior-precision", "2")
    assert found["steps"] == sum(len(row["completions"]) for row in tiny_steps(seed=11))
    assert found["prior_precision"] == 2.0
    assert "scores whole responses" in refused("calibrate", folder, tmp_path / "held-out.jsonl")
