"""The figure of a report."""

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.evaluate.accuracy import ScoredRow
from bayesrm_fast.evaluate.report import report

pytest.importorskip("matplotlib", reason="the extra `eval` is not installed")

from bayesrm_fast.evaluate.figure import draw

MATRIX = [[0, 1.0], [1.0, 0]]


@pytest.mark.parametrize("version", [1, 2])
def test_it_is_drawn(version, tmp_path):
    rows = [ScoredRow(i, subset, 1, [i, 1.0], MATRIX, False) for subset in ("Math", "own") for i in range(3)]
    if version == 2:
        rows += [ScoredRow("ref:1", "Ties", 1, [2.0, 1.0], MATRIX, False)]
    draw(report(version, rows), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_ties_alone_are_drawn(tmp_path):
    draw(report(2, [ScoredRow("ref:1", "Ties", 1, [2.0, 1.0], MATRIX, False)]), tmp_path / "figure.svg")
    assert b"Ties" in (tmp_path / "figure.svg").read_bytes()


def test_a_place_that_cannot_be_drawn_into_is_refused(tmp_path):
    told = report(1, [ScoredRow(0, "own", 1, [2.0, 1.0], MATRIX, False)])
    for name in ("figure.txt", "absent/figure.png"):
        with pytest.raises(InputError, match="cannot be written"):
            draw(told, tmp_path / name)
