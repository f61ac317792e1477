"""Rewards of benchmark rows, and the variances of their differences."""

import pytest
import torch
from tiny import words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.evaluate.rows import benchmark_rows
from bayesrm_fast.evaluate.scoring import rewardbench, score_rows, tokenize


@pytest.fixture(scope="module")
def rm(model_folder):
    return BayesianRewardModel.from_pretrained(model_folder, device="cpu")


def pairs(count=6, subset="donotanswer"):
    return [
        {"id": i, "subset": subset, "prompt": words(3, i), "chosen": words(4, 70 + i), "rejected": words(5, 90 + i)}
        for i in range(count)
    ]


def scored(rm, rows):
    found = benchmark_rows(rows).rows
    return score_rows(rm, found, tokenize(rm, found))


def test_pairs_have_both_rewards_and_the_variance_of_their_difference(rm):
    rows = pairs()
    rows[3]["rejected"] = rows[3]["chosen"]
    expected = rm.score_pairs(rows)
    rewards = [
        rm.rewards([row["prompt"] for row in rows], [row[side] for row in rows]) for side in ("chosen", "rejected")
    ]
    for i, one in enumerate(scored(rm, rows)):
        assert one.scores == pytest.approx([float(side[i]) for side in rewards], rel=1e-4, abs=1e-5)
        assert one.scores[0] - one.scores[1] == pytest.approx(float(expected.mean[i]), rel=1e-4, abs=1e-5)
        variance = float(expected.variance[i])
        assert one.difference_variance == [
            [0, pytest.approx(variance, rel=1e-4)],
            [pytest.approx(variance, rel=1e-4), 0],
        ]


def test_equal_responses_have_equal_rewards(rm):
    rows = pairs(2)
    rows[1]["rejected"] = rows[1]["chosen"]
    left, right = scored(rm, rows)[1].scores
    assert left == right


def test_every_difference_of_several_responses_has_its_variance(rm):
    rows = [
        {"id": "1", "subset": "Math", "prompt": "able", "chosen": ["act"], "rejected": ["age all", "art", "air all"]},
        {"id": "tied:1", "subset": "Ties", "prompt": "about", "chosen": ["act", "add"], "rejected": ["art again"]},
    ]
    for row, one in zip(rows, scored(rm, rows), strict=True):
        texts = row["chosen"] + row["rejected"]
        expected = rm.score([row["prompt"]] * len(texts), texts)
        assert one.scores == pytest.approx(expected.mean.tolist(), rel=1e-4, abs=1e-5)
        compared = [{"prompt": row["prompt"], "chosen": a, "rejected": b} for a in texts for b in texts]
        variance = rm.score_pairs(compared).variance.reshape(len(texts), -1).double()
        # A difference of float32 variances: its error is theirs.
        largest = float(expected.variance.max())
        found = torch.tensor(one.difference_variance, dtype=torch.float64)
        torch.testing.assert_close(found, variance, rtol=1e-3, atol=1e-5 * largest)


def test_a_reward_that_is_nan_is_named_by_its_row(rm):
    rows = [{**row, "chosen": [row["chosen"]], "rejected": [row["rejected"], "art"]} for row in pairs(3, "Focus")]
    for given in (pairs(3), rows):
        given[2] |= {"prompt": "arrive"}
        embeddings = rm.model.get_base_model().model.embed_tokens.weight
        place = rm.tokenizer.convert_tokens_to_ids("arrive")
        kept = embeddings[place].clone()
        posterior = rm.posterior
        try:
            with torch.no_grad():
                embeddings[place] = float("nan")
            rm.posterior = posterior
            with pytest.raises(InputError, match=r"rows, row 3: response \d: the model's reward is NaN or infinite"):
                scored(rm, given)
        finally:
            with torch.no_grad():
                embeddings[place] = kept
            rm.posterior = posterior


def test_a_model_is_reported_on(rm):
    rows = pairs(70) + pairs(5, "own")
    told = rewardbench(rm, rows, in_domain=["own"])
    scores = rm.score_pairs(rows)
    assert told.subsets["donotanswer"] == pytest.approx(float((scores.mean[:70] > 0).double().mean()))
    assert told.rows_of_subsets == {"donotanswer": 70, "own": 5}
    assert told.outside_of_sections == ["own"]
    nll = float(-scores.probability.double().log().mean())
    assert told.figures.probabilities["posterior"]["nll"] == pytest.approx(nll, rel=1e-4)
    assert told.domains.in_domain.rows == 5
    with pytest.raises(InputError, match="'other'"):
        rewardbench(rm, rows, in_domain=["other"])
