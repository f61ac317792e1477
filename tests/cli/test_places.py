"""What a command reads and writes, before the work."""

import os
import shutil

import pytest
from tiny import tiny_pairs

from bayesrm_fast import InputError
from bayesrm_fast.atomic import one_writer
from bayesrm_fast.cli.places import check_apart, check_output, files_in, partial_of
from bayesrm_fast.text.files import write_rows


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, tiny_pairs())
    return path


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model" / "below").mkdir(parents=True)
    (tmp_path / "model" / "posterior.json").write_text("{}")
    return tmp_path / "model"


def test_where_a_file_could_be_written_nothing_is_left_behind(tmp_path, model, rows):
    before = sorted(tmp_path.rglob("*"))
    check_output(tmp_path / "out.jsonl", rows, model)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial", ".out.jsonl.writing"])
def test_neither_an_output_nor_what_it_is_made_of_is_the_input_or_a_file_of_the_model(
    tmp_path, model, rows, link, name
):
    for target, what in ((rows, "is the input"), (model / "posterior.json", "is a file of the model")):
        link(target, tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} {what}: give another name"):
            check_output(tmp_path / "out.jsonl", rows, model)
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="is the input"):
        check_output(rows, rows, model)


def test_an_input_is_known_by_the_file_whatever_its_name_is(tmp_path, model, rows, monkeypatch):
    """As on a file system that takes Rows.jsonl and rows.jsonl for one name."""
    other = tmp_path / "Rows.jsonl"
    os.link(rows, other)
    with pytest.raises(InputError, match=r"Rows\.jsonl is the input"):
        check_output(other, rows, model)


@pytest.mark.parametrize("name", ["out.jsonl", "below/out.jsonl"])
def test_an_output_in_the_models_folder_is_refused(tmp_path, model, rows, name):
    (tmp_path / "link").symlink_to(model)
    for folder in (model, tmp_path / "link"):
        with pytest.raises(InputError, match="is in the model's folder: give a place outside it"):
            check_output(folder / name, rows, model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.txt", "must end in"),
        ("nothing/out.jsonl", "the folder .* does not exist"),
        ("folder.jsonl", "is a folder"),
        ("pipe.jsonl", "is no regular file"),
        ("piped.jsonl", r"piped\.jsonl\.partial is no regular file"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path, model, rows, name, message):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.mkfifo(partial_of(tmp_path / "piped.jsonl"))
    with pytest.raises(InputError, match=message):
        check_output(tmp_path / name, rows, model)


def test_a_read_only_place_is_told(tmp_path, model, rows, monkeypatch):
    (tmp_path / "out.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"/proc/out\.jsonl cannot be written"):
        check_output(tmp_path.__class__("/proc/out.jsonl"), rows, model)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"out\.jsonl cannot be written: Permission denied"):
        check_output(tmp_path / "out.jsonl", rows, model)


def test_files_are_told_apart(tmp_path, model, rows):
    check_apart(tmp_path / "new", [rows, tmp_path / "nothing"], "the input")
    assert files_in(model) == [model / "posterior.json"]
    assert files_in(tmp_path / "nothing") == []


@pytest.mark.parametrize("command", ["score", "best-of-n", "bonbon", "fit", "calibrate", "train"])
@pytest.mark.parametrize(("make", "message"), [(os.mkfifo, "no regular file"), (os.mkdir, "a folder, not a file")])
def test_every_command_refuses_at_once_what_is_no_file(
    tmp_path, model_folder, command, make, message, refused, no_model
):
    make(tmp_path / "rows.jsonl")
    arguments = {
        "score": (model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl"),
        "best-of-n": (model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl"),
        "bonbon": (model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl"),
        "fit": (model_folder, tmp_path / "rows.jsonl", "--output", tmp_path / "out"),
        "calibrate": (model_folder, tmp_path / "rows.jsonl"),
        "train": (tmp_path / "rows.jsonl", tmp_path / "out", "--base", "org/base"),
    }
    assert f"rows.jsonl is {message}" in refused(command, *arguments[command])
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("command", ["score", "best-of-n", "bonbon"])
def test_every_command_refuses_its_input_as_output(tmp_path, model_folder, candidates_file, command, refused, no_model):
    before = candidates_file.read_bytes()
    os.link(candidates_file, tmp_path / "out.jsonl.gz")
    for output in (candidates_file, tmp_path / "out.jsonl.gz"):
        assert "is the input" in refused(command, model_folder, candidates_file, output)
    assert candidates_file.read_bytes() == before


@pytest.mark.parametrize("command", ["fit", "fit to a new folder", "calibrate", "train"])
def test_two_runs_do_not_write_one_folder(tmp_path, model_folder, pairs_file, command, refused, no_model):
    """The second is told before it has loaded anything."""
    folder = tmp_path / "new" if command.endswith("new folder") else shutil.copytree(model_folder, tmp_path / "rm")
    arguments = {"calibrate": (folder, pairs_file), "train": (pairs_file, folder, "--base", "org/base")}
    command = command.split()[0]
    with one_writer(folder, "run"):
        line = refused(command, *arguments.get(command, (model_folder, pairs_file, "--output", folder)))
    assert line == f"bayesrm: {folder} is being written by another run"


def test_a_plot_is_neither_the_input_nor_a_file_of_the_model(tmp_path, model_folder, pairs_file, refused, no_model):
    (tmp_path / "input.png").symlink_to(pairs_file)
    (tmp_path / "model.png").symlink_to(model_folder / "posterior.json")
    for name, what in (("input.png", "the input"), ("model.png", "a file of the model")):
        assert f"{name} is {what}" in refused("calibrate", model_folder, pairs_file, "--plot", tmp_path / name)
