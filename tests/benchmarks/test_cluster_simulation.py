"""The simulated cluster beside what queueing theory says of its simplest case."""

import json
import random

import pytest
from quick_run import quick_run

from benchmarks import cluster_simulation
from benchmarks.cluster_simulation import MEAN_TOKENS, RESULTS, Replica, figures, percentiles, request_tokens, simulate

TOKENS = 100


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_replica_that_takes_requests_of_one_size_one_by_one_waits_as_md1_does(monkeypatch, load):
    """Pollaczek and Khinchine: the mean wait is ρ / (2 (1 − ρ)) of a service."""
    monkeypatch.setattr(cluster_simulation, "request_tokens", lambda _: TOKENS)
    replica = Replica(1 / TOKENS, batch_tokens=1, queue_tokens=float("inf"))
    took, refused = simulate([replica], "random", load, 40_000, random.Random(1))
    assert (len(took), refused) == (40_000, 0)
    # The standard error at ρ = 0.8 is about 3 %: waits are alike for some 1 / (1 − ρ)² services.
    assert sum(took) / len(took) - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.1)


def test_batches_take_whole_requests_up_to_their_tokens():
    replica = Replica(0.5, batch_tokens=10, queue_tokens=40)
    assert [replica.accept(float(i), tokens) for i, tokens in enumerate((12, 4, 6, 3, 20))] == [True] * 4 + [False]
    assert replica.tokens == 25
    assert replica.next_batch() == (6.0, [0.0])  # one that is longer than a batch has one of its own
    assert replica.next_batch() == (5.0, [1.0, 2.0])
    assert (replica.tokens_waiting, replica.tokens) == (3, 13)


def test_every_request_is_answered_or_refused_and_beyond_the_load_the_share_that_is_too_much_is_refused():
    replicas = [Replica(1.0, 4096, 8192) for _ in range(3)]
    rate = 2 * 3 / MEAN_TOKENS
    took, refused = simulate(replicas, "least tokens", rate, 3000, random.Random(0))
    assert len(took) + refused == 3000
    assert refused / 3000 == pytest.approx(0.5, abs=0.05)


def test_the_least_busy_replica_serves_sooner_than_a_random_one():
    random_one, least = (figures(1.0, 8, policy, 0.8, 4000, float("inf")) for policy in ("random", "least tokens"))
    assert least["p95"] < 0.6 * random_one["p95"]


def test_requests_have_the_mean_tokens_that_the_load_is_reckoned_by():
    lot = random.Random(0)
    assert sum(request_tokens(lot) for _ in range(20_000)) / 20_000 == pytest.approx(MEAN_TOKENS, rel=0.01)


def test_percentiles():
    assert percentiles([float(i) for i in range(100)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([2.0]) == dict.fromkeys(("p50", "p95", "p99"), 2.0)


def test_the_kept_results_are_of_the_serving_results_beside_them():
    kept = json.loads((RESULTS / "cluster_simulation.json").read_text())
    served = json.loads((RESULTS / "serve.json").read_text())
    assert kept["seconds_of_a_request_alone"] == pytest.approx(1 / served["requests_a_second"])


def test_a_quick_run_ends(tmp_path):
    quick_run("cluster_simulation", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["simulated"]
