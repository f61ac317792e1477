"""What a user gives, checked by row."""

import io

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from bayesrm_fast import InputError, PreferencePair
from bayesrm_fast.text.records import (
    Candidates,
    all_pairs,
    candidate_sets,
    checked_rows,
    iter_candidate_sets,
    iter_pools,
    iter_preference_pairs,
    pairs_within,
    pairs_within_prompts,
    preference_pairs,
    single_responses,
)


def test_pairs_from_dicts_records_and_datasets():
    datasets = pytest.importorskip("datasets", reason="the extra `train` is not installed")
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    expected = [PreferencePair("a", "b", "c")]
    assert preference_pairs([row]) == expected
    assert preference_pairs(expected) == expected
    assert preference_pairs(datasets.Dataset.from_list([row])) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        (["text"], "row 1 must be an object"),
        ([{"prompt": "a", "chosen": "b"}], "row 1 has no column 'rejected'"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": 5, "rejected": "c"}],
            "row 2: chosen",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "row 1: chosen and rejected are equal"),
    ],
)
def test_bad_pairs_are_named_by_row(rows, message):
    with pytest.raises(InputError, match=message):
        preference_pairs(rows, "pairs.jsonl")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "responses": "b"}], "responses must be a list"),
        ([{"prompt": "a", "responses": []}], "responses is empty"),
        ([{"prompt": "a", "responses": ["b", None]}], r"responses\[1\]"),
    ],
)
def test_bad_candidates_are_named_by_row(rows, message):
    with pytest.raises(InputError, match=message):
        candidate_sets(rows)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_candidates_are_paired_within_their_prompt(count):
    prompts = ["first"] * count + ["second"] * 2
    responses = [f"response {i}" for i in range(count)] + ["yes", "no"]
    pairs = pairs_within_prompts(prompts, responses)
    assert {frozenset((pair.chosen, pair.rejected)) for pair in pairs if pair.prompt == "second"} == {
        frozenset(("yes", "no"))
    }
    first = [pair for pair in pairs if pair.prompt == "first"]
    assert len(first) == (count + 1) // 2
    assert {text for pair in first for text in (pair.chosen, pair.rejected)} == set(responses[:count])
    assert all(pair.chosen != pair.rejected for pair in first)
    assert pairs == pairs_within_prompts(prompts, responses)


NUMBERS = {"log_probabilities": [-1.5, -2], "similarities": [[1.0, 0.5], [0.5, 1]]}


@pytest.mark.parametrize("as_record", [False, True])
def test_candidates_bring_numbers_for_the_rules_that_need_them(as_record):
    row = {"prompt": "a", "responses": ["b", "c"], **NUMBERS}
    (found,) = candidate_sets([Candidates(**row) if as_record else row])
    assert (found.log_probabilities, found.similarities) == tuple(NUMBERS.values())
    (without,) = candidate_sets([{"prompt": "a", "responses": ["b", "c"]}])
    assert (without.log_probabilities, without.similarities) == (None, None)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"log_probabilities": 3}, "log_probabilities must be a list of numbers, not int"),
        ({"log_probabilities": "ab"}, "log_probabilities must be a list of numbers, not str"),
        ({"log_probabilities": [-1.0]}, "log_probabilities must be 2 finite numbers"),
        ({"log_probabilities": [-1.0, None]}, "log_probabilities must be 2 finite numbers"),
        ({"log_probabilities": [-1.0, True]}, "log_probabilities must be 2 finite numbers"),
        ({"log_probabilities": [-1.0, float("nan")]}, "log_probabilities must be 2 finite numbers"),
        ({"log_probabilities": [-1.0, float("-inf")]}, "log_probabilities must be 2 finite numbers"),
        ({"gold": [1, 10**400]}, "gold must be 2 finite numbers"),
        ({"log_probabilities": [-1.0, 0.5]}, "log_probabilities holds 0.5, and the logarithm of a prob"),
        ({"similarities": "ab"}, "similarities must be a list of lists, not str"),
        ({"similarities": [[1.0, 0.5]]}, "similarities must be 2 rows, not 1"),
        ({"similarities": [[1.0, 0.5], [0.5]]}, r"similarities\[1\] must be 2 finite numbers"),
        ({"similarities": [[1.0, 0.5], 0.5]}, r"similarities\[1\] must be a list of numbers, not float"),
    ],
)
def test_numbers_that_are_not_one_for_each_response_are_named(numbers, message):
    with pytest.raises(InputError, match=f"^rows.jsonl, row 1: {message}"):
        candidate_sets([{"prompt": "a", "responses": ["b", "c"], **numbers}], "rows.jsonl")


def test_equal_pairs_are_left_out_with_their_count_where_they_are_labels():
    pair, equal = {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}
    with pytest.warns(UserWarning, match=r"rows, row 2: .* are equal, .*; 2 such pair\(s\) of 4 are left out"):
        found = preference_pairs([pair, equal, pair, equal], "rows")
    assert [one.where for one in found] == ["rows, row 1", "rows, row 3"]
    with pytest.raises(InputError, match=r"row 1: chosen and rejected are equal, .* all 2 pairs"):
        preference_pairs([equal, equal], "rows")
    assert len(all_pairs([pair, equal])) == 2  # scores have a place for each row


TABLE = [
    {
        "prompt": "a",
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    },
    {
        "prompt": "d",
        "chosen": [{"role": "assistant", "content": "e"}],
        "rejected": [{"role": "assistant", "content": "f"}],
    },
]


def in_parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return pandas.read_parquet(buffer)


@pytest.mark.parametrize(
    "as_given",
    [
        pandas.DataFrame,
        in_parquet,
        pyarrow.Table.from_pylist,
        lambda rows: [row for _, row in pandas.DataFrame(rows).iterrows()],
        lambda rows: pandas.DataFrame(rows).itertuples(),
    ],
    ids=["pandas", "pandas from Parquet", "Arrow", "rows of pandas", "named tuples"],
)
def test_tables_and_their_rows_are_rows(as_given):
    assert all_pairs(as_given(TABLE)) == all_pairs(TABLE)
    sets = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "gold": [1.0, 0.0]} for row in TABLE
    ]
    assert candidate_sets(as_given(sets)) == candidate_sets(sets)


def test_arrays_are_lists():
    row = {"prompt": "a", "responses": ["b", "c"], "gold": [True, False], "log_probabilities": [-1.0, -2.0]}
    arrays = {name: value if name == "prompt" else numpy.array(value) for name, value in row.items()}
    arrays["similarities"] = numpy.eye(2, dtype=numpy.float32)
    assert candidate_sets([arrays]) == candidate_sets([row | {"similarities": [[1.0, 0.0], [0.0, 1.0]]}])
    assert checked_rows(numpy.array(["a"]), pandas.Series(["b"])) == (["a"], ["b"])
    with pytest.raises(InputError, match="responses must be a list, not int"):
        candidate_sets([row | {"responses": numpy.int64(3)}])


@pytest.mark.parametrize("rows", [{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}, "pairs.jsonl"])
def test_what_is_no_row_after_another_is_refused(rows):
    with pytest.raises(InputError, match="pairs must be rows one after another, not a"):
        preference_pairs(rows)


TOOLS = [{"type": "function", "function": {"name": "add"}}]


def test_tools_stay_with_their_rows():
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert [one.tools for one in all_pairs([pair | {"tools": TOOLS}, pair | {"tools": None}, pair])] == [
        TOOLS,
        None,
        None,
    ]
    (again,) = all_pairs(all_pairs([pair | {"tools": TOOLS}]))
    assert again.tools == TOOLS
    assert candidate_sets([{"prompt": "a", "responses": ["b"], "tools": TOOLS}])[0].tools == TOOLS
    assert single_responses([(1, {"prompt": "a", "response": "b", "tools": TOOLS})])[0].tools == TOOLS


def test_rows_are_validated_one_by_one_and_numbered_from_where_they_begin():
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    pairs = iter_preference_pairs([pair, {"prompt": "a"}], "rows.jsonl", first=7)
    assert next(pairs).where == "rows.jsonl, row 7"
    with pytest.raises(InputError, match="row 8 has no column 'chosen'"):
        next(pairs)
    sets = iter_candidate_sets([{"prompt": "a", "responses": ["b"]}, 5], "rows.jsonl", first=3)
    assert next(sets).where == "rows.jsonl, row 3"
    with pytest.raises(InputError, match="row 4 must be an object with prompt, responses, not int"):
        next(sets)


def test_a_prompt_with_a_single_response_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match=r"1 prompt\(s\) with a single response"):
        (pair,) = pairs_within_prompts(["a", "b", "a", "a"], ["yes", "yes", "no", "no"])
    assert {pair.chosen, pair.rejected} == {"yes", "no"}
    assert pair.where in ("the pair of rows 1 and 3", "the pair of rows 3 and 1")
    with pytest.raises(InputError, match="nothing to compare"):
        pairs_within_prompts(["a", "b", "a"], ["yes", "yes", "yes"])


def test_a_row_of_a_stream_is_a_pair_of_texts_or_a_mapping_of_them():
    rows = [(1, ("a", "b")), (2, {"response": "b", "prompt": "a", "more": 1})]
    assert single_responses(rows) == [Candidates("a", ["b"])] * 2
    for bad, message in (("ab", "not str"), (("a", "b", "c"), "not tuple"), (("a", 3), "response must be a string")):
        with pytest.raises(InputError, match=f"^row 4.*{message}"):
            single_responses([(4, bad)])


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ("ab", ["a", "b"], "prompts must be a list, not str"),
        (["a"], iter(["b"]), "responses must be a list"),
        (["a", "b"], ["c"], "2 prompts but 1 responses"),
        ([], [], "the list is empty"),
        (["a", "a"], ["b", None], r"responses\[1\] must be a string .*not null"),
    ],
)
def test_prompts_and_responses_that_are_no_two_lists_of_texts(prompts, responses, message):
    with pytest.raises(InputError, match=message):
        checked_rows(prompts, responses)


def test_a_record_that_is_checked_again_keeps_its_name():
    """Such as the command's, which has it from a file and hands it to the library in chunks."""
    named = preference_pairs([{"prompt": "a", "chosen": "b", "rejected": "c"}], "rows.jsonl")
    assert preference_pairs(named)[0].where == "rows.jsonl, row 1"
    assert preference_pairs([PreferencePair("a", "b", "c")])[0].where == "pairs, row 1"
    sets = candidate_sets([{"prompt": "a", "responses": ["b"]}], "rows.jsonl")
    assert candidate_sets(sets)[0].where == "rows.jsonl, row 1"
    assert candidate_sets([Candidates("a", ["b"])])[0].where == "candidates, row 1"


def test_a_pool_is_pairs_or_prompts_with_several_responses_as_its_first_row_is():
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "gold": 1}
    sets = {"prompt": "a", "responses": ["b", "c", "d"]}
    assert list(iter_pools([pair])) == [PreferencePair("a", "b", "c")]
    assert list(iter_pools(iter([sets]))) == [Candidates("a", ["b", "c", "d"])]
    assert list(iter_pools(pandas.DataFrame([sets, sets]))) == [Candidates("a", ["b", "c", "d"])] * 2
    assert [pairs_within(one) for one in (*iter_pools([pair]), *iter_pools([sets]))] == [1, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "pool: there are no rows"),
        ([5], "pool, row 1 must be an object with prompt, chosen, rejected, not int"),
        ([{"prompt": "a", "chosen": "b"}], "pool, row 1 has no column 'rejected'"),
        ([{"prompt": "a", "responses": ["b", "c"]}, {"prompt": "a", "chosen": "b"}], "pool, row 2 has no column 'resp"),
        ([{"prompt": "a", "responses": ["b"]}], "pool, row 1: responses has one response, and a pair needs two"),
    ],
)
def test_rows_of_a_pool_that_are_neither_are_named(rows, message):
    with pytest.raises(InputError, match=f"^{message}"):
        list(iter_pools(rows, "pool"))
