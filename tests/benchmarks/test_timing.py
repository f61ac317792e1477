"""Formulations in turns."""

import time

import pytest

from benchmarks.timing import count_plain_forwards, in_turns


def test_formulations_take_turns_after_a_call_that_does_not_count():
    calls = []
    timed = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "abababab"
    assert [row["rounds"] for row in timed.values()] == [3, 3]


def test_an_impatient_benchmark_gives_a_slow_formulation_fewer_rounds():
    timed = in_turns({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, rounds=3, patience=0.005)
    assert timed["slow"]["rounds"] == 1
    assert timed["fast"]["rounds"] == 3


def test_plain_forwards_are_seconds_over_those_of_the_plain_one():
    timed = {"plain": {"seconds": 2.0}, "ours": {"seconds": 3.0}}
    count_plain_forwards(timed, "plain")
    assert [row["plain_forwards"] for row in timed.values()] == pytest.approx([1.0, 1.5])
