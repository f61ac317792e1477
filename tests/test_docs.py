"""What the pages show runs as it stands there."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from listening import served_at
from tiny import tiny_base, tiny_pairs, tiny_policy, tiny_steps, tiny_tokenizer, words

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


def commands_of(page):
    return re.findall(r"^(bayesrm [^#\n]*)", page.read_text(encoding="utf-8"), re.MULTILINE)


def shown(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base_folder, adapter_folder, step_base_folder, step_adapter_folder):
    """What the pages name."""
    made = tmp_path_factory.mktemp("docs")
    rm = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu")
    for name in ("my-rm", "my-second-rm", "my-third-rm"):
        rm.fit(tiny_pairs(), rank=4, prior_precision=1.0).save_pretrained(made / name)
    (made / "my-adapter").symlink_to(adapter_folder)
    for name in ("my-reward-model", "distilroberta-base"):
        (made / name).symlink_to(base_folder)
    tiny_base("llama", num_labels=3).save_pretrained(made / "my-objectives-model")
    tiny_tokenizer("llama").save_pretrained(made / "my-objectives-model")
    (made / "my-encoder").symlink_to(embedded_encoder())
    tiny_policy().save_pretrained(made / "my-policy")
    tiny_tokenizer("llama").save_pretrained(made / "my-policy")
    candidates = [{"prompt": words(3, i), "responses": [words(2 + j, 20 * i + j) for j in range(6)]} for i in range(12)]
    for name in ("candidates.jsonl", "candidates.jsonl.gz"):
        write_rows(made / name, candidates)
    shapes = {"similarities": [[float(i == j) for j in range(6)] for i in range(6)], "gold": [0, 1, 0, 0, 1, 0]}
    write_rows(made / "judged.jsonl.gz", [row | shapes for row in candidates])
    write_rows(made / "pairs.jsonl", tiny_pairs())
    (made / "my-base-model").symlink_to(step_base_folder)
    shutil.copytree(step_adapter_folder, made / "my-step-adapter")  # which a page trains
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


def cells_of_code():
    notebook = json.loads((ROOT / "docs/notebook.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch):
    """In this process: a kernel of Jupyter's would be 40 packages and another import of torch, and show no more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict = {}
    sizes = re.compile(r"^PAIRS, EPOCHS, HELD_OUT, PROMPTS, CANDIDATES = .*$", re.MULTILINE)
    texts = ["".join(cell["source"]) for cell in cells_of_code()]
    assert sum(len(sizes.findall(text)) for text in texts) == 1
    for text in texts:
        small = sizes.sub("PAIRS, EPOCHS, HELD_OUT, PROMPTS, CANDIDATES = 10, 1, 10, 4, 2", text)
        exec(compile(small, "notebook", "exec"), names)
    assert (tmp_path / "my-calibrated-rm" / "posterior.json").is_file()


def test_the_notebook_holds_printed_text_of_one_whole_run_and_no_more():
    cells = cells_of_code()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream"}
    assert {output["name"] for output in outputs} == {"stdout"}
    assert sum(len("".join(output["text"])) for output in outputs) < 10_000


@pytest.mark.parametrize("page", COMMANDED, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, folder, monkeypatch, request):
    _with_what_it_needs(page, request)
    monkeypatch.chdir(folder)
    for line in commands_of(page):
        command = shlex.split(line)
        if command[1] == "serve":  # it would not end: tests/cli/test_serve.py starts it
            typer.main.get_command(app).commands["serve"].make_context("serve", command[2:])
            continue
        command[0] = str(Path(sys.executable).with_name("bayesrm"))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=os.environ)
        assert done.returncode == 0, (line, done.stderr)


@pytest.mark.parametrize(
    ("candidates", "results"),
    [
        ("HumanEval, one policy", "humaneval-noise0.25"),
        ("the same with clean labels", "humaneval-noise0"),
        ("the same with LoRA on all linear layers", "all_linear-noise0.25"),
        ("HumanEval, a decoder", "gemma-noise0.25"),
        ("answers of one policy", "qa_feedback-noise0"),
        ("AlpacaEval, a pool", "pool-noise0"),
        ("the same pool", "synthetic-noise0.25"),
    ],
)
def test_when_it_helps_tells_the_figures_that_were_measured(candidates, results):
    page = (ROOT / "docs/when-it-helps.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"^\| {re.escape(candidates)}.*$", page, re.MULTILINE)
    rows = json.loads((ROOT / f"benchmarks/results/overoptimisation-{results}.json").read_text())["rows"]
    default = rows["ggn, relative std, k = 1, λ by evidence"]
    figures = [rows["MAP"]["gold"][0], *(row["gold"][-1] for row in (rows["MAP"], default, rows["MBR"]))]
    figures += [default["gain_over"]["MAP"][name] for name in ("gain", "standard_error")]
    shown = [float(figure) for figure in re.findall(r"\.\d{3}", told)]
    assert sorted(shown) == pytest.approx(sorted(map(abs, figures)), abs=0.00055)  # of four digits, rounded to three


def test_every_command_is_shown_by_a_page():
    known = set(typer.main.get_command(app).commands)
    assert {shlex.split(line)[1] for page in COMMANDED for line in commands_of(page)} == known


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs/reference").glob("*.md"))], ids=lambda page: page.stem)
def test_the_files_that_a_page_links_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
