"""A record and the tensors that it names."""

import hashlib
import json
import os
from dataclasses import dataclass, replace

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.record_files import Record, RecordFiles, as_bytes


@dataclass(frozen=True)
class Thing(Record):
    name: str
    rank: int


FILES = RecordFiles("a thing", "thing.json", "thing.safetensors", format=3, schema=Thing)
THING = Thing(name="ü", rank=4)
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_both_come_back_as_they_were_written(tmp_path):
    assert not FILES.are_in(tmp_path)
    transposed = torch.arange(6.0).view(3, 2).T.requires_grad_()
    FILES.write(tmp_path, THING, {**TENSORS, "c": transposed})
    assert FILES.are_in(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES.names)
    record = FILES.read_record(tmp_path)
    assert record == replace(THING, tensors_sha256=record.tensors_sha256)
    assert record.tensors_sha256 == hashlib.sha256((tmp_path / FILES.tensors).read_bytes()).hexdigest()
    found = FILES.read_tensors(tmp_path, record)
    assert set(found) == {"a", "b", "c"}
    for name, tensor in {**TENSORS, "c": transposed.detach()}.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_same_tensors_have_the_same_bytes():
    assert as_bytes(TENSORS) == as_bytes({name: tensor.clone() for name, tensor in TENSORS.items()})
    assert as_bytes(TENSORS) != as_bytes({**TENSORS, "a": TENSORS["a"] + 1})


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    FILES.write(tmp_path, THING, TENSORS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_both_are_written_or_neither(tmp_path, monkeypatch):
    FILES.write(tmp_path, THING, TENSORS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, calls = os.rename, []

    def fails(*args):
        calls.append(args)
        if len(calls) == 4:  # the second of the new files; the moves back come after it
            raise OSError(28, "No space left on device")
        rename(*args)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError, match="No space left"):
        FILES.write(tmp_path, replace(THING, rank=5), TENSORS)
    with pytest.raises(ValueError, match="JSON compliant"):
        FILES.write(tmp_path, replace(THING, rank=float("nan")), TENSORS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "does not hold a thing of format 3"),
        ('{"format": 2, "tensors_sha256": ""}', "does not hold a thing of format 3"),
        ('{"format": true}', "does not hold a thing of format 3"),
        ('{"format": 3}', "lacks 'tensors_sha256'"),
        ('{"format": 3, "format": 3}', "is not valid JSON: 'format' stands there twice"),
        ('{"format": 3, "rank": NaN}', "is not valid JSON: NaN is no number"),
        ("[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ("1" * 5000, "is not valid JSON: Exceeds the limit"),
        (b"\xff", "is not valid JSON"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / FILES.record
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"{path} {message}"):
        FILES.read_record(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(InputError, match=r"thing\.json cannot be read: No such file"):
        FILES.read_record(tmp_path)


def test_tensors_that_are_not_the_records_own_are_refused(tmp_path):
    FILES.write(tmp_path, THING, TENSORS)
    record = FILES.read_record(tmp_path)
    path = tmp_path / FILES.tensors
    path.write_bytes(as_bytes({"a": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"truncated or belongs to another thing\.json"):
        FILES.read_tensors(tmp_path, record)
    path.write_bytes(b"no tensors")
    named = replace(THING, tensors_sha256=hashlib.sha256(b"no tensors").hexdigest())
    with pytest.raises(InputError, match="is not a safetensors file"):
        FILES.read_tensors(tmp_path, named)
    path.unlink()
    with pytest.raises(InputError, match=r"thing\.safetensors cannot be read: No such file"):
        FILES.read_tensors(tmp_path, record)


def test_a_record_is_known_by_what_it_holds_and_not_by_its_layout(tmp_path):
    FILES.write(tmp_path, THING, TENSORS)
    path, record = tmp_path / FILES.record, FILES.read_record(tmp_path)
    held = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(held.items())), ensure_ascii=False), encoding="utf-8")
    assert FILES.read_record(tmp_path) == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 5}, "was changed after it was written"),
        ({"tensors_sha256": "0"}, "was changed after it was written"),
        ({"sha256": None}, "was changed after it was written"),
        ({"rank": True}, ": rank must be a whole number, not True"),
        ({"rank": None}, ": rank must be a whole number, not None"),
        ({"rank": 10**400}, r": rank must be a whole number, not 1000"),
        ({"name": ["a"]}, ": name must be a text"),
        ({"other": 1}, "has an unknown field, 'other'"),
    ],
)
def test_a_changed_record_is_refused(tmp_path, changes, message):
    FILES.write(tmp_path, THING, TENSORS)
    path = tmp_path / FILES.record
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=rf"thing\.json ?{message}"):
        FILES.read_record(tmp_path)


@pytest.mark.parametrize("name", FILES.names)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(tmp_path, name, make):
    FILES.write(tmp_path, THING, TENSORS)
    record = FILES.read_record(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is (no regular file|a folder)"):
        FILES.read_record(tmp_path) if name == FILES.record else FILES.read_tensors(tmp_path, record)
