"""What the README shows runs as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_pairs, words

from bayesrm_fast.text.files import read_rows, write_rows

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_runs(base_folder, tmp_path, monkeypatch):
    shutil.copytree(base_folder, tmp_path / "my-reward-model")
    monkeypatch.chdir(tmp_path)
    shown: dict = {}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL)[1], shown)
    torch.testing.assert_close(shown["joint"].covariance.diagonal()[0], shown["scores"].variance[0], rtol=1e-4, atol=0)
    assert shown["difference"].probability.shape == (2,)
    assert shown["best"].response in ("It is 6.", "Six.")


def test_the_commands_run(base_folder, tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    write_rows(tmp_path / "pairs.jsonl", tiny_pairs())
    write_rows(tmp_path / "held-out.jsonl", tiny_pairs(4, seed=5))
    rows = [{"id": i, "subset": "donotanswer", **pair} for i, pair in enumerate(tiny_pairs(4, seed=7))]
    write_rows(tmp_path / "rewardbench.jsonl", rows)
    write_rows(tmp_path / "candidates.jsonl.gz", [{"prompt": words(3, 0), "responses": [words(4, 1), words(5, 2)]}])
    shutil.copytree(base_folder, tmp_path / "my-reward-model")
    lines = re.findall(r"^(bayesrm [^#\n]*)", README, re.MULTILINE)
    assert [shlex.split(line)[1] for line in lines] == [
        "train",
        "fit",
        "fit",
        "calibrate",
        "info",
        "score",
        "best-of-n",
        "best-of-n",
        "best-of-n",
        "bonbon",
        "select-pairs",
        "rewardbench",
        "info",
    ]
    for line in lines:
        command = shlex.split(line.replace("distilroberta-base", str(base_folder)))
        command[0] = str(Path(sys.executable).with_name("bayesrm"))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "scores.parquet")) == len(read_rows(tmp_path / "best.jsonl")) == 1


def test_the_files_that_it_links_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
