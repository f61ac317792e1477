"""The batch of a pool that a labeller should judge next."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from dense_reference import DensePosterior
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from tolerances import RELATIVE

from bayesrm_fast import BayesianRewardModel, Candidates, InputError, PreferencePair
from bayesrm_fast.posterior.files import CLASSES
from bayesrm_fast.select import active
from bayesrm_fast.select.pairs import greedy_batch, label_information

PRECISION = 0.5
TEMPERATURE = 0.8
POOL = tiny_pairs(30, seed=300)
EQUAL = {"prompt": "about", "chosen": "art", "rejected": "art"}
SETS = [{"prompt": words(3, i), "responses": [words(2 + j, 40 + 10 * i + j) for j in range(4)]} for i in range(3)]


def fitted(dtype=torch.float32, structure="ggn"):
    rm = BayesianRewardModel(tiny_adapter("bert", dtype=dtype), tiny_tokenizer("bert"), max_batch_tokens=200)
    rm.fit(tiny_pairs(), structure=structure, rank=16, prior_precision=PRECISION)
    rm.posterior.temperature = TEMPERATURE
    return rm


@pytest.fixture(scope="module")
def rm():
    return fitted()


def swapped(pair):
    return {"prompt": pair["prompt"], "chosen": pair["rejected"], "rejected": pair["chosen"]}


def rows_of(selected):
    return [pair.row for pair in selected.pairs]


def assert_same_choice(ours, theirs):
    assert [(p.row, p.first, p.second) for p in ours.pairs] == [(p.row, p.first, p.second) for p in theirs.pairs]
    for name in ("information", "probability", "std"):
        told = [[getattr(pair, name) for pair in one.pairs] for one in (ours, theirs)]
        np.testing.assert_allclose(*told, rtol=RELATIVE[torch.float32])


@pytest.mark.parametrize("structure", CLASSES)
def test_a_batch_is_that_of_the_dense_posterior(structure):
    rm = fitted(torch.float64, structure)

    def ids(pairs, side):
        encoded = [rm.tokenizer(pair["prompt"], pair[side], return_token_type_ids=True) for pair in pairs]
        return [(row["input_ids"], row["token_type_ids"]) for row in encoded]

    dense = DensePosterior(rm.model, list(zip(ids(tiny_pairs(), "chosen"), ids(tiny_pairs(), "rejected"), strict=True)))
    rows = [row for pair in zip(ids(POOL, "chosen"), ids(POOL, "rejected"), strict=True) for row in pair]
    signs = np.kron(np.eye(len(POOL)), [1, -1])
    covariance = torch.from_numpy(signs @ dense.covariance(rows, structure, 16, PRECISION) @ signs.T)
    mean = torch.tensor(signs @ [dense.reward(row).item() for row in rows])
    logit = mean / TEMPERATURE, covariance / TEMPERATURE**2
    order, information = greedy_batch(logit[0], logit[1].diagonal().clone(), lambda i: logit[1][i], 20)
    found = rm.select_pairs(POOL, 20)
    assert rows_of(found) == order
    relative = RELATIVE[torch.float64]
    np.testing.assert_allclose([pair.information for pair in found.pairs], information, rtol=relative)
    np.testing.assert_allclose([p.std for p in found.pairs], covariance.diagonal()[order].sqrt(), rtol=relative)
    assert (found.left_out, found.sketch_error) == (0.0, None)


def test_what_is_told_of_a_pair_is_what_it_is_scored(rm):
    scores = rm.score_pairs(POOL)
    mean, variance = scores.mean.double() / TEMPERATURE, scores.variance.double() / TEMPERATURE**2
    information = label_information(mean, variance)[0]
    for strategy in ("information", "uncertainty", "random"):
        found = rm.select_pairs(POOL, 30, strategy=strategy).pairs
        rows = [pair.row for pair in found]
        assert sorted(rows) == list(range(30))
        near = dict(rtol=RELATIVE[torch.float32])
        np.testing.assert_allclose([pair.std for pair in found], scores.std[rows], **near)
        np.testing.assert_allclose([pair.probability for pair in found], scores.probability[rows], **near)
        told = torch.tensor([pair.information for pair in found], dtype=torch.float64)
        if strategy == "information":
            assert told[0] == pytest.approx(float(information.max()), rel=RELATIVE[torch.float32])
            assert (told[1:] < information[rows[1:]]).all()
        else:
            np.testing.assert_allclose(told, information[rows], **near)


def test_uncertainty_alone_takes_the_largest_stds(rm):
    expected = rm.score_pairs(POOL).std.argsort(descending=True)[:7].tolist()
    assert rows_of(rm.select_pairs(POOL, 7, strategy="uncertainty")) == expected


def test_a_random_batch_follows_from_its_seed_and_runs_the_model_on_no_more_than_it(rm, monkeypatch):
    first = rows_of(rm.select_pairs(POOL, 6, strategy="random", seed=1))
    assert len(set(first)) == 6
    assert first == rows_of(rm.select_pairs(POOL, 6, strategy="random", seed=1))
    assert first != rows_of(rm.select_pairs(POOL, 6, strategy="random", seed=2))
    scored = []
    score = active.score_differences
    monkeypatch.setattr(
        active, "score_differences", lambda p, rows, *rest: scored.append(rows) or score(p, rows, *rest)
    )
    rm.select_pairs(POOL, 6, strategy="random")
    assert [len(rows) for rows in scored] == [12]


@pytest.mark.parametrize("strategy", ["information", "uncertainty", "random"])
def test_the_order_of_a_pair_says_nothing_and_equal_responses_come_last(rm, strategy):
    pool = [EQUAL, *POOL[:9], EQUAL]
    found = rm.select_pairs(pool, 11, strategy=strategy)
    assert rows_of(found)[-2:] == [0, 10]
    assert [(p.information, p.std, p.probability) for p in found.pairs[-2:]] == [(0.0, 0.0, 0.5)] * 2
    again = rm.select_pairs([swapped(pair) for pair in pool], 11, strategy=strategy)
    assert rows_of(again) == rows_of(found)
    told = [[pair.probability for pair in one.pairs] for one in (found, again)]
    np.testing.assert_allclose(told[0], 1 - np.array(told[1]), rtol=1e-5)


def test_a_pair_that_is_there_twice_says_less_the_second_time(rm):
    pool = [POOL[4], *POOL]
    found = {pair.row: (rank, pair.information) for rank, pair in enumerate(rm.select_pairs(pool, 31).pairs)}
    assert found[0][0] < found[5][0]
    assert found[5][1] < found[0][1]


def test_any_two_responses_of_a_row_are_a_pair(rm):
    apart = [
        (number, i, j, {"prompt": row["prompt"], "chosen": row["responses"][i], "rejected": row["responses"][j]})
        for number, row in enumerate(SETS)
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    expected = rm.select_pairs([pair for *_, pair in apart], 10)
    renamed = [
        dataclasses.replace(one, row=apart[one.row][0], first=apart[one.row][1], second=apart[one.row][2])
        for one in expected.pairs
    ]
    for given in (SETS, [Candidates(**row) for row in SETS]):
        assert_same_choice(rm.select_pairs(given, 10), dataclasses.replace(expected, pairs=renamed))


def test_a_response_that_is_in_several_pairs_is_run_once(rm, monkeypatch):
    run = []
    gather = active.whitened_gradients
    monkeypatch.setattr(active, "whitened_gradients", lambda p, rows, *rest: run.append(rows) or gather(p, rows, *rest))
    rm.select_pairs(SETS, 3)
    assert [len(rows) for rows in run] == [12]


@pytest.mark.parametrize("chunk", [1, 7])
def test_a_choice_does_not_depend_on_how_the_pool_is_read(rm, monkeypatch, chunk):
    expected = rm.select_pairs(POOL, 8), rm.select_pairs(SETS, 8)
    monkeypatch.setattr(active, "CHUNK", chunk)
    monkeypatch.setattr(active, "ROWS_TOKENIZED", 2)
    assert_same_choice(rm.select_pairs(iter([PreferencePair(**pair) for pair in POOL]), 8), expected[0])
    assert_same_choice(rm.select_pairs(SETS, 8), expected[1])


def test_a_pool_is_read_as_it_is_scored_and_not_kept(rm, monkeypatch):
    monkeypatch.setattr(active, "CHUNK", 4)
    monkeypatch.setattr(active, "ROWS_TOKENIZED", 2)
    records, held = weakref.WeakSet(), []

    def read():
        for pair in tiny_pairs(60, seed=300):
            record = PreferencePair(**pair)
            records.add(record)
            yield record

    score = active.score_differences
    monkeypatch.setattr(active, "score_differences", lambda *given: held.append(len(records)) or score(*given))
    plan = active.SelectionPlan(3, shortlist=5)
    active.select_pairs(rm, rm.passes(), rm.fitted, read(), 60, plan)
    assert len(held) == 15
    assert max(held) <= 4  # those that are tokenized, and the one before


def test_what_a_shortlist_leaves_out_bounds_where_the_batch_may_differ(rm, monkeypatch):
    monkeypatch.setattr(active, "CHUNK", 7)
    whole = rm.select_pairs(POOL, 10)
    information = [pair.information for pair in rm.select_pairs(POOL, 30, strategy="uncertainty").pairs]
    found = rm.select_pairs(POOL, 10, shortlist=12)
    assert found.left_out == pytest.approx(sorted(information)[-13], rel=RELATIVE[torch.float32])
    as_good = sum(pair.information >= found.left_out for pair in found.pairs)
    assert 0 < as_good < 10
    assert rows_of(found)[:as_good] == rows_of(whole)[:as_good]


def test_what_is_much_is_sketched(rm, monkeypatch):
    exact = rm.select_pairs(POOL, 10)
    monkeypatch.setattr(active, "EXACT", 1000)
    sketched = rm.select_pairs(POOL, 10)
    assert 0 < sketched.sketch_error < 0.1
    assert sketched.pairs[0] == exact.pairs[0]
    told = [[pair.information for pair in one.pairs] for one in (sketched, exact)]
    np.testing.assert_allclose(*told, rtol=0.05)


@pytest.mark.parametrize(("strategy", "total"), [("information", 60), ("uncertainty", 30), ("random", 5)])
def test_progress_ends_at_its_total(rm, strategy, total):
    told = []
    rm.select_pairs(POOL, 5, strategy=strategy, progress=lambda *args: told.append(args))
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_pool_of_one(rm):
    assert rows_of(rm.select_pairs(POOL[:1], 1)) == [0]
    assert rows_of(rm.select_pairs([EQUAL], 1)) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be a whole number of at least 1, not 0"),
        ({"count": True}, "count must be a whole number of at least 1, not True"),
        ({"count": 2.0}, "count must be a whole number of at least 1, not 2.0"),
        ({"count": 31}, r"count is 31, and the pool has 30 pair\(s\)"),
        ({"count": 2, "strategy": "best"}, "strategy must be one of information, uncertainty, random, not 'best'"),
        ({"count": 2, "seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"count": 5, "shortlist": 4}, "shortlist must be a whole number of at least the count, 5, not 4"),
    ],
)
def test_what_cannot_be_asked_for_is_told_before_the_model_runs(rm, monkeypatch, options, message):
    monkeypatch.setattr(active, "score_differences", None)
    with pytest.raises(InputError, match=f"^{message}$"):
        rm.select_pairs(POOL, **options)


def test_bad_rows_are_told_before_the_model_runs(rm, monkeypatch):
    monkeypatch.setattr(active, "score_differences", None)
    with pytest.raises(InputError, match=r"^pairs, row 31: chosen must be a string"):
        rm.select_pairs([*POOL, {"prompt": "a", "chosen": 3, "rejected": "b"}], 2)


@pytest.mark.parametrize("strategy", ["information", "uncertainty", "random"])
def test_a_reward_that_is_nan_is_named_by_its_row(strategy):
    rm = fitted()
    pool = [{"prompt": "able", "chosen": "act", "rejected": "all " * i} for i in range(1, 6)]
    pool[2]["rejected"] = "art"
    with torch.no_grad():
        embeddings = rm.model.get_base_model().bert.embeddings.word_embeddings.weight
        embeddings[rm.tokenizer.convert_tokens_to_ids("art")] = torch.nan
    rm.posterior = rm.posterior
    with pytest.raises(InputError, match=r"^pairs, row 3: rejected: the model's reward is NaN or infinite"):
        rm.select_pairs(pool, 5, strategy=strategy)


def test_without_a_posterior_it_is_refused():
    rm = BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))
    with pytest.raises(InputError, match="there is no posterior"):
        rm.select_pairs(POOL, 1)
