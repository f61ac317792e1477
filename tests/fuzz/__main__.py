"""Damage saved models and rows by lot, and see that each is refused by name or gives the same numbers.

`PYTHONPATH=tests python -m fuzz` runs all attacks; `--attack "digits/17"` repeats one.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
from random import Random

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import pyarrow
import pyarrow.parquet
import torch
import transformers
from fuzz.damage import FAMILIES, damage, files_of, read_rows, write_lines
from safetensors.torch import load_file
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.main import main as bayesrm

MEMORY = 4 << 30
"""Bytes that an attack may have beyond what the process has."""

TEMPLATE = "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}"
PROMPTS = ["able  about Above", "accept", "act </s> action", "all " * 50, "also é"]
RESPONSES = ["add after", "again <pad> against 7", "age\nair", "ago " * 50, "Almost"]

VICTIMS = {
    "llama": ("ggn", None, {}),
    "bert": ("kfac", None, {}),
    "qwen2": ("ggn", 2, {"intermediate_size": 288}),  # a weight of more than one block of the fingerprint's sums
}
"""Architecture: the posterior's structure, virtual rank, and the configuration."""

NAMES = {
    "config.json": ["configuration", "padding token", "base"],
    "model.safetensors": ["score head", "base"],
    "adapter_config.json": ["the adapter in model", "adapter scaling", "base model"],
    "adapter_model.safetensors": ["adapter weights", "score head", "the adapter in model", "weights that are NaN"],
    "tokenizer.json": ["tokenizer"],
    "tokenizer_config.json": ["tokenizer", "chat template"],
    "chat_template.jinja": ["chat template"],
    "posterior.json": ["posterior"],
}
"""What a refusal may name in place of the file."""


def build(place):
    """Save tiny models with posteriors, each with its base model's folder and files of rows."""
    for architecture, (structure, rank, options) in VICTIMS.items():
        folder = place / architecture
        folder.mkdir()
        os.chdir(folder)
        base = tiny_base(architecture, **options)
        base.save_pretrained("base")
        tiny_tokenizer(architecture, TEMPLATE if architecture == "llama" else None).save_pretrained("base")
        base = AutoModelForSequenceClassification.from_pretrained("base")
        if rank is None:
            base = tiny_adapter(architecture, base=base)
        model = BayesianRewardModel(base, AutoTokenizer.from_pretrained("base"), virtual_rank=rank)
        model.fit(tiny_pairs(), structure=structure, include_head=rank is None).save_pretrained("model")
        rows = [{"prompt": p, "responses": [r, p]} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        os.mkdir("rows")
        for name in ("rows.jsonl", "rows.jsonl.gz"):
            write_lines(Path("rows", name), map(json.dumps, rows))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows/rows.parquet", write_page_checksum=True)
        write_lines(Path("rows/pairs.jsonl"), map(json.dumps, tiny_pairs()))
        told = {path.name: scored_rows(path) for path in files_of([Path("rows")])}
        Path("told.json").write_text(json.dumps({"numbers": scored(), "rows": told}))


def scored():
    """Mean and variance of the fixed rows."""
    scores = BayesianRewardModel.from_pretrained("model", device="cpu").score(PROMPTS, RESPONSES)
    return [scores.mean.tolist(), scores.variance.tolist()]


def scored_rows(path):
    """The numbers of each row of a file, as the command gives them; raises InputError with the line that it prints."""
    sys.argv = ["bayesrm", "score", "model", str(path), "out.jsonl"]
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
        try:
            bayesrm()
        except SystemExit as left:
            if left.code == 2:
                raise InputError(told.getvalue().splitlines()[-1]) from left
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    Path("out.jsonl").unlink()
    return [
        [row["mean"], row["variance"]] if isinstance(row["mean"], list) else [[row["mean"]], [row["variance"]]]
        for row in rows
    ]


def are_equal(found, expected):
    """Whether mean and variance differ by no more than rounding."""
    return all(
        len(a) == len(b) and torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)
        for a, b in zip(found, expected, strict=True)
    )


def attacked(family, number, seed, place):
    """Do one attack in a folder of its own; returns the verdict and what is to be told of it."""
    rng = Random(f"{seed} {family} {number}")
    victim = rng.choice(list(VICTIMS))
    with tempfile.TemporaryDirectory(dir=place) as copy:
        shutil.copytree(place / victim, copy, dirs_exist_ok=True)
        os.chdir(copy)
        expected = json.loads(Path("told.json").read_text())
        os.remove("told.json")
        is_of_rows = family == "input rows"
        told, touched = damage(family, [Path("rows")] if is_of_rows else [Path("base"), Path("model")], rng)
        told = f"{victim}: {', '.join(map(str, touched))}: {told}"
        try:
            if is_of_rows:
                return judged_rows(touched[0], place / victim, expected["rows"]), told
            found = scored()
        except InputError as error:
            line = str(error)
            names = [path.name for path in touched] + [name for path in touched for name in NAMES.get(path.name, [])]
            is_clear = "\n" not in line and any(name in line for name in names)
            return "refused" if is_clear else "unclear", f"{told}: {line}"
        except BaseException as error:
            return "unclear", f"{told}: {type(error).__name__}: {error!r}"
        if are_equal(found, expected["numbers"]):
            return "same", told
        return "unseen" if differ_unseen(place / victim) else "wrong", f"{told}: {found}"


def judged_rows(path, whole, expected):
    """Each row that is as it was has its numbers; "unseen" where others hold another text, which is scored."""
    found = scored_rows(path)
    given, rows = read_rows(whole / path), read_rows(path)
    kept = [i for i, (one, other) in enumerate(zip(given, rows, strict=False)) if repr(one) == repr(other)]
    if len(found) != len(rows) or not all(are_equal(found[i], expected[path.name][i]) for i in kept):
        return "wrong"
    return "same" if len(kept) == len(rows) == len(given) else "unseen"


def differ_unseen(whole):
    """Whether weights differ, and by no more than bfloat16's rounding: which a fingerprint's documentation tells."""
    differ = False
    for path in files_of([Path("base"), Path("model")], "model.safetensors"):
        old, new = load_file(whole / path), load_file(path)
        differ |= any(not old[name].equal(new[name]) for name in old)
        if any(not old[name].bfloat16().equal(new[name].bfloat16()) for name in old):
            return False
    return differ


def worker(pipe, place):
    """Answer attacks with verdicts, in silence and in bounded memory."""
    limit = MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    while True:
        pipe.send(attacked(*pipe.recv(), place))
        os.chdir(place)


def verdicts(attacks, place, jobs, limit):
    """Verdicts as they come from other processes, each of which is ended where it takes more than `limit` seconds."""
    waiting, running = list(reversed(attacks)), {}
    context = multiprocessing.get_context("fork")

    def start():
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, place), daemon=True)
        process.start()
        there.close()
        give(here, process)

    def give(pipe, process):
        if not waiting:
            process.kill()
            return
        attack = waiting.pop()
        pipe.send(attack)
        running[pipe] = (attack, process, time.monotonic() + limit)

    for _ in range(jobs):
        start()
    while running:
        ready = wait(running, timeout=1)
        for pipe, (attack, process, end) in list(running.items()):
            if pipe not in ready and time.monotonic() < end:
                continue
            del running[pipe]
            try:
                verdict = pipe.recv() if pipe in ready else ("hang", f"no answer within {limit} s")
            except EOFError:
                process.join()
                verdict = "unclear", f"the process ended with {process.exitcode}"
            yield attack, verdict
            if process.is_alive() and verdict[0] != "hang":
                give(pipe, process)
            else:
                process.kill()
                start()


VERDICTS = ("refused", "same", "unseen", "wrong", "unclear", "hang")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=sum(size for _, size in FAMILIES.values()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of an attack")
    parser.add_argument("--attack", help="one alone, such as digits/17")
    parser.add_argument("--json", type=Path, help="where to write all verdicts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    total = sum(size for _, size in FAMILIES.values())
    attacks = [
        (family, number, options.seed)
        for family, (_, size) in FAMILIES.items()
        for number in range(-(-options.count * size // total))
    ]
    if options.attack:
        family, number = options.attack.split("/")
        attacks = [(family, int(number), options.seed)]
    counts, told = {family: Counter() for family in FAMILIES}, []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        build(place)
        for (family, number, _), (verdict, line) in verdicts(attacks, place, options.jobs, options.limit):
            counts[family][verdict] += 1
            told.append({"attack": f"{family}/{number}", "verdict": verdict, "told": line})
            if verdict in ("wrong", "unclear", "hang") or options.attack:
                print(f"{verdict}: {family}/{number}: {line}", file=sys.stderr, flush=True)
        os.chdir("/")
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))
    print("| | tried | refused by name | same numbers | unseen | wrong | unclear | hangs |")
    print("| --- " * 8 + "|")
    for family, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {family} | {found.total()} | {' | '.join(str(found[verdict]) for verdict in VERDICTS)} |")
    sys.exit(any(found[verdict] for found in counts.values() for verdict in ("wrong", "unclear", "hang")))


if __name__ == "__main__":
    main()
