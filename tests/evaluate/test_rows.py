"""Rows of RewardBench, and what is said of those that are none."""

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.evaluate.rows import benchmark_rows

PAIR = {"id": 30, "subset": "alpacaeval-easy", "prompt": "able", "chosen": "act", "rejected": "age"}
FOUR = {
    "id": "7",
    "subset": "Math",
    "prompt": "able",
    "chosen": ["act"],
    "rejected": ["age", "air", "all"],
    "num_correct": 1,
    "total_completions": 4,
}
TIED = FOUR | {"id": "tied:3", "subset": "Ties", "chosen": ["act", "add"], "num_correct": 2, "total_completions": 5}


def test_pairs_are_version_1():
    messages = [{"role": "user", "content": "able"}]
    found = benchmark_rows([PAIR, PAIR | {"id": 31, "prompt": messages}, PAIR | {"subset": "own"}])
    assert found.version == 1
    assert [row.prompt for row in found.rows] == ["able", messages, "able"]
    assert [list(row.responses) for row in found.rows] == [["act", "age"]] * 3
    assert {row.num_correct for row in found.rows} == {1}


def test_lists_are_version_2_the_correct_responses_first():
    found = benchmark_rows([FOUR, TIED, {name: FOUR[name] for name in FOUR if name != "num_correct"} | {"id": "8"}])
    assert found.version == 2
    assert [row.num_correct for row in found.rows] == [1, 2, 1]
    assert list(found.rows[1].responses) == ["act", "add", "age", "air", "all"]


def test_a_response_that_repeats_its_prompt_is_scored_to_the_letter():
    repeating = {"prompt": "able above", "chosen": "able above act", "rejected": "able above age"}
    (row,) = benchmark_rows([PAIR | repeating]).rows
    assert (row.prompt, *row.responses) == tuple(repeating.values())


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data: there are no rows"),
        ([PAIR, "text"], "data, row 2 must be an object, not str"),
        ([without(PAIR, "subset")], "data, row 1 has no 'subset' (it has id, prompt, chosen, rejected)"),
        ([PAIR | {"subset": None}], "data, row 1 has no 'subset'"),
        ([PAIR | {"subset": ""}], "data, row 1: subset must be a text, not ''"),
        ([without(PAIR, "id")], "data, row 1 has no 'id'"),
        ([PAIR | {"id": 1.5}], "data, row 1: id must be a text or a whole number, not 1.5"),
        ([without(PAIR, "prompt")], "data, row 1 has no 'prompt'"),
        ([PAIR | {"prompt": 3}], "data, row 1: prompt must be a string or a list of messages"),
        ([without(PAIR, "rejected")], "data, row 1 has no 'rejected'"),
        ([PAIR | {"rejected": ["age"]}], "data, row 1: rejected must be a text, not list"),
        ([PAIR | {"chosen": "a\0"}], "data, row 1: chosen contains a NUL character"),
        ([PAIR, PAIR | {"id": 1}, PAIR], "data, row 3 has the id 30 of row 1, in one subset"),
        ([PAIR, FOUR], "data, row 2 is of RewardBench 2 and row 1 of RewardBench 1"),
        ([FOUR, PAIR], "data, row 2 is of RewardBench 1 and row 1 of RewardBench 2"),
        ([FOUR | {"chosen": []}], "data, row 1: chosen must be a list of at least one text"),
        ([FOUR | {"rejected": []}], "data, row 1: rejected must be a list of at least one text"),
        ([FOUR | {"rejected": "age"}], "data, row 1: rejected must be a list of at least one text"),
        ([FOUR | {"rejected": ["age", 2, "all"]}], "data, row 1: rejected[1] must be a text, not int"),
        ([FOUR | {"num_correct": 2}], "data, row 1: num_correct is 2, but there are 1 chosen and 3 rejected"),
        ([FOUR | {"total_completions": 5}], "data, row 1: total_completions is 5, but there are 1 chosen and 3"),
        ([TIED | {"subset": "Math"}], "data, row 1: chosen must be a list of one text outside of Ties, not of 2"),
        ([TIED | {"id": "3"}], "data, row 1: the id of a row of Ties is 'ref:<number>' or 'tied:<number>', not '3'"),
        ([TIED | {"id": 3}], "data, row 1: the id of a row of Ties is"),
    ],
)
def test_what_is_no_row_is_named(rows, message):
    with pytest.raises(InputError) as error:
        benchmark_rows(rows, "data")
    assert message in str(error.value)
