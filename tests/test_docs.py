"""What the pages show runs as it stands there."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from listening import served_at
from tiny import tiny_pairs, tiny_policy, tiny_steps, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.main import app
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.text.files import write_rows
from benchmarks.data import embedded_encoder

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))

SERVER = "http://127.0.0.1:8000"
"""Of the pages; here it listens elsewhere."""

COMMANDED = [page for page in PAGES if "\nbayesrm " in page.read_text(encoding="utf-8")]


def shown(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, adapter_folder, step_adapter_folder):
    """What the pages name."""
    made = tmp_path_factory.mktemp("docs")
    rm = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu")
    rm.fit(tiny_pairs(), rank=4, prior_precision=1.0).save_pretrained(made / "my-rm")
    (made / "my-encoder").symlink_to(embedded_encoder())
    tiny_policy().save_pretrained(made / "my-policy")
    tiny_tokenizer("llama").save_pretrained(made / "my-policy")
    candidates = [{"prompt": words(3, i), "responses": [words(2 + j, 20 * i + j) for j in range(6)]} for i in range(12)]
    write_rows(made / "candidates.jsonl", candidates)
    shapes = {"similarities": [[float(i == j) for j in range(6)] for i in range(6)], "gold": [0, 1, 0, 0, 1, 0]}
    write_rows(made / "judged.jsonl.gz", [row | shapes for row in candidates])
    write_rows(made / "pairs.jsonl", tiny_pairs())
    (made / "my-step-adapter").symlink_to(step_adapter_folder)
    write_rows(made / "steps.jsonl", tiny_steps())
    write_rows(made / "held-out-steps.jsonl", tiny_steps(seed=11))
    write_rows(made / "held-out.jsonl", tiny_pairs(4, seed=5))
    subsets = ("donotanswer", "hep-python", "mine")
    rows = [{"id": i, "subset": subsets[i % 3], **pair} for i, pair in enumerate(tiny_pairs(6, seed=7))]
    write_rows(made / "rewardbench.parquet", rows)
    return made


def _with_what_it_needs(page, request):
    """A cluster for the page on Ray, which is skipped where there cannot be one."""
    if page.stem == "ray":
        request.getfixturevalue("ray_cluster")


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page, "python")], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, folder, monkeypatch, request):
    _with_what_it_needs(page, request)
    monkeypatch.chdir(folder)
    names: dict = {}
    blocks = shown(page, "python")
    with contextlib.ExitStack() as stack:
        url = SERVER
        if any(SERVER in block for block in blocks):
            scorer = AsyncScorer(BayesianRewardModel.from_pretrained("my-rm", device="cpu"))
            url = stack.enter_context(served_at({"my-rm": scorer}))
        for block in blocks:
            exec(compile(block.replace(SERVER, url), str(page), "exec"), names)


@pytest.mark.parametrize("page", COMMANDED, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, folder, monkeypatch, request):
    _with_what_it_needs(page, request)
    monkeypatch.chdir(folder)
    for line in re.findall(r"^(bayesrm [^#\n]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
        command = shlex.split(line)
        if command[1] == "serve":  # it would not end: tests/cli/test_serve.py starts it
            typer.main.get_command(app).commands["serve"].make_context("serve", command[2:])
            continue
        command[0] = str(Path(sys.executable).with_name("bayesrm"))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=os.environ)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_links_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
