"""Damage saved models and rows by lot, and see that each is refused by name or changes no number."""

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
import warnings
from collections import Counter
from pathlib import Path
from random import Random

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import pyarrow.parquet
import torch
import transformers
from fuzz import damage
from safetensors.torch import load_file
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.main import main as bayesrm

MEMORY = 4 << 30
"""Bytes that an attack may take beyond what the process has."""

SECONDS = 60
"""After which an attack hangs."""

FAMILIES = {
    "damaged files": (damage.damaged_file, 2000),
    "digits": (damage.changed_digit, 250),
    "edits of JSON": (damage.edited_json, 700),
    "tensors": (damage.changed_tensor, 300),
    "input rows": (damage.damaged_rows, 400),
}
"""Each kind of damage, and how many attacks of it there are."""

VERDICTS = ("refused", "same", "unseen", "wrong", "unclear", "hang")
TEMPLATE = "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}"
PROMPTS = ["able  about Above", "accept", "act </s> action", "all " * 50, "also é"]
RESPONSES = ["add after", "again <pad> against 7", "age\nair", "ago " * 50, "Almost"]

VICTIMS = {
    "llama": ("ggn", None, {}),
    "bert": ("kfac", None, {}),
    "qwen2": ("ggn", 2, {"intermediate_size": 288}),  # a weight of more than one block of the fingerprint's sums
}
"""Architecture: the posterior's structure, virtual rank, and the configuration."""

THINGS = {
    "config.json": ["configuration", "padding token", "base"],
    "model.safetensors": ["score head", "base"],
    "adapter_config.json": ["adapter", "base model"],
    "adapter_model.safetensors": ["adapter", "score head", "weights that are NaN"],
    "tokenizer.json": ["tokenizer"],
    "tokenizer_config.json": ["tokenizer", "chat template"],
    "chat_template.jinja": ["chat template"],
    "posterior.json": ["posterior"],
}
"""What a refusal may name in place of the file."""


def build(place):
    """Save tiny models with posteriors, each with its base model's folder, files of rows, and the right numbers."""
    for architecture, (structure, rank, options) in VICTIMS.items():
        (place / architecture / "rows").mkdir(parents=True)
        os.chdir(place / architecture)
        tiny_base(architecture, **options).save_pretrained("base")
        tiny_tokenizer(architecture, TEMPLATE if architecture == "llama" else None).save_pretrained("base")
        base = AutoModelForSequenceClassification.from_pretrained("base")
        adapted = tiny_adapter(architecture, base=base) if rank is None else base
        model = BayesianRewardModel(adapted, AutoTokenizer.from_pretrained("base"), virtual_rank=rank)
        model.fit(tiny_pairs(), structure=structure, include_head=rank is None).save_pretrained("model")
        rows = [{"prompt": p, "responses": [r, p]} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        files = {"rows.jsonl": rows, "rows.jsonl.gz": rows, "pairs.jsonl": tiny_pairs()}
        for name, held in files.items():
            damage.write_rows(Path("rows", name), held)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows/rows.parquet", write_page_checksum=True)
        numbers = {path.name: scored_rows(path) for path in damage.files_of([Path("rows")])}
        Path("numbers.json").write_text(json.dumps(numbers | {"fixed": scored()}))


def scored():
    """Mean and variance of the fixed rows."""
    scores = BayesianRewardModel.from_pretrained("model", device="cpu").score(PROMPTS, RESPONSES)
    return [scores.mean.tolist(), scores.variance.tolist()]


def scored_rows(path):
    """Mean and variance of each row of a file, by the command; raises InputError with the line that it prints."""
    sys.argv = ["bayesrm", "score", "model", str(path), "scores.jsonl"]
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
        try:
            bayesrm()
        except SystemExit as end:
            if end.code == 2:
                raise InputError(told.getvalue().split("bayesrm: ", 1)[-1].removesuffix("\n")) from end
    return [[row["mean"], row["variance"]] for row in damage.read_rows(Path("scores.jsonl"))]


def are_equal(found, expected):
    """Whether numbers differ by no more than rounding."""
    a, b = torch.tensor(found), torch.tensor(expected)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def verdict_of(family, number, seed, place):
    """Do one attack in a folder of its own; what came of it, and what is to be told of it."""
    rng = Random(f"{seed} {family} {number}")
    whole = place / rng.choice(list(VICTIMS))
    with tempfile.TemporaryDirectory(dir=place) as copy:
        shutil.copytree(whole, copy, dirs_exist_ok=True)
        os.chdir(copy)
        is_of_rows = family == "input rows"
        told, touched = FAMILIES[family][0]([Path("rows")] if is_of_rows else [Path("base"), Path("model")], rng)
        told = f"{whole.name}: {', '.join(map(str, touched))}: {told}"
        expected = json.loads((whole / "numbers.json").read_text())
        try:
            if is_of_rows:
                return judged_rows(touched[0], whole, expected), told
            found = scored()
        except InputError as error:
            names = {name for path in touched for name in (path.name, *THINGS.get(path.name, ()))}
            is_clear = "\n" not in str(error) and any(name in str(error) for name in names)
            return "refused" if is_clear else "unclear", f"{told}: {error}"
        except BaseException as error:
            return "unclear", f"{told}: {error!r}"
        if are_equal(found, expected["fixed"]):
            return "same", told
        return "unseen" if differ_by_rounding(whole) else "wrong", f"{told}: {found}"


def judged_rows(path, whole, expected):
    """Rows that are as they were must have their numbers; those that hold another text are scored as they are."""
    found, given, rows = scored_rows(path), damage.read_rows(whole / path), damage.read_rows(path)
    kept = [i for i, (one, other) in enumerate(zip(given, rows, strict=False)) if repr(one) == repr(other)]
    if len(found) != len(rows) or not all(are_equal(found[i], expected[path.name][i]) for i in kept):
        return "wrong"
    return "same" if len(kept) == len(rows) == len(given) else "unseen"


def differ_by_rounding(whole):
    """Whether weights differ, and none by more than bfloat16's rounding, below which a fingerprint does not look."""
    differ = False
    for path in damage.files_of([Path("base"), Path("model")], "model.safetensors"):
        old, new = load_file(whole / path), load_file(path)
        differ |= any(not old[name].equal(new[name]) for name in old)
        if any(not old[name].bfloat16().equal(new[name].bfloat16()) for name in old):
            return False
    return differ


def work(pipe, place):
    """Answer attacks with verdicts, in silence and in bounded memory."""
    limit = MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    while True:
        pipe.send(verdict_of(*pipe.recv(), place))


def verdicts(attacks, place):
    """Attacks with their verdicts from another process, which is ended and begun anew where an attack hangs it."""
    context, process = multiprocessing.get_context("fork"), None
    for attack in attacks:
        if process is None:
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, place), daemon=True)
            process.start()
            there.close()
        here.send(attack)
        try:
            verdict = here.recv() if here.poll(SECONDS) else ("hang", f"no answer within {SECONDS} s")
        except EOFError:
            process.join()
            verdict = "unclear", f"the process ended with {process.exitcode}"
        yield attack, verdict
        if verdict[0] == "hang" or not process.is_alive():
            process.kill()
            process = None
    process.kill()


def main():
    """Run attacks, print those that went wrong and a table of all."""
    total = sum(size for _, size in FAMILIES.values())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=total)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", help="one alone, such as digits/17")
    parser.add_argument("--json", type=Path, help="where to write all verdicts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    sizes = {family: -(-options.count * size // total) for family, (_, size) in FAMILIES.items()}
    names = [options.attack] if options.attack else [f"{name}/{i}" for name, size in sizes.items() for i in range(size)]
    counts, told = {family: Counter() for family in FAMILIES}, []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        build(place)
        for (family, number, _), (verdict, line) in verdicts(
            [(*name.split("/"), options.seed) for name in names], place
        ):
            counts[family][verdict] += 1
            told.append({"attack": f"{family}/{number}", "verdict": verdict, "told": line})
            if verdict in ("wrong", "unclear", "hang") or options.attack:
                print(f"{verdict}: {family}/{number}: {line}", file=sys.stderr, flush=True)
        os.chdir("/")
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))
    print(
        "| | tried | refused by name | same numbers | unseen | wrong | unclear | hangs |", "| --- " * 8 + "|", sep="\n"
    )
    for family, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {family} | {found.total()} | {' | '.join(str(found[verdict]) for verdict in VERDICTS)} |")
    sys.exit(any(found[verdict] for found in counts.values() for verdict in ("wrong", "unclear", "hang")))


if __name__ == "__main__":
    main()
