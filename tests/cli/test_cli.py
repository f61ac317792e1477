"""The installed command, from outside."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_pairs, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.jobs import CHUNK
from bayesrm_fast.cli.score import score
from bayesrm_fast.ops.cpu import unavailable
from bayesrm_fast.text.files import read_rows, write_rows

COMMAND = Path(sys.executable).with_name("bayesrm")


def bayesrm(*arguments, code=0):
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def summary(*arguments):
    return json.loads(bayesrm(*arguments, "--json").stdout)


@pytest.fixture
def pairs_file(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", tiny_pairs())
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def candidates_file(tmp_path):
    rows = [{"prompt": words(3, i), "responses": [words(4 + j, 10 * i + j) for j in range(3)]} for i in range(5)]
    write_rows(tmp_path / "candidates.jsonl.gz", rows)
    return tmp_path / "candidates.jsonl.gz"


def test_the_whole_job(base_folder, pairs_file, candidates_file, tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    adapter = tmp_path / "adapter"
    options = ("--target", "q_proj", "--target", "v_proj", "--batch-size", "2")
    trained = summary("train", pairs_file, adapter, "--base", base_folder, *options)
    assert trained["pairs"] == 6
    fitted = summary("fit", adapter, pairs_file, "--rank", "4")
    assert (fitted["structure"], fitted["rank"], fitted["pairs"]) == ("ggn", 4, 6)
    scored = summary("score", adapter, candidates_file, tmp_path / "scores.parquet")
    assert scored["rows"] == 5
    rows = read_rows(tmp_path / "scores.parquet")
    assert [len(row["std"]) for row in rows] == [3] * 5
    chosen = summary("best-of-n", adapter, candidates_file, tmp_path / "best.jsonl", "--k", "0.5")
    assert chosen["prompts"] == 5
    best = read_rows(tmp_path / "best.jsonl")
    for row, scores in zip(best, rows, strict=True):
        assert row["mean"] == pytest.approx(scores["mean"][row["index"]], rel=1e-4, abs=1e-6)
        assert row["score"] == pytest.approx(row["mean"] - 0.5 * row["std"], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("options", [(), ("--second-pass", "--basis-dtype", "bfloat16", "--rank", "3")])
def test_a_ggn_fit_says_what_it_keeps_and_is_served_like_any_other(
    adapter_folder, pairs_file, candidates_file, tmp_path, options
):
    done = bayesrm(
        "fit", adapter_folder, pairs_file, "--output", tmp_path / "rm", "--structure", "ggn", *options, "--json"
    )
    assert "the fit keeps" in done.stderr
    fitted = json.loads(done.stdout)
    assert (fitted["structure"], fitted["rank"]) == ("ggn", 3 if options else 128)
    assert summary("best-of-n", tmp_path / "rm", candidates_file, tmp_path / "best.jsonl")["prompts"] == 5
    assert summary("score", tmp_path / "rm", candidates_file, tmp_path / "scores.jsonl")["rows"] == 5


def test_a_calibration_is_saved_and_used(model_folder, pairs_file, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "rm")
    found = summary("calibrate", folder, pairs_file, "--plot", tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5_000
    assert set(found) >= {"pairs", "temperature", "nll_before", "nll_after", "ece_before", "ece_after"}
    record = summary("info", folder)
    assert (record["temperature"], record["prior_precision"]) == (found["temperature"], found["prior_precision"])
    bayesrm("score", folder, pairs_file, tmp_path / "after.jsonl")
    bayesrm("score", model_folder, pairs_file, tmp_path / "before.jsonl")
    after, before = read_rows(tmp_path / "after.jsonl"), read_rows(tmp_path / "before.jsonl")
    assert [row["mean"] for row in after] == [row["mean"] for row in before]
    assert [row["probability"] for row in after] != [row["probability"] for row in before]


def test_pairs_are_scored_as_differences(model_folder, pairs_file, tmp_path):
    bayesrm("score", model_folder, pairs_file, tmp_path / "scores.jsonl")
    rows = read_rows(tmp_path / "scores.jsonl")
    assert len(rows) == 6
    assert all(0 < row["probability"] < 1 for row in rows)


def test_info_shows_the_posterior_and_the_machine(model_folder):
    record = summary("info", model_folder)
    assert record["pairs"] == 6
    shown = bayesrm("info", model_folder).stdout
    for word in ("evidence", "effective parameters", "prior precision", "ekfac"):
        assert word in shown
    assert "torch" in summary("info")


def test_info_says_which_backend_serves_and_why():
    told = summary("info", "--backends")
    assert told["kron_variance, reference"] == "serves"
    assert told["kron_variance, cpu"] in ("serves", unavailable())


def test_a_killed_run_that_is_resumed_equals_an_unbroken_one(model_folder, tmp_path):
    rows = [{"prompt": words(3, i), "responses": [words(2 + j, 7 * i + j) for j in range(8)]} for i in range(300)]
    write_rows(tmp_path / "many.jsonl", rows)
    partial = tmp_path / "resumed.jsonl.partial"
    running = subprocess.Popen(
        [COMMAND, "score", model_folder, tmp_path / "many.jsonl", tmp_path / "resumed.jsonl"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 64) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "resumed.jsonl").exists()
    done = partial.read_bytes().count(b"\n") - 1
    assert 64 <= done < 300
    bayesrm("score", model_folder, tmp_path / "many.jsonl", tmp_path / "resumed.jsonl", "--resume")
    bayesrm("score", model_folder, tmp_path / "many.jsonl", tmp_path / "unbroken.jsonl")
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "unbroken.jsonl").read_bytes()
    assert not partial.exists()


def test_a_failure_in_the_middle_leaves_what_was_scored_readable(model_folder, tmp_path, monkeypatch):
    rows = [{"prompt": words(3, i), "responses": [words(4, i)]} for i in range(CHUNK + 6)]
    write_rows(tmp_path / "many.jsonl", rows)
    score_tokenized, calls = BayesianRewardModel.score_tokenized, []

    def fails(self, segments, **options):
        calls.append(segments)
        if len(calls) == 2:
            raise InputError("the model's reward of row 3 is NaN or infinite")
        return score_tokenized(self, segments, **options)

    monkeypatch.setattr(BayesianRewardModel, "score_tokenized", fails)
    with pytest.raises(InputError, match="NaN"):
        score(model_folder, tmp_path / "many.jsonl", tmp_path / "scores.jsonl")
    partial = [json.loads(line) for line in (tmp_path / "scores.jsonl.partial").read_text().splitlines()]
    assert [row["prompt"] for row in partial[1:]] == [row["prompt"] for row in rows[:CHUNK]]
    score(model_folder, tmp_path / "many.jsonl", tmp_path / "scores.jsonl", resume=True)
    assert len(read_rows(tmp_path / "scores.jsonl")) == len(rows)


def test_best_of_n_counts_its_variances_and_resumes(model_folder, tmp_path):
    rows = [{"prompt": words(3, i), "responses": [words(2 + j, 9 * i + j) for j in range(12)]} for i in range(70)]
    write_rows(tmp_path / "many.jsonl", rows)
    told = summary("best-of-n", model_folder, tmp_path / "many.jsonl", tmp_path / "best.jsonl", "--k", "0.1")
    assert (told["prompts"], told["candidates"]) == (70, 840)
    assert 70 <= told["variances_computed"] < 840
    lines = (tmp_path / "best.jsonl").read_bytes().splitlines(keepends=True)
    header = json.dumps({"job": None}) + "\n"
    (tmp_path / "again.jsonl.partial").write_bytes(header.encode() + b"".join(lines[:64]))
    assert "another model" in bad(
        "best-of-n", model_folder, tmp_path / "many.jsonl", tmp_path / "again.jsonl", "--k", "0.1", "--resume"
    )


def test_info_says_which_shortcuts_a_model_takes(model_folder):
    told = summary("info", model_folder, "--shortcuts")
    assert told["beginnings that rows share"] == "once"
    assert "last token alone" in told["last layer"]


def bad(*arguments):
    """One line on standard error, exit code 2."""
    done = bayesrm(*arguments, code=2)
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "pairs.jsonl is empty"),
        ('{"prompt": "a"\n', "pairs.jsonl, row 1 is not valid JSON"),
        ('{"prompt": "a", "chosen": "b"}\n', "pairs.jsonl, row 1 has no column 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}\n', "pairs.jsonl, row 1: rejected must be"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "pairs.jsonl, row 1: chosen and rejected are equal"),
        ('{"prompt": "\\u0000", "chosen": "b", "rejected": "c"}\n', "pairs.jsonl, row 1: prompt contains a NUL"),
        ('{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}\n', "pairs.jsonl, row 1: prompt contains a lone surr"),
    ],
)
def test_bad_pairs(adapter_folder, tmp_path, content, message):
    (tmp_path / "pairs.jsonl").write_text(content)
    assert message in bad("fit", adapter_folder, tmp_path / "pairs.jsonl", "--output", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prior-precision", "-1"), "positive"),
        (("--prior-precision", "much"), "--prior-precision must be a number"),
        (("--rank", "0"), "rank"),
        (("--rank", "some"), "--rank must be a whole number"),
        (("--structure", "kfac", "--second-pass"), "for structure='ggn' alone"),
        (("--structure", "ggn", "--basis-dtype", "int8"), "--basis-dtype must be"),
        (("--structure", "diag"), "structure must be one of"),
        (("--output", "/proc/nothing/model"), "cannot be written"),
    ],
)
def test_bad_options(adapter_folder, pairs_file, options, message):
    assert message in bad("fit", adapter_folder, pairs_file, *options)
    assert not (adapter_folder / "posterior.json").exists()


def test_unwritable_outputs_are_told_before_the_work(candidates_file, tmp_path):
    """The model does not exist, and is not even looked for."""
    for command in ("score", "best-of-n"):
        message = bad(command, tmp_path / "no model", candidates_file, tmp_path / "nothing" / "out.jsonl")
        assert "cannot be written" in message


def test_broken_models(model_folder, candidates_file, tmp_path):
    assert "is not a folder" in bad("score", tmp_path / "nothing", candidates_file, tmp_path / "out.jsonl")
    copied = shutil.copytree(model_folder, tmp_path / "copy")
    tensors = copied / "posterior.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    assert "posterior.safetensors is truncated" in bad("score", copied, candidates_file, tmp_path / "out.jsonl")
    assert "cannot be read" in bad("info", tmp_path)
    assert not list(tmp_path.glob("out*"))


def test_scoring_an_adapter_without_a_posterior(adapter_folder, candidates_file, tmp_path):
    assert "there is no posterior" in bad("score", adapter_folder, candidates_file, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


def test_warnings_are_one_line(model_folder, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "able", "responses": ["", "act " * 100_000]}])
    done = bayesrm("score", model_folder, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert any(line.startswith("warning: 1 empty response") for line in done.stderr.splitlines())
    assert read_rows(tmp_path / "out.jsonl")[0]["truncated"] == [False, True]
