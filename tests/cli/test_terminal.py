"""What is shown, and to whom."""

import io
import json
import time
import warnings

import pytest
import transformers
from rich.console import Console

from bayesrm_fast.cli import terminal
from bayesrm_fast.cli.terminal import (
    ShownWarnings,
    progress_bar,
    quiet_transformers,
    show_line,
    show_summary,
    show_table,
)


def told_of_three(console, monkeypatch, seconds):
    now = iter([0.0, *seconds, 1e9])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with progress_bar("scoring", console) as tell:
        for done in (1, 2, 3):
            tell(done, 3)
    return console.file.getvalue()


def test_a_progress_bar_is_for_a_terminal(monkeypatch):
    shown = told_of_three(Console(file=io.StringIO(), force_terminal=False), monkeypatch, [3.0, 4.0, 5.0])
    assert shown.strip() == ""


def test_a_progress_bar_appears_after_two_seconds(monkeypatch):
    started = []
    monkeypatch.setattr(terminal.Progress, "start", lambda self: started.append(time))
    told_of_three(Console(file=io.StringIO(), force_terminal=True, width=80), monkeypatch, [0.5, 1.0, 1.9])
    assert not started
    told_of_three(Console(file=io.StringIO(), force_terminal=True, width=80), monkeypatch, [0.5, 1.0, 2.1])
    assert started


def test_a_progress_bar_ends_with_what_it_is_of(monkeypatch):
    stopped = []
    monkeypatch.setattr(terminal.Progress, "stop", lambda self: stopped.append(1))
    with pytest.raises(KeyboardInterrupt), progress_bar("fitting"):
        raise KeyboardInterrupt
    assert stopped


VALUES = {"prior_precision": 1 / 3, "pairs": 6, "output": "[red]ü", "rank": None}


def test_a_summary_is_a_table_or_json(capsys):
    show_summary(VALUES, as_json=True)
    assert json.loads(capsys.readouterr().out) == VALUES
    show_summary({"prior_precision": 1 / 3, "pairs": 6}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["prior", "precision", "0.333333"], ["pairs", "6"]]


@pytest.mark.parametrize("text", ["a [bold]name", "a [/name]"])
def test_tables_show_texts_as_they_are(text, capsys):
    show_summary({"output": text, text: 1}, as_json=False)
    assert capsys.readouterr().out.count(text) == 2
    show_table(("subset",), [(text,)])
    assert text in capsys.readouterr().out


def test_a_line_is_one_line_on_standard_error_whatever_it_holds(capsys):
    line = "a [bold]line[/bold] " + "that is longer than any terminal " * 20
    show_line(line)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == line + "\n"


def test_warnings_that_concern_a_user_are_shown_and_no_others(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", ShownWarnings())
    warnings.showwarning("rows were cut", UserWarning, "file.py", 1)
    for category in (FutureWarning, DeprecationWarning, ResourceWarning):
        warnings.showwarning("something of a library's", category, "file.py", 1)
    assert capsys.readouterr().err == "warning: rows were cut\n"


def test_transformers_is_silenced():
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    try:
        quiet_transformers()
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def test_of_warnings_that_differ_in_numbers_alone_two_are_shown(capsys):
    show = ShownWarnings()
    for row in (1, 1, 65, 129):
        show(f"row {row}: something", UserWarning, "file.py", 1)
    show("row 1: another thing", UserWarning, "file.py", 1)
    assert capsys.readouterr().err.splitlines() == [
        "warning: row 1: something",
        "warning: row 65: something (later ones like it are not shown)",
        "warning: row 1: another thing",
    ]


def test_a_table_has_its_texts_on_the_left_and_its_numbers_on_the_right(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "stdout", Console(width=60))
    show_table(("section", "subset", "score"), [("Chat", "", "0.5"), ("", "mt-bench-easy", "0.25")], texts=2)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "section  subset         score",
        "Chat                      0.5",
        "         mt-bench-easy   0.25",
        "",
    ]
