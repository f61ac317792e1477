"""Answers of a server, and what is none."""

import pytest

from bayesrm_fast.serve.reading import ServerError, best_of, means_of, names_of, scores_of


def reward(**other):
    return {"mean": 1.0, "std": 0.5, "tokens": 3, "truncated": False, "baseline": None} | other


def test_rows_come_in_their_order_whatever_answer_they_are_in():
    answers = [{"rewards": [reward(), reward(mean=3.0, tokens=5)]}, {"rewards": [reward(mean=2.0, truncated=True)]}]
    found = scores_of([[0, 2], [1]], answers)
    assert found.mean.tolist() == means_of([[0, 2], [1]], answers).tolist() == [1.0, 2.0, 3.0]
    assert found.variance.tolist() == [0.25] * 3
    assert found.truncated.tolist() == [False, True, False]
    assert found.tokens.tolist() == [3, 3, 5]
    assert found.baseline is None
    relative = {"rewards": [reward(baseline=7.0)]}
    assert scores_of([[0]], [relative]).baseline.tolist() == [7.0]


def test_means_need_no_std():
    assert means_of([[0]], [{"rewards": [reward(std=None)]}]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"rewards": [reward(mean=float("nan")), reward()]}, r"rewards\[0\]: mean must be a finite number"),
        ({"rewards": [reward(), reward(mean=None)]}, r"rewards\[1\]: mean must be a finite number"),
        ({"rewards": [reward(), reward(std=None)]}, r"rewards\[1\]: std must be"),
        ({"rewards": [reward(), reward(tokens=None)]}, r"rewards\[1\]: tokens must be"),
        ({"rewards": [reward()]}, "rewards must be a list of 2"),
        ({"rewards": [reward()] * 3}, "rewards must be a list of 2"),
        ({"rewards": [reward(), {"mean": 1.0, "tokens": 3, "truncated": False}]}, r"rewards\[1\] lacks 'baseline'"),
        ({"rewards": [reward(), 5]}, "not iterable"),
        ({"something": "else"}, "rewards must be a list"),
    ],
)
def test_an_answer_that_is_none_gives_no_numbers(answer, message):
    with pytest.raises(ServerError, match=f"{message}.*; is this a server of bayesrm"):
        scores_of([[0, 1]], [answer])


@pytest.mark.parametrize("index", [2, -1, None, 0.0])
def test_a_choice_of_no_candidate_is_none(index):
    candidates = [reward(score=1.0), reward(score=2.0, std=None)]
    found = best_of({"index": 1, "candidates": candidates}, ["b", "c"])
    assert (found.response, found.variances_computed, found.tokens.tolist()) == ("c", 1, [3, 3])
    with pytest.raises(ServerError, match="index must be that of a response"):
        best_of({"index": index, "candidates": candidates}, ["b", "c"])


def test_names_are_those_of_the_models_that_are_listed():
    assert names_of({"data": [{"id": "rm", "object": "model"}]}) == ["rm"]
    with pytest.raises(ServerError, match=r"data\[0\] lacks 'id'"):
        names_of({"data": [{"object": "model"}]})
