"""Files that `bayesrm score` wrote, read again."""

import json

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.evaluate.scored_file import known_of, read_scored_file
from bayesrm_fast.text.files import write_rows

RESPONSES = {"prompt": "p", "mean": [1.0, 0.0], "variance": [1.0, 4.0], "std": [1.0, 2.0], "truncated": [False, True]}
PAIR = {"prompt": "p", "mean": 1.0, "variance": 4.0, "std": 2.0, "truncated": False, "probability": 0.6}
STEPS = {
    **{"prompt": "p", "mean": [1.0, 0.0], "variance": [1.0, 4.0], "std": [1.0, 2.0], "probability": [0.7, 0.5]},
    **{"first_error": [0.3, 0.3, 0.4], "aggregates": {}, "truncated": False},
}


def scored(tmp_path, *rows):
    write_rows(tmp_path / "scores.jsonl", rows)
    return read_scored_file(tmp_path / "scores.jsonl")


def known(tmp_path, one, *rows):
    write_rows(tmp_path / "input.jsonl", rows)
    return list(known_of(one, tmp_path / "input.jsonl"))


@pytest.mark.parametrize(
    ("row", "kind", "is_relative", "mean", "is_cut"),
    [
        (RESPONSES, "responses", False, [1.0, 0.0], True),
        (RESPONSES | {"baseline": [0.5, 0.5]}, "responses", True, [1.0, 0.0], True),
        (RESPONSES | {"baseline": "human", "first_error": 3}, "responses", False, [1.0, 0.0], True),
        (PAIR, "pairs", True, [1.0], False),
        (STEPS, "steps", False, [1.0, 0.0], False),
    ],
)
def test_a_row_is_known_by_its_columns(row, kind, is_relative, mean, is_cut, tmp_path):
    found = scored(tmp_path, row, row)
    assert (found.kind, found.is_relative, len(found.rows)) == (kind, is_relative, 2)
    assert (found.rows[1].mean, found.rows[1].is_cut) == (mean, is_cut)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "responses": ["a"]}], "row 1 has no column 'mean': give a file that `bayesrm score` wrote"),
        ([RESPONSES, PAIR], "row 2 is of pairs, and the rows before it are of responses"),
        ([RESPONSES, RESPONSES | {"std": [1.0]}], "row 2 has 2 means and 1 values of std"),
        ([RESPONSES | {"mean": ["a", "b"]}], "row 1: mean must be a list of finite numbers"),
        ([RESPONSES | {"mean": []}], "row 1: mean must be a list of finite numbers"),
        ([RESPONSES, RESPONSES | {"baseline": [0.5, 0.5]}], "row 2: rows with and without --relative"),
        ([RESPONSES | {"mean": [10**400, 0]}], "row 1: mean must be a list of finite numbers"),
        ([RESPONSES | {"mean": [1e308, -1e308]}], "row 1: mean must be a list of finite numbers"),
        ([RESPONSES | {"std": [-1.0, 1.0]}], "row 1: std must not be negative"),
        ([RESPONSES | {"prompt": [1, 2]}], "row 1: prompt must be a string or a list of messages"),
        ([PAIR | {"probability": True}], "row 1: probability must be a finite number"),
        ([PAIR | {"probability": 1.5}], "row 1: probability must be between 0 and 1"),
    ],
)
def test_what_no_scoring_wrote_is_refused_by_its_row(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        scored(tmp_path, *rows)


def test_a_lone_surrogate_in_a_prompt_is_refused(tmp_path):
    (tmp_path / "scores.jsonl").write_text(json.dumps(PAIR | {"prompt": "\ud800"}))
    with pytest.raises(InputError, match="row 1: prompt contains a lone surrogate"):
        read_scored_file(tmp_path / "scores.jsonl")


def test_a_file_says_what_it_knows_of_the_rows(tmp_path):
    responses = {"prompt": "p", "responses": ["a", [{"role": "assistant", "content": "b"}]]}
    plain, judged = known(tmp_path, scored(tmp_path, RESPONSES, RESPONSES), responses, responses | {"gold": [True, 2]})
    assert (plain.texts, plain.gold, plain.labels) == (["a", "b"], None, None)
    assert judged.gold == [1.0, 2.0]
    (pair,) = known(tmp_path, scored(tmp_path, PAIR), {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert (pair.texts, pair.labels) == (["a", "b"], [True])
    steps = {"prompt": "p", "completions": ["a", "b"]}
    unlabelled, labelled = known(tmp_path, scored(tmp_path, STEPS, STEPS), steps, steps | {"labels": [True, False]})
    assert (unlabelled.texts, unlabelled.labels, labelled.labels) == (["a", "b"], None, [True, False])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "other", "responses": ["a", "b"]}], "input.jsonl, row 1 is not what .*scores.jsonl, row 1"),
        ([{"prompt": "p", "responses": ["a"]}], "input.jsonl, row 1 is not what"),
        ([{"prompt": "p", "responses": ["a", "b"]}] * 2, "input.jsonl has a row 2, and .*scores.jsonl ends"),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], "row 1 has no column 'responses'"),
    ],
)
def test_another_file_than_the_one_that_was_scored_is_refused(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        known(tmp_path, scored(tmp_path, RESPONSES), *rows)


def test_a_shorter_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"scores.jsonl has a row 2, and .*input.jsonl ends"):
        known(tmp_path, scored(tmp_path, RESPONSES, RESPONSES), {"prompt": "p", "responses": ["a", "b"]})
