"""Figures in files."""

import sys

import pytest
from full_disk import full_disk

from bayesrm_fast import InputError
from bayesrm_fast.plots import check_plot, figure_in, new_figure

pytest.importorskip("matplotlib", reason="the extra `eval` is not installed")


@pytest.mark.parametrize(
    ("name", "begins"), [("figure.png", b"\x89PNG"), ("figure.svg", b"<?xml"), ("figure.PNG", b"\x89PNG")]
)
def test_a_figure_is_written_as_its_name_ends(name, begins, tmp_path):
    with figure_in(tmp_path / name, 2, 1) as figure:
        figure.subplots().plot([0, 1])
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["figure.txt", "absent/figure.png", "folder.png", f"{'long' * 99}.png"])
def test_a_place_that_cannot_be_drawn_into_is_refused_before_the_work(name, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"cannot be written|is a folder"), figure_in(tmp_path / name, 2, 1):
        raise AssertionError("it is drawn")
    with pytest.raises(InputError):
        check_plot(tmp_path / name)


def test_a_full_disk_is_told(tmp_path):
    with full_disk(10), pytest.raises(InputError, match="cannot be written"), figure_in(tmp_path / "a.png", 2, 1):
        pass


def test_a_format_whose_program_is_absent_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # which has no LaTeX
    with pytest.raises(InputError, match="xelatex"), figure_in(tmp_path / "a.pgf", 2, 1) as figure:
        figure.subplots().plot([0, 1])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'bayesrm_fast\[eval\]'"):
        new_figure(1, 1)
