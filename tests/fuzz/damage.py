"""Damage to saved models and to files of rows, drawn by lot."""

import gzip
import json
import os
import re
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file

HUGE, DEEP, TWICE = "@huge@", "@deep@", "@twice@"
NUMBERS = re.compile(r'"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*')


def files_of(folders, *endings):
    """The files in some folders, or those of some endings."""
    found = [path for folder in folders for path in sorted(folder.iterdir())]
    return [path for path in found if path.is_file() and path.name.endswith(endings or ("",))]


FILE_DAMAGE = ["truncated", "flipped", "flipped", "zeroed", "emptied", "doubled", "swapped"]
FILE_DAMAGE += ["removed", "folder", "pipe", "loop"]


def damaged_file(folders, rng):
    """One file cut, overwritten, or replaced by something else."""
    path = rng.choice(files_of(folders))
    content = path.read_bytes()
    size = len(content)
    start = rng.randrange(size)
    stop = min(size, start + rng.choice([1, 8, 64, size]))
    name = rng.choice(
        [
            "truncated",
            "flipped",
            "flipped",
            "zeroed",
            "emptied",
            "doubled",
            "swapped",
            "removed",
            "folder",
            "pipe",
            "loop",
        ]
    )
    touched = [path]
    if name == "truncated":
        path.write_bytes(content[:start])
    elif name == "flipped":
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 4])):
            flipped[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
    elif name == "zeroed":
        path.write_bytes(content[:start] + bytes(stop - start) + content[stop:])
    elif name == "emptied":
        path.write_bytes(b"")
    elif name == "doubled":
        path.write_bytes(content * 2)
    elif name == "swapped":
        other = rng.choice([one for one in files_of(folders) if one != path])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        touched.append(other)
    else:
        path.unlink()
        if name == "folder":
            path.mkdir()
        elif name == "pipe":
            os.mkfifo(path)
        elif name == "loop":
            path.symlink_to(path.name)
    return f"{name}, from byte {start} of {size}", touched


def changed_digit(folders, rng):
    """One digit of a number in a JSON file is another one."""
    path = rng.choice(files_of(folders, ".json"))
    text = path.read_text()
    numbers = [found for found in NUMBERS.finditer(text) if not found.group().startswith('"')]
    number = rng.choice(numbers)
    place = rng.choice([i for i in range(*number.span()) if text[i].isdigit()])
    digit = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    path.write_text(text[:place] + digit + text[place + 1 :])
    return f"{number.group()} has {digit} at {place - number.start()}: {text[max(0, place - 40) : place]!r}", [path]


def edited_json(folders, rng):
    """A JSON file that is still JSON, or nearly, and says something else."""
    path = rng.choice(files_of(folders, ".json"))
    found = json.loads(path.read_text())
    told = edit(found, rng)
    path.write_text(as_text(found))
    return told, [path]


def edit(value, rng):
    """Change one place of parsed JSON; what `as_text` writes for it may be no JSON."""
    places = list(_places(value))
    place = rng.choice(rng.choice([places, [one for one in places if one[2] < 2]]))
    holder, key, _ = place
    old = holder[key]
    value = rng.choice([True, False, None, float("nan"), -1, 0, 1.5, HUGE, DEEP, str(old), [old], {}, [], "", "\ud800"])
    names = ["value", "value", "value"]
    names += ["removed", "added", "doubled", "renamed"] if isinstance(holder, dict) else ["removed", "added"]
    names += ["reversed"] if isinstance(old, list) and len(old) > 1 else []
    name = rng.choice(names)
    if name == "value":
        holder[key] = value
    elif name == "removed":
        del holder[key]
    elif name == "added":
        holder.update(unheard_of=value) if isinstance(holder, dict) else holder.append(value)
    elif name == "doubled":
        holder[f"{key}{TWICE}"] = value
    elif name == "renamed":
        holder[f"{key}_"] = holder.pop(key)
    else:
        old.reverse()
    return f"{key!r} {name} ({value!r})"


def _places(value, depth=0):
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key, depth
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key], depth + 1)


def as_text(value):
    text = json.dumps(value, indent=2).replace(TWICE, "")
    return text.replace(f'"{HUGE}"', str(10**400)).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)


def changed_tensor(folders, rng):
    """A whole safetensors file with one tensor changed."""
    path = rng.choice(files_of(folders, ".safetensors"))
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    old = tensors[name]
    changes = {
        "negated": -old,
        "scaled": old * 1.01,
        "reversed": old.flip(0),
        "two rows exchanged": torch.cat([old[1:2], old[:1], old[2:]]),
        "of float16": old.half(),
        "of float64": old.double(),
        "of whole numbers": old.int(),
        "flat": old.flatten(),
        "transposed": old.T.contiguous(),
        "a row less": old[1:],
        "not finite": torch.where(torch.arange(len(old)) == 0, torch.nan, old.T.double()).T.to(old.dtype),
        "moved by one number": torch.cat([old.flatten()[:-1], old.flatten()[-1:] + 0.25]).view(old.shape),
    }
    change = rng.choice([*changes, "removed", "renamed", "added"])
    tensors |= {name: changes[change].contiguous()} if change in changes else {}
    if change in ("added", "renamed"):
        tensors[f"{name}_"] = old.clone()
    if change in ("removed", "renamed"):
        del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{name} {change}", [path]


def damaged_rows(folders, rng):
    """A file of rows that is damaged, or holds other than rows."""
    path = rng.choice(files_of(folders))
    if path.suffix == ".parquet" or rng.random() < 0.5:
        return damaged_file(folders, rng)
    rows = read_rows(path)
    told = edit(rows, rng)
    lines = [re.sub(r"\n *", "", as_text(row)) for row in rows]
    write_lines(path, lines)
    return told, [path]


def write_lines(path, lines):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write("\n".join(lines))


def read_rows(path):
    """What a plain reader makes of a file of rows."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().split("\n") if line.strip()]


FAMILIES = {
    "damaged files": (damaged_file, 2000),
    "digits": (changed_digit, 250),
    "edits of JSON": (edited_json, 700),
    "tensors": (changed_tensor, 300),
    "input rows": (damaged_rows, 400),
}
"""How each kind of damage is done, and how often a whole run does it."""


def damage(family: str, folders: list[Path], rng: Random) -> tuple[str, list[Path]]:
    """Damage something in some folders; returns what was done, and the files it was done to."""
    return FAMILIES[family][0](folders, rng)
