"""What the README shows runs as it stands there."""

import re
import shutil
from pathlib import Path

import torch

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


def test_a_newcomer_can_read_it_in_a_minute():
    assert len(README.splitlines()) < 120


def test_the_files_that_it_links_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
