"""Damage to saved models and to files of rows, drawn by lot; each function tells what it did, and to which files."""

import gzip
import json
import os
import re

import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file

FILE_DAMAGE = "truncated flipped flipped zeroed emptied doubled swapped removed folder pipe loop"
HUGE, DEEP, TWICE = "@huge@", "@deep@", "@twice@"
VALUES = [True, False, None, float("nan"), -1, 0, 1.5, HUGE, DEEP, {}, [], "", "\ud800"]
NUMBERS = re.compile(r'"(?:\\.|[^"\\])*"|-?\d[\d.eE+-]*')


def files_of(folders, *endings):
    found = [path for folder in folders for path in sorted(folder.iterdir())]
    return [path for path in found if path.is_file() and path.name.endswith(endings or ("",))]


def damaged_file(folders, rng):
    """A file that is cut, overwritten, or replaced by something else."""
    path, other = rng.sample(files_of(folders), 2)
    content = path.read_bytes()
    start = rng.randrange(len(content))
    name = rng.choice(FILE_DAMAGE.split())
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 1, 4])):
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    stop = min(len(content), start + rng.choice([1, 8, 64, len(content)]))
    changed = {
        "truncated": content[:start],
        "flipped": flipped,
        "zeroed": content[:start] + bytes(stop - start) + content[stop:],
        "emptied": b"",
        "doubled": content * 2,
        "swapped": other.read_bytes(),
    }
    if name in changed:
        path.write_bytes(changed[name])
    else:
        path.unlink()
        replace = {"removed": lambda _: None, "folder": os.mkdir, "pipe": os.mkfifo, "loop": lambda p: os.symlink(p, p)}
        replace[name](path.absolute())
    if name != "swapped":
        return f"{name}, from byte {start} of {len(content)}", [path]
    other.write_bytes(content)
    return name, [path, other]


def changed_digit(folders, rng):
    """One digit of a number in a JSON file is another one."""
    path = rng.choice(files_of(folders, ".json"))
    text = path.read_text()
    number = rng.choice([found for found in NUMBERS.finditer(text) if not found.group().startswith('"')])
    place = rng.choice([i for i in range(*number.span()) if text[i].isdigit()])
    digit = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    path.write_text(text[:place] + digit + text[place + 1 :])
    return f"{number.group()} has {digit} at {place - number.start()}: {text[max(0, place - 40) : place]!r}", [path]


def edited_json(folders, rng):
    """A JSON file says something else, or is no JSON."""
    path = rng.choice(files_of(folders, ".json"))
    found = json.loads(path.read_text())
    told = edit(found, rng)
    path.write_text(as_text(found))
    return told, [path]


def edit(value, rng):
    places = list(_places(value))
    holder, key, _ = rng.choice(rng.choice([places, [place for place in places if place[2] < 2]]))
    old, new, is_object = holder[key], rng.choice(VALUES), isinstance(holder, dict)
    new = rng.choice([new, new, str(old), [old]])
    name = rng.choice(["value"] * 3 + ["removed", "added", "reversed"] + ["doubled", "renamed"] * is_object)
    if name == "reversed" and isinstance(old, list):
        old.reverse()
    elif name == "removed":
        del holder[key]
    elif name == "added" and not is_object:
        holder.append(new)
    elif name == "renamed":
        holder[f"{key}_"] = holder.pop(key)
    else:
        holder[{"added": "unheard_of", "doubled": f"{key}{TWICE}"}.get(name, key)] = new
    return f"{key!r} {name} ({new!r})"


def _places(value, depth=0):
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key, depth
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key], depth + 1)


def as_text(value):
    """JSON on one line, where it is JSON."""
    text = json.dumps(value).replace(TWICE, "")
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
        "with two rows exchanged": torch.cat([old[1:2], old[:1], old[2:]]),
        "of float16": old.half(),
        "of float64": old.double(),
        "of whole numbers": old.int(),
        "flat": old.flatten(),
        "transposed": old.T.contiguous(),
        "a row less": old[1:],
        "not finite": torch.cat([old.flatten()[:-1], old.new_tensor([torch.nan])]).view(old.shape),
        "moved by one number": torch.cat([old.flatten()[:-1], old.flatten()[-1:] + 0.25]).view(old.shape),
    }
    change = rng.choice([*changes, "removed", "renamed", "added"])
    if change in ("removed", "renamed"):
        del tensors[name]
    if change != "removed":
        tensors[name + "_" * (change in ("added", "renamed"))] = changes.get(change, old).clone()
    save_file(tensors, path, {"format": "pt"})
    return f"{name} {change}", [path]


def damaged_rows(folders, rng):
    """A file of rows is damaged, or holds other rows."""
    path = rng.choice(files_of(folders))
    if path.suffix == ".parquet" or rng.random() < 0.5:
        return damaged_file(folders, rng)
    rows = read_rows(path)
    told = edit(rows, rng)
    write_rows(path, rows)
    return told, [path]


def write_rows(path, rows):
    lines = "\n".join(map(as_text, rows)).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def read_rows(path):
    """What a plain reader makes of a file of rows."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().split("\n") if line.strip()]
