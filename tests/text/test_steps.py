"""Rows in the form of trl's stepwise supervision."""

import numpy as np
import pandas
import pytest
from datasets import Dataset
from tiny import tiny_steps

from bayesrm_fast import InputError, PreferencePair, StepwiseResponse
from bayesrm_fast.text.steps import (
    checked_steps,
    is_stepwise,
    iter_stepwise_responses,
    labelled_records,
    stepwise_responses,
)

GOOD = {"prompt": "able", "completions": ["act", "add"], "labels": [True, False]}


@pytest.mark.parametrize(
    "give",
    [
        lambda rows: rows,
        lambda rows: [StepwiseResponse(**row) for row in rows],
        Dataset.from_list,
        pandas.DataFrame,
        lambda rows: [row | {"labels": [int(label) for label in row["labels"]]} for row in rows],
        lambda rows: [row | {"labels": np.array(row["labels"])} for row in rows],
        lambda rows: [row | {"labels": list(np.array(row["labels"]))} for row in rows],
    ],
    ids=["mappings", "records", "dataset", "table", "whole numbers", "arrays", "scalars"],
)
def test_rows_come_in_many_containers(give):
    rows = tiny_steps()
    found = stepwise_responses(give(rows), labelled=True)
    assert [vars(one) | {"where": ""} for one in found] == [row | {"where": ""} for row in rows]
    assert all(isinstance(label, bool) for one in found for label in one.labels)


def test_labels_may_be_absent_where_nothing_is_fitted():
    unlabelled = {name: GOOD[name] for name in ("prompt", "completions")}
    (one,) = iter_stepwise_responses([unlabelled], labelled=False)
    assert one.labels is None
    with pytest.raises(InputError, match="rows, row 1 has no column 'labels'"):
        list(iter_stepwise_responses([unlabelled], "rows", labelled=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [True]}, "has 2 completions and 1 labels"),
        ({"labels": [True, False, True]}, "has 2 completions and 3 labels"),
        ({"labels": [True, -1]}, r"labels\[1\] must be true or false, or 1 or 0, not -1"),
        ({"labels": [None, True]}, r"labels\[0\] must be true or false, or 1 or 0, not None"),
        ({"labels": ["yes", "no"]}, r"labels\[0\] must be true or false"),
        ({"labels": "yes"}, "labels must be a list"),
        ({"completions": []}, "completions is empty"),
        ({"completions": "act"}, "completions must be a list of steps, not str"),
        ({"completions": ["act", " \n"]}, r"completions\[1\] is an empty step"),
        ({"completions": ["act", 3]}, r"completions\[1\] must be a string, not int"),
        ({"completions": ["act", "\0"]}, r"completions\[1\] contains a NUL character"),
        ({"prompt": 3}, "prompt must be a string"),
        ({"system": "able"}, "has a column 'system'"),
        ({"tools": [{"type": "function"}]}, "has tools, which steps have no place for"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_a_bad_row_is_refused_by_its_number(change, message, labelled):
    with pytest.raises(InputError, match=f"steps.jsonl, row 2.*{message}"):
        stepwise_responses([GOOD, GOOD | change], "steps.jsonl", labelled=labelled)


def test_what_is_no_row_and_no_rows_are_refused():
    with pytest.raises(InputError, match="row 1 must be an object with prompt, completions, labels, not str"):
        stepwise_responses(["able"], labelled=True)
    with pytest.raises(InputError, match="there are no rows"):
        stepwise_responses([], labelled=True)


def test_a_row_is_known_by_its_completions():
    assert is_stepwise(GOOD)
    assert not is_stepwise({"prompt": "able", "chosen": "act", "rejected": "add"})


def test_the_first_row_says_what_all_are():
    pair = {"prompt": "able", "chosen": "act", "rejected": "add"}
    assert labelled_records([GOOD], "rows") == [StepwiseResponse(**GOOD)]
    assert labelled_records([pair], "rows") == [PreferencePair(**pair)]
    with pytest.raises(InputError, match="rows, row 2 has no column 'completions'"):
        labelled_records([GOOD, pair], "rows")


def test_steps_are_checked_by_themselves_too():
    assert checked_steps(("act", "add"), "steps") == ["act", "add"]
    with pytest.raises(InputError, match="steps is empty"):
        checked_steps([], "steps")
