"""A record and the tensors that it names."""

import hashlib
import json
import os

import pytest
import torch

from bayesrm_fast import InputError
from bayesrm_fast.record_files import RecordFiles, as_bytes

FILES = RecordFiles("a thing", "thing.json", "thing.safetensors", format=3)
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_both_come_back_as_they_were_written(tmp_path):
    assert not FILES.are_in(tmp_path)
    transposed = torch.arange(6.0).view(3, 2).T.requires_grad_()
    FILES.write(tmp_path, {"name": "ü", "rank": 4}, {**TENSORS, "c": transposed})
    assert FILES.are_in(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES.names)
    record = FILES.read_record(tmp_path)
    assert (record["name"], record["rank"], record["format"]) == ("ü", 4, 3)
    assert record["tensors_sha256"] == hashlib.sha256((tmp_path / FILES.tensors).read_bytes()).hexdigest()
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
    FILES.write(tmp_path, {"rank": 4}, TENSORS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_both_are_written_or_neither(tmp_path, monkeypatch):
    FILES.write(tmp_path, {"rank": 4}, TENSORS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, calls = os.rename, []

    def fails(*args):
        calls.append(args)
        if len(calls) == 4:  # the second of the new files; the moves back come after it
            raise OSError(28, "No space left on device")
        rename(*args)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError, match="No space left"):
        FILES.write(tmp_path, {"rank": 5}, TENSORS)
    with pytest.raises(ValueError, match="JSON compliant"):
        FILES.write(tmp_path, {"rank": float("nan")}, TENSORS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "does not hold a thing of format 3"),
        ('{"format": 2, "tensors_sha256": ""}', "does not hold a thing of format 3"),
        ('{"format": 3}', "does not hold a thing of format 3"),
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
    FILES.write(tmp_path, {}, TENSORS)
    record = FILES.read_record(tmp_path)
    path = tmp_path / FILES.tensors
    path.write_bytes(as_bytes({"a": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"truncated or belongs to another thing\.json"):
        FILES.read_tensors(tmp_path, record)
    path.write_bytes(b"no tensors")
    named = {"tensors_sha256": hashlib.sha256(b"no tensors").hexdigest()}
    (tmp_path / FILES.record).write_text(json.dumps(named))
    with pytest.raises(InputError, match="is not a safetensors file"):
        FILES.read_tensors(tmp_path, named)
    path.unlink()
    with pytest.raises(InputError, match=r"thing\.safetensors cannot be read: No such file"):
        FILES.read_tensors(tmp_path, record)
