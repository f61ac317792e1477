"""Work prepared in a thread, and streams of rows."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.text.prefetching import AHEAD, prefetched

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rm():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "bayesrm-prefetch"]


def test_items_come_in_order_from_another_thread():
    made_in = []

    def items():
        for i in range(20):
            made_in.append(threading.current_thread())
            yield i

    assert list(prefetched(items())) == list(range(20))
    assert threading.current_thread() not in made_in
    assert not threads()


def test_no_more_than_a_few_are_made_ahead():
    made = []
    stream = prefetched(made.append(i) or i for i in range(1000))
    next(stream)
    time.sleep(0.3)
    assert len(made) <= AHEAD + 2
    stream.close()
    assert not threads()


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise InputError("row 3")

    stream = prefetched(items())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(InputError, match="row 3"):
        next(stream)
    assert not threads()


@pytest.mark.parametrize("as_mapping", [False, True])
def test_a_stream_gives_what_score_gives_in_order(rm, as_mapping):
    prompts, responses = [words(1 + i % 5, i) for i in range(23)], [words(1 + i % 7, 50 + i) for i in range(23)]
    scores = rm.score(prompts, responses)
    rows = zip(prompts, responses, strict=True)
    if as_mapping:
        rows = ({"prompt": prompt, "response": response} for prompt, response in rows)
    means, variances, truncated = zip(*rm.score_stream(rows, window=5), strict=True)
    torch.testing.assert_close(torch.tensor(means), scores.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(variances), scores.variance, rtol=1e-4, atol=0)
    assert list(truncated) == scores.truncated.tolist()


def test_a_stream_reads_no_more_than_it_needs(rm):
    read = []
    stream = rm.score_stream((read.append(i) or ("able", words(3, i)) for i in range(10_000)), window=4)
    for _ in range(8):
        next(stream)
    stream.close()
    assert len(read) <= 4 * (2 + AHEAD + 2)


def test_a_bad_row_is_named_after_the_windows_before_it(rm):
    stream = rm.score_stream([("able", "act")] * 6 + [("able", None)], window=3)
    assert len([next(stream) for _ in range(6)]) == 6
    with pytest.raises(InputError, match="row 7: response must be"):
        next(stream)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak memory here")
def test_the_peak_memory_of_a_stream_does_not_grow_with_its_rows():
    """Rows that stayed would take 4 kB each for their token ids alone; an allocator's noise is some MiB."""
    peaks = []
    for rows in (512, 8192):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stream_memory", str(rows), "64", "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout)["peak_bytes"])
    assert peaks[1] - peaks[0] < 2048 * (8192 - 512)
