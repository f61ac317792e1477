"""Rules that choose as hard as is worth it."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.hedged_rules import hedged
from bayesrm_fast.select.hedging import HedgingPool, value_of
from bayesrm_fast.select.laws import BestOfNLaw
from bayesrm_fast.select.rules import MeanReward
from bayesrm_fast.select.stochastic import BestOfPoisson, BestOfSubset, SoftBestOfN

SCORES = torch.linspace(0, 1, 33, dtype=torch.float64)
HUMP = [HedgingPool(SCORES, -((SCORES - 0.75) ** 2))]
"""Gold that falls where the proxy is largest."""


@pytest.fixture(scope="module")
def rm():
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    return model.fit(tiny_pairs(), rank=4, prior_precision=1.0)


def test_an_n_is_the_better_whole_number_beside_the_root():
    found = hedged(BestOfSubset(), HUMP, 0.0)
    values = {n: value_of(BestOfNLaw(n), HUMP, 0.0)[0] for n in range(1, 34)}
    assert found.found.is_interior
    assert found.rule.n == max(values, key=values.get)


def test_what_the_rule_is_made_of_stays():
    for rule, name in ((SoftBestOfN(reward=MeanReward(), seed=3), "temperature"), (BestOfPoisson(seed=3), "theta")):
        found = hedged(rule, HUMP, 0.0)
        assert (found.rule.reward, found.rule.seed) == (rule.reward, 3)
        assert getattr(found.rule, name) == found.found.parameter


def rows(rm, sign):
    made = []
    for i in range(3):
        prompt, responses = words(3, i), [words(2 + j % 7, 50 * i + j) for j in range(12)]
        gold = sign * rm.rewards([prompt] * 12, responses)
        made.append({"prompt": prompt, "responses": responses, "gold": gold.tolist()})
    return made


@pytest.mark.parametrize("rule", ["subset", "soft", "poisson"])
def test_a_gold_that_rises_with_the_reward_has_nothing_to_hedge_and_one_that_falls_everything(rm, rule):
    hard, soft = (rm.hedge(rule, rows(rm, sign), k=0).found for sign in (1, -1))
    # Of what is equal but for rounding it is the weakest.
    assert dict(hard.curve)[hard.parameter] == pytest.approx(hard.curve[-1][1], rel=1e-9)
    assert soft.parameter == soft.curve[0][0]
    assert not soft.is_interior


def test_a_posterior_hedges_without_gold_where_there_is_aversion(rm):
    candidates = [{key: row[key] for key in ("prompt", "responses")} for row in rows(rm, 1)]
    bold, averse = (rm.hedge("soft", candidates, by="posterior", aversion=a, k=0).found for a in (0.0, 50.0))
    assert dict(bold.curve)[bold.parameter] == pytest.approx(bold.curve[-1][1], rel=1e-9)
    assert averse.parameter > bold.parameter  # a higher temperature is nearer to the base


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("top", {}, "TopShare has no strength to hedge by"),
        ("std", {}, "PenalisedReward has no strength"),
        ("soft", {"by": "gould"}, "by must be gold or posterior"),
        ("soft", {"aversion": -1.0}, "aversion must be"),
        ("soft", {}, "candidates, row 1 has no gold"),
        ({"rule": "soft", "reward": {"rule": "mbr"}}, {"by": "posterior"}, "needs similarities"),
    ],
)
def test_what_cannot_be_hedged_is_told(rm, rule, options, message):
    candidates = [{"prompt": "a", "responses": ["able", "act"], **({"gold": [0, 1]} if "aversion" in options else {})}]
    with pytest.raises(InputError, match=message):
        rm.hedge(rule, candidates, **options)
