"""Files and folders that appear whole or not at all."""

import os
from pathlib import Path

import pytest
from dying import killed
from failing_rename import FailingRename

from bayesrm_fast import InputError
from bayesrm_fast.atomic import (
    cannot_write,
    check_folder,
    check_place,
    one_writer,
    replaced_whole,
    settle,
    unfinished,
    written_whole,
)


def content(folder):
    """Everything under a folder, names and bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def fail_after(written, error):
    raise error


def test_a_file_is_replaced_at_once_or_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with written_whole(path) as beside:
        beside.write_text("new")
        assert beside.parent == tmp_path
        assert path.read_text() == "old"
    assert content(tmp_path) == {"file": b"new"}
    with pytest.raises(KeyboardInterrupt), written_whole(path) as beside:
        fail_after(beside.write_text("newer"), KeyboardInterrupt())
    assert content(tmp_path) == {"file": b"new"}


def test_a_new_folder_appears_at_once(tmp_path):
    folder = tmp_path / "some" / "where" / "folder"
    with replaced_whole(folder) as new:
        write(new, a="1", b="2")
        assert not folder.exists()
        assert new.stat().st_dev == tmp_path.stat().st_dev
    assert content(tmp_path / "some") == {"where": None, "where/folder": None} | {
        f"where/folder/{name}": value for name, value in (("a", b"1"), ("b", b"2"))
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(28, "No space left on device")])
def test_of_a_new_folder_that_fails_nothing_is_left(tmp_path, monkeypatch, error):
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), replaced_whole(tmp_path / "folder") as new:
        fail_after(write(new, a="1"), error)
    monkeypatch.setattr(os, "rename", FailingRename(1, error))
    with pytest.raises(expected), replaced_whole(tmp_path / "folder") as new:
        write(new, a="1")
    assert content(tmp_path) == {}


def test_in_a_folder_that_was_there_owned_files_go_and_others_stay(tmp_path):
    folder = tmp_path / "folder"
    write(folder, kept="foreign", replaced="old", stale="old")
    (folder / "below").mkdir()
    with replaced_whole(folder, ["stale", "replaced", "never there"]) as new:
        write(new, replaced="new", added="new")
        assert content(folder)["stale"] == b"old"
    assert content(folder) == {"kept": b"foreign", "replaced": b"new", "added": b"new", "below": None}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("error", "moves"),
    [(KeyboardInterrupt(), False), (KeyboardInterrupt(), True), (OSError(5, "Input/output error"), False)],
)
def test_a_failure_at_any_step_leaves_a_folder_as_it_was(tmp_path, monkeypatch, error, moves):
    folder = tmp_path / "folder"
    write(folder, kept="foreign", replaced="old", stale="old")
    os.symlink("nowhere", folder / "link")  # that points to nothing is still a name that is taken
    before = content(folder)
    steps = 3 + 1 + 3  # out: link, replaced, stale; the turn; in: added, link, replaced
    for at in range(1, steps + 1):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", FailingRename(at, error, moves))
            expected = InputError if isinstance(error, OSError) else type(error)
            with pytest.raises(expected), replaced_whole(folder, ["stale"]) as new:
                write(new, replaced="new", added="new", link="new")
            assert content(folder) == before, at
            assert os.readlink(folder / "link") == "nowhere"
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", FailingRename(steps + 1, error))
        with replaced_whole(folder, ["stale"]) as new:
            write(new, replaced="new", added="new", link="new")
    assert content(folder) == {"kept": b"foreign", "replaced": b"new", "added": b"new", "link": b"new"}


def test_an_error_of_the_file_system_names_the_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = rf"{tmp_path}/file/below cannot be written: "
    with pytest.raises(InputError, match=message), replaced_whole(tmp_path / "file" / "below"):
        pass
    assert content(tmp_path) == {"file": b"in the way"}


def test_a_folder_is_checked_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("in the way")
    check_folder(tmp_path)
    check_folder(tmp_path / "not" / "there" / "yet")
    check_place(tmp_path / "file", tmp_path)
    assert content(tmp_path) == {"file": b"in the way"}
    with pytest.raises(InputError, match="file exists and is not a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(InputError, match="below cannot be written: Not a directory"):
        check_folder(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="/proc/folder cannot be written"):
        check_folder(tmp_path.__class__("/proc/folder"))
    with pytest.raises(InputError, match=r"plot\.png cannot be written: No such file"):
        check_place(tmp_path / "nothing" / "plot.png", tmp_path / "nothing")


def test_what_the_file_system_says_is_told(tmp_path):
    assert str(cannot_write(tmp_path, OSError(28, "No space left on device"))).endswith(": No space left on device")
    assert str(cannot_write(tmp_path, OSError("something else"))).endswith(": something else")


def test_a_file_that_another_process_takes_away_costs_no_other(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(f"old {name}")
    rename = os.rename

    def taken_away(here, there):
        if Path(here) == folder / "c":
            (folder / "c").unlink()
        rename(here, there)

    monkeypatch.setattr(os, "rename", taken_away)
    with pytest.raises(InputError, match="cannot be written"), replaced_whole(folder) as new:
        write(new, **{name: f"new {name}" for name in "abc"})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "old a", "b": "old b"}


def test_an_error_names_the_folder_and_not_where_it_is_made(tmp_path):
    folder = tmp_path / "folder"
    refused = pytest.raises(InputError, match=rf"^{folder} cannot be written: No space")
    with refused, replaced_whole(folder) as outer, replaced_whole(outer):
        raise OSError(28, "No space left on device")


OLD = {"kept": b"foreign", "replaced": b"old", "stale": b"old"}
NEW = {"kept": b"foreign", "replaced": b"new", "added": b"new"}


def save_new(folder):
    with replaced_whole(folder, ["stale"]) as new:
        write(new, replaced="new", added="new")


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_save_that_is_killed_is_undone_or_finished(tmp_path, moment):
    folder = tmp_path / "folder"
    write(folder, **{name: text.decode() for name, text in OLD.items()})
    is_last = moment == 6  # out: replaced, stale; the turn; in: added, replaced
    assert killed(lambda: save_new(folder), moment) != is_last
    settle(folder)
    found = content(folder)
    visible = {name: text for name, text in found.items() if not name.startswith(".")}
    assert visible == (OLD if moment <= 3 else NEW)
    if moment > 1:  # before that nothing has to be settled, and what is left is the next save's to sweep
        assert found == visible
    save_new(folder)
    assert content(folder) == NEW


def test_a_folder_that_a_killed_save_was_to_make_is_made_by_the_next_one_without_a_trace(tmp_path):
    folder = tmp_path / "folder"
    assert killed(lambda: save_new(folder), 1)
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 2  # its lock, and what was to become the folder
    save_new(folder)
    assert content(tmp_path) == {"folder": None, "folder/added": b"new", "folder/replaced": b"new"}


def test_a_folder_that_cannot_be_settled_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    write(folder, replaced="old")
    killed(lambda: save_new(folder), 2)

    def read_only(*args, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("filelock.FileLock.acquire", read_only)
        with pytest.raises(InputError, match=rf"killed in the middle .* {folder} cannot be written: Read-only"):
            settle(folder)
    settle(folder)
    assert content(folder) == {"replaced": b"old"}


def test_a_rollback_that_fails_loses_nothing(tmp_path, monkeypatch):
    """The disk fails at the renaming, and again at every one that would undo it."""
    folder = tmp_path / "folder"
    write(folder, replaced="old", stale="old")
    rename, calls = os.rename, []

    def fails(*args):
        calls.append(args)
        if len(calls) in (2, 3):
            raise OSError(5, "Input/output error")
        rename(*args)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError, match="Input/output error"):
        save_new(folder)
    assert content(folder) == {"replaced": b"old", "stale": b"old"}


def test_one_process_writes_and_a_killed_one_leaves_no_lock(tmp_path):
    path = tmp_path / "out"

    def hold_and_die():
        with one_writer(path, "run"):
            os.rename("nowhere", "nowhere")

    assert killed(hold_and_die, 1)
    with one_writer(path, "run"):
        with pytest.raises(InputError, match="out is being written by another run"), one_writer(path, "run"):
            pass
        with one_writer(path, "save"):
            pass
    assert content(tmp_path) == {}


def test_a_save_waits_for_that_of_another_process(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    save_new(folder)
    with replaced_whole(folder) as new:
        write(new, added="first")
        monkeypatch.setattr("bayesrm_fast.atomic.SAVE_PATIENCE", 0.1)
        with pytest.raises(InputError, match="is being written by another run"):
            save_new(folder)
        assert [path.name for path in new.iterdir()] == ["added"]
    assert content(folder) == {"added": b"first", "replaced": b"new"}


def test_processes_that_save_into_one_folder_leave_one_of_their_saves(tmp_path):
    folder = tmp_path / "folder"

    def save(mark):
        for _ in range(20):
            with replaced_whole(folder, ["a", "b"]) as new:
                write(new, a=mark, b=mark)

    children = []
    for mark in "123":
        child = os.fork()
        if child == 0:
            try:
                save(mark)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    found = content(folder)
    assert found["a"] == found["b"]
    assert set(found) == {"a", "b"}


def test_the_next_writer_of_a_file_replaces_what_a_killed_one_left(tmp_path):
    path = tmp_path / "file"
    unfinished(path).write_text("half of what should ha")
    with written_whole(path) as beside:
        beside.write_text("whole")
    assert content(tmp_path) == {"file": b"whole"}
