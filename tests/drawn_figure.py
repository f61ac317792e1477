"""What a plot drew, before it was written."""

import contextlib

import pytest

from bayesrm_fast.plots import figure_in


def drawn_figure(monkeypatch, module):
    """A list that holds the figure once `module` has drawn one; the test is skipped without matplotlib."""
    pytest.importorskip("matplotlib", reason="the extra `eval` is not installed")
    drawn = []

    @contextlib.contextmanager
    def kept(*arguments):
        with figure_in(*arguments) as figure:
            drawn.append(figure)
            yield figure

    monkeypatch.setattr(f"{module}.figure_in", kept)
    return drawn
