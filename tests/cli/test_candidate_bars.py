"""Candidates as bars on a terminal."""

import io
import math

import pytest
import torch
from rich.console import Console
from whole_rows import whole_rows

from bayesrm_fast import Candidates
from bayesrm_fast.cli import best_of_n
from bayesrm_fast.cli.candidate_bars import BAR_WIDTH, CANDIDATES, CandidateBars, _line, mean_std_bars
from bayesrm_fast.select.choice import BestOfN


def chosen(mean, std, index):
    mean, std = torch.tensor(mean), torch.tensor(std)
    return BestOfN(index, "", mean - std, mean, std.square(), *whole_rows(len(mean)), len(mean))


def shown(*prompts, width=150):
    bars = CandidateBars()
    for one, best in prompts:
        bars.add(one, best)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    bars.show(console)
    return console.file.getvalue()


def test_bars_are_on_one_axis():
    first, second = mean_std_bars([0.0, 1.0], [1.0, 2.0], width=9)  # from −1 to 3, two characters to a unit
    assert first == "━━●━━    "
    assert second == "━━━━●━━━━"


@pytest.mark.parametrize(("mean", "std"), [([2.0], [0.0]), ([1.0, 1.0], [math.nan, 0.0])])
def test_what_has_no_width_is_a_dot(mean, std):
    assert all(bar.strip() == "●" and len(bar) == BAR_WIDTH for bar in mean_std_bars(mean, std))


def test_the_chosen_candidate_comes_first_then_the_best_by_score():
    one = Candidates("Which?", ["sure", "unsure", "bad"])
    lines = shown((one, chosen([1.0, 2.0, 0.0], [0.1, 1.5, 0.1], 0))).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["→", "unsure", "bad"]
    assert "Which?" in lines[0]
    assert "●" in lines[2]


def test_a_prompt_whose_choice_changed_is_shown_before_the_others():
    same = [(Candidates(f"same {i}", ["a", "b"]), chosen([2.0, 1.0], [0.1, 0.1], 0)) for i in range(5)]
    changed = (Candidates("changed", ["a", "b"]), chosen([2.0, 1.9], [1.0, 0.1], 1))
    out = shown(*same, changed)
    assert out.index("changed") < out.index("same 0") < out.index("same 1")
    assert "same 2" not in out


def test_of_many_candidates_the_best_are_shown():
    count = CANDIDATES + 5
    one = Candidates("p", [f"response-{i}." for i in range(count)])
    out = shown((one, chosen([float(i) for i in range(count)], [0.0] * count, count - 1)))
    assert f"{CANDIDATES} of {count} candidates" in out
    assert out.count("response-") == CANDIDATES


def test_texts_are_shown_as_they_are_on_one_line():
    one = Candidates([{"role": "user", "content": "[bold]Hi\nthere"}], [[{"role": "assistant", "content": "[red]x"}]])
    out = shown((one, chosen([1.0], [0.5], 0)))
    assert "[bold]Hi there" in out
    assert "[red]x" in out


def test_bars_are_for_a_terminal_alone(model_folder, candidates_file, tmp_path, monkeypatch):
    for is_terminal, as_json in ((True, False), (False, False), (True, True)):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, color_system=None, width=150)
        monkeypatch.setattr(best_of_n, "stdout", console)
        best_of_n.best_of_n(model_folder, candidates_file, tmp_path / "best.jsonl", as_json=as_json)
        assert ("●" in console.file.getvalue()) == (is_terminal and not as_json)


@pytest.mark.parametrize(("width", "bar"), [(300, BAR_WIDTH), (76, BAR_WIDTH), (60, 16), (54, 10), (53, 0), (43, 0)])
def test_a_narrow_terminal_has_shorter_bars_or_none_and_whole_numbers(width, bar):
    one = Candidates("p", ["one response " * 30, "another"])
    heading, first, second = shown((one, chosen([1.5, 0.25], [1.23e-5, 0.0], 0)), width=width).splitlines()[1:4]
    assert first.startswith("→")
    assert all(f" {number} " in f"{first} " for number in ("1.5", "1.23e-05"))
    assert ("mean ± std" in heading) == (bar > 0)
    assert not bar or first.index("●") - second.index("●") == bar - 1


def test_a_text_does_not_command_the_terminal():
    assert _line("a\x1b[2J\n\x9b2Jb", 20) == "a�[2J �2Jb"
