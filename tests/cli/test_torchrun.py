"""Commands that torchrun starts on several processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_pairs, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli import torchrun
from bayesrm_fast.text.files import write_rows

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts the second of two processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def run(*arguments):
    return on_two_processes("-m", "bayesrm_fast.cli", *arguments)


def on_two_processes(*program, cwd=None):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, program)],
        capture_output=True,
        text=True,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        timeout=240,
        cwd=cwd,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_fit_and_a_calibration_under_torchrun_are_those_of_one_process(adapter_folder, tmp_path):
    pairs, held_out = tmp_path / "pairs.jsonl", tmp_path / "held_out.jsonl"
    write_rows(pairs, tiny_pairs(9))
    write_rows(held_out, tiny_pairs(6, 300))
    code, out, err = run("fit", adapter_folder, pairs, "--output", tmp_path / "rm", "--structure", "kfac")
    assert code == 0, err
    assert out.count("output") == 1
    alone = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu").fit(tiny_pairs(9), structure="kfac")
    texts = [words(3, 1)] * 3, [words(4, i) for i in range(3)]
    together = BayesianRewardModel.from_pretrained(tmp_path / "rm", device="cpu")
    torch.testing.assert_close(together.score(*texts).variance, alone.score(*texts).variance, rtol=1e-4, atol=0)
    assert not list((tmp_path / "rm").glob(".*"))

    code, out, err = run("calibrate", tmp_path / "rm", held_out)
    assert code == 0, err
    alone.calibrate(tiny_pairs(6, 300))
    calibrated = BayesianRewardModel.from_pretrained(tmp_path / "rm", device="cpu").posterior
    assert calibrated.temperature == alone.posterior.temperature


def test_the_program_of_the_docs_fits_in_a_group(adapter_folder, tmp_path):
    """Ranks that have other pairs show that they are in one: alone, each would fit its own."""
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "scale.md").read_text(), re.DOTALL)
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "my-rm").symlink_to(adapter_folder)
        write_rows(tmp_path / str(rank) / "pairs.jsonl", tiny_pairs(3, rank))
    (tmp_path / "program.py").write_text(f"import os\nos.chdir(os.environ['RANK'])\n{example}")
    code, _, err = on_two_processes(tmp_path / "program.py", cwd=tmp_path)
    assert code != 0
    assert "rank 1 was given other pairs than rank 0" in err
    assert not list(tmp_path.glob("*/fitted"))


def test_without_torchrun_there_is_no_group_and_this_process_writes(monkeypatch):
    with torchrun.process_group() as group:
        assert group is None
    assert torchrun.is_first()
    assert torchrun.name_of_process() == "bayesrm"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not torchrun.is_launched()


def test_the_second_process_writes_nothing_and_says_who_it_is(launched, tmp_path):
    assert not torchrun.is_first()
    assert torchrun.name_of_process() == "bayesrm, rank 1"
    with torchrun.one_writer_of_all(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_fit_that_another_rank_ends_leaves_no_folder(adapter_folder, tmp_path, monkeypatch, refused):
    def fit(*_, **__):
        raise InputError("rank 1 did not come within 1800 s")

    monkeypatch.setattr(BayesianRewardModel, "fit", fit)
    write_rows(tmp_path / "pairs.jsonl", tiny_pairs(3))
    assert "rank 1 did not come" in refused(
        "fit", adapter_folder, tmp_path / "pairs.jsonl", "--output", tmp_path / "rm"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_more_processes_than_gpus_are_refused(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="more processes than the 1 GPUs here"), torchrun.process_group():
        pass
