"""JSON read strictly and checked against the fields of a dataclass."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.schema import parsed, typed


@dataclass(frozen=True)
class Inner:
    size: int
    side: Literal["p", "q"]

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"size cannot be {self.size}")


@dataclass(frozen=True)
class Outer:
    name: str
    weight: float
    flag: bool
    maybe: int | None
    targets: str | list[str]
    curve: Sequence[tuple[float, float]]
    names: dict[str, str]
    inner: Inner | None
    parts: list[Inner]


GOOD = {
    "name": "a",
    "weight": 0.5,
    "flag": True,
    "maybe": None,
    "targets": ["a", "b"],
    "curve": [[1, 2.5]],
    "names": {"a": "b"},
    "inner": {"size": 1, "side": "p"},
    "parts": [{"size": 2, "side": "q"}],
}


@pytest.mark.parametrize(
    "changes", [{}, {"maybe": 3}, {"targets": "auto"}, {"inner": None}, {"parts": []}, {"weight": 1}]
)
def test_a_record_comes_back_as_its_dataclass(changes):
    record = typed(Outer, GOOD | changes, "it")
    assert asdict(record) == GOOD | changes | {"curve": [(1.0, 2.5)]}
    assert (type(record.weight), type(record.curve[0][0])) == (float, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "it: name must be a text, not 1"),
        ({"weight": True}, "it: weight must be a finite number, not True"),
        ({"weight": "1"}, "it: weight must be a finite number, not '1'"),
        ({"weight": float("inf")}, "it: weight must be a finite number, not inf"),
        ({"weight": float("nan")}, "it: weight must be a finite number, not nan"),
        ({"weight": 10**400}, "it: weight must be a finite number, not 10000000000"),
        ({"flag": 1}, "it: flag must be true or false, not 1"),
        ({"maybe": 1.0}, "it: maybe must be a whole number, not 1.0"),
        ({"maybe": 2**63}, "it: maybe must be a whole number"),
        ({"maybe": True}, "it: maybe must be a whole number, not True"),
        ({"targets": 3}, "it: targets must be a list, not 3"),
        ({"targets": ["a", 3]}, r"it: targets\[1\] must be a text, not 3"),
        ({"curve": [[1.0]]}, r"it: curve\[0\] must be 2 values, not \[1.0\]"),
        ({"curve": [[1.0, None]]}, r"it: curve\[0\] must be a finite number, not None"),
        ({"names": []}, r"it: names must be an object, not \[\]"),
        ({"names": {"a": None}}, r"it: names\.a must be a text"),
        ({"inner": {"size": 1}}, "it: inner lacks 'side'"),
        ({"inner": {"size": 1, "side": "p", "more": 1}}, "it: inner has an unknown field, 'more'"),
        ({"inner": {"size": 0, "side": "p"}}, "it: inner: size cannot be 0"),
        ({"inner": []}, r"it: inner must be an object, not \[\]"),
        ({"parts": [{"size": 1, "side": "r"}]}, r"it: parts\[0\]: side must be one of p, q, not 'r'"),
        ({"parts": [{"size": 1, "side": ["p"]}]}, r"it: parts\[0\]: side must be one of p, q"),
        ({"more": 1}, "it has an unknown field, 'more'"),
    ],
)
def test_what_does_not_fit_is_told_by_its_place(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        typed(Outer, GOOD | changes, "it")


def test_each_field_has_to_be_there():
    for name in GOOD:
        with pytest.raises(InputError, match=f"^it lacks '{name}'$"):
            typed(Outer, {other: held for other, held in GOOD.items() if other != name}, "it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' stands there twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 10_000, "Exceeds the limit"),
    ],
)
def test_a_text_that_is_not_strictly_json_is_refused(text, message):
    with pytest.raises(InputError, match=f"^it is not valid JSON: .*{message}"):
        parsed(text, "it")


def test_a_number_beyond_floating_point_is_no_finite_number():
    with pytest.raises(InputError, match="it must be a finite number, not inf"):
        typed(float, parsed("1e999", "it"), "it")
