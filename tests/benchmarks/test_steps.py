"""The quick run of the benchmark of steps."""

import json

import pytest
from quick_run import quick_run

from benchmarks.data import data_folder
from benchmarks.steps import in_sentences

NEEDS_DATA = pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")


@NEEDS_DATA
@pytest.mark.parametrize(
    ("part", "name", "choices"), [("prm", "steps", 2 + 3 * 4 * 4), ("qa_feedback", "steps-qa_feedback", 0)]
)
def test_steps_quick(part, name, choices, tmp_path):
    quick_run("steps", tmp_path, "--part", part)
    (found,) = json.loads((tmp_path / f"{name}-quick.json").read_text())["by_seed"]
    assert found["steps"] > 0
    assert found["labels"]["MAP"]["accuracy"] == found["labels"]["posterior"]["accuracy"]
    best = found["best_of_n"] or {}
    assert len(best) == choices
    for by in ("mean", "last") if best else ():  # relative to the same problem's, the order is the same
        assert best[f"{by}, k = 0"] == best[f"{by}, relative, k = 0"] == best[f"{by}, relative, prior alone, k = 0"]


def test_a_sentence_is_correct_where_no_marked_error_touches_it():
    answer = 'It is 3.5 m. "Is it?" Yes! So'
    row = {"question": "How long?", "responses": [answer], "spans": [{"start": 11, "end": 14, "type": "Irrelevant"}]}
    assert in_sentences(row) == {
        "prompt": "How long?",
        "completions": ["It is 3.5 m.", '"Is it?"', "Yes!", "So"],
        "labels": [False, False, True, True],
    }
    beside = {"start": 12, "end": 13, "type": "Irrelevant"}
    assert all(in_sentences(row | {"spans": [beside]})["labels"])
