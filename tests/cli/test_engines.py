"""Where a command's model runs."""

import sys

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.cli.engines import started


class Work:
    """Counts how often it is loaded."""

    loads = 0

    def load(self):
        self.loads += 1
        return self

    def facts(self, input_sha256):
        return input_sha256

    def results(self, chunks):
        return ((chunk, [len(chunk)]) for chunk in chunks)


def test_work_in_this_process_is_loaded_once_for_all_chunks():
    work = Work()
    with started(work, "local", None) as running:
        assert running.facts("of the input") == "of the input"
        assert list(running.results([[1], [2, 3]], lambda: iter([1, 2, 3]), 0)) == [([1], [1]), ([2, 3], [2])]
    assert work.loads == 1


def test_workers_without_ray_are_refused_before_anything_is_loaded():
    work = Work()
    with pytest.raises(InputError, match="--workers are Ray's: they go with --engine ray"):
        started(work, "local", 2)
    assert work.loads == 0


def test_ray_that_is_not_installed_is_told_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "bayesrm_fast.cli.on_ray", raising=False)
    monkeypatch.delitem(sys.modules, "bayesrm_fast.integrations.ray", raising=False)
    with pytest.raises(InputError, match=r"pip install 'bayesrm_fast\[ray\]'"):
        started(Work(), "ray", None)
