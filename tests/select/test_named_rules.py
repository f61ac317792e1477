"""Every rule with a name: what holds for all of them, and names and descriptions."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rule_cases import JOINT, PROBABILITY_ERROR, known_candidates, rules
from whole_rows import whole_rows

from bayesrm_fast import InputError
from bayesrm_fast.select.choice import chosen
from bayesrm_fast.select.named_rules import RULES, description_of, rule_of, weighs_the_std
from bayesrm_fast.select.regularised import LogProbability, MeanSimilarity, Regularised
from bayesrm_fast.select.rules import (
    KnownCandidates,
    MeanReward,
    PenalisedReward,
    Rule,
    StochasticRule,
    UncertaintyWeighted,
    first_best,
)
from bayesrm_fast.select.stochastic import SoftBestOfN
from bayesrm_fast.text.records import Candidates

RULE = pytest.mark.parametrize(("name", "rule"), rules().items(), ids=list(RULES))


def tolerance(name):
    """Draws of the joint posterior depend on the order of the candidates; all else is arithmetic of float64."""
    return {"atol": PROBABILITY_ERROR * (4.0 if name == "least_regret" else 1.0) if name in JOINT else 1e-9, "rtol": 0}


@RULE
def test_scores_are_one_for_each_candidate_and_probabilities_sum_to_one(name, rule):
    for n in (1, 2, 7):
        scores = rule.scores(known_candidates(n))
        assert scores.shape == (n,)
        assert scores.isfinite().all()
        if isinstance(rule, StochasticRule):
            assert (scores >= 0).all()
            assert float(scores.sum()) == pytest.approx(1.0)


@RULE
def test_a_permutation_of_the_candidates_permutes_the_result(name, rule):
    known = known_candidates(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    permuted = rule.scores(known.at(order))
    torch.testing.assert_close(permuted, rule.scores(known)[order], **tolerance(name))


@RULE
@pytest.mark.parametrize("constant", [-30.0, 1000.0])
def test_what_a_prompt_adds_to_all_its_rewards_changes_nothing(name, rule, constant):
    known = known_candidates(9)
    joint = dataclasses.replace(known.joint, mean=known.joint.mean + constant)
    moved = dataclasses.replace(known, mean=known.mean + constant, members=known.members + constant, joint=joint)
    before, after = rule.scores(known), rule.scores(moved)
    if not isinstance(rule, StochasticRule):
        before, after = before - before[0], after - after[0]
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


@RULE
def test_among_equal_candidates_none_is_better_than_the_first(name, rule):
    known = known_candidates(3).at(torch.tensor([1, 1, 1]))
    scores = rule.scores(known)
    if isinstance(rule, StochasticRule):
        assert (scores <= scores[0] + tolerance(name)["atol"]).all()
    else:
        assert first_best(scores) == 0


@RULE
def test_a_single_candidate_is_chosen(name, rule):
    best = chosen(rule, Candidates("a", ["able"]), known_candidates(1), *whole_rows(1))
    assert (best.index, best.response) == (0, "able")


@RULE
def test_a_reward_that_is_no_number_is_refused_by_its_row(name, rule):
    known = known_candidates(3)
    mean = known.mean.clone()
    mean[1] = torch.nan
    one = Candidates("a", ["able", "about", "act"], where="candidates, row 7")
    with pytest.raises(InputError, match="candidates, row 7: the reward of response 2 is nan"):
        chosen(rule, one, dataclasses.replace(known, mean=mean), *whole_rows(3))


@RULE
def test_the_first_value_of_every_grid_chooses_as_if_the_rule_were_not_there(name, rule):
    for seed in range(5):
        known = known_candidates(7, seed)
        neutral = dataclasses.replace(rule, **{parameter: values[0] for parameter, values in rule.grids.items()})
        reward = getattr(rule, "reward", MeanReward())
        if rule.grids and name not in ("joint_soft", "expected_pessimism"):
            assert first_best(neutral.scores(known)) == first_best(reward.scores(known))


@RULE
def test_a_description_makes_an_equal_rule(name, rule):
    described = description_of(rule)
    assert rule_of(json.dumps(described)) == rule_of(described) == rule
    assert rule_of(rule) is rule


def test_descriptions_nest():
    rule = Regularised(
        LogProbability(), 0.25, Regularised(MeanSimilarity(), 2.0, PenalisedReward("variance", 3.0)), True
    )
    assert rule_of(json.dumps(description_of(rule))) == rule
    assert rule_of({"rule": "soft", "temperature": 2, "reward": {"rule": "mean"}}) == SoftBestOfN(
        2, reward=MeanReward()
    )


@RULE
def test_one_value_has_one_description_in_jsons_types(name, rule):
    whole = {key: int(value) for key, value in vars(rule).items() if type(value) is float and value == int(value)}
    numbers = {key: torch.tensor(value) for key, value in whole.items()}
    told = json.dumps(description_of(rule))
    assert json.dumps(description_of(dataclasses.replace(rule, **whole))) == told
    assert json.dumps(description_of(dataclasses.replace(rule, **numbers))) == told


def test_a_rule_without_a_name_cannot_be_described():
    class Own(Rule):
        def scores(self, known):
            return known.mean

    with pytest.raises(InputError, match="Own has no name"):
        description_of(Own())
    with pytest.raises(InputError, match="Own has no name"):
        description_of(SoftBestOfN(reward=Own()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sdt", "rule must be one of mean, std"),
        (None, "rule must be one of"),
        (["std"], "a description or a Rule, not list"),
        (PenalisedReward, "a description or a Rule, not "),
        ({}, "must name itself"),
        ({"rule": "sdt"}, "rule must be one of"),
        ({"rule": ["std"]}, "rule must be one of"),
        ({"rule": "std", "temperature": 1}, "rule std takes k, not temperature"),
        ({"rule": "std", "penalty": "variance"}, "rule std takes k, not penalty"),
        ({"rule": "mean", "k": 1}, "rule mean takes no parameters, not k"),
        ({"rule": "soft", "reward": {"rule": "thompson"}}, "which draws"),
        ({"rule": "soft", "reward": "std"}, "reward must be a rule"),
        ({"rule": "rbon_kl", "proximity": {"rule": "mbr"}}, "not proximity"),
        ({"rule": "regularised", "beta": "1"}, "beta must be"),
        ({"rule": "regularised", "standardised": 1}, "standardised must be true or false"),
        ({"rule": "soft", "temperature": True}, "temperature must be"),
        ({"rule": "thompson", "seed": 0.5}, "seed must be"),
        ({"rule": "top", "m": 0.5}, "m must be"),
        ({"rule": "subset", "n": 2.5}, "n must be"),
        ('{"rule": "std", "k": NaN}', "no number of JSON"),
        ('{"rule": "std", "k": 1, "k": 2}', "stands there twice"),
        ("{", "not valid JSON"),
    ],
)
def test_what_is_no_rule_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        rule_of(given)


def test_a_rule_that_is_nested_too_deeply_is_refused():
    given = {"rule": "mean"}
    for _ in range(5000):
        given = {"rule": "soft", "reward": given}
    with pytest.raises(InputError, match="nested too deeply"):
        rule_of(given)


@pytest.mark.parametrize("k", [-1.0, float("nan"), float("inf"), "1", True])
@RULE
def test_weights_that_are_none_are_refused_whatever_the_rule(name, rule, k):
    with pytest.raises(InputError, match="k must be"):
        rule_of(name, k)


def test_k_is_that_of_the_rule_or_of_what_it_goes_by():
    assert rule_of("std", 3.0) == PenalisedReward("std", 3.0)
    assert rule_of("soft", 3.0) == SoftBestOfN(reward=PenalisedReward("std", 3.0))
    assert rule_of("rbon_wd", 3.0) == Regularised(MeanSimilarity(), reward=PenalisedReward("std", 3.0))
    assert rule_of("uncertainty") == UncertaintyWeighted(0.5)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (PenalisedReward(), "k goes with a rule's name"),
        ({"rule": "soft"}, "k goes with a rule's name"),
        (' {"rule": "std", "k": 2}', "k goes with a rule's name"),
        ("entropic", "rule entropic has no weight k"),
        ("thompson", "rule thompson has no weight k"),
    ],
)
def test_a_k_that_would_not_be_read_is_refused(rule, message):
    with pytest.raises(InputError, match=message):
        rule_of(rule, 1.0)


@pytest.mark.parametrize("name", ["most_probably_best", "thompson", "joint_soft"])
def test_more_draws_than_anyone_waits_for_are_refused(name):
    with pytest.raises(InputError, match="draws must be a whole number from 1 to 1048576"):
        rule_of({"rule": name, "draws": 10**12})


def test_only_a_weight_of_the_std_is_tuned():
    assert weighs_the_std("std")
    assert weighs_the_std("soft")
    assert not any(map(weighs_the_std, ("variance", "uncertainty", PenalisedReward(), None)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda ps: sum(ps) > 0), st.integers(0, 99))
def test_what_has_no_probability_is_never_drawn(weights, seed):
    probabilities = torch.tensor(weights, dtype=torch.float64)
    rule = SoftBestOfN(seed=seed)
    assert probabilities[rule.drawn(probabilities / probabilities.sum(), "a")] > 0


def test_a_draw_is_of_its_probabilities_and_the_same_for_the_same_candidates():
    probabilities = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    rule = SoftBestOfN()
    drawn = [rule.drawn(probabilities, str(i)) for i in range(4000)]
    assert drawn == [rule.drawn(probabilities, str(i)) for i in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / 4000
    assert ((shares - probabilities).abs() < 5 * (0.25 / 4000) ** 0.5).all()
    assert drawn != [SoftBestOfN(seed=1).drawn(probabilities, str(i)) for i in range(4000)]


def test_probabilities_that_are_none_are_refused():
    class Wrong(StochasticRule):
        seed = 0

        def scores(self, known):
            return known.mean - 10

    known = KnownCandidates(torch.zeros(2))
    with pytest.raises(InputError, match="Wrong gave the candidates of the prompt no probabilities"):
        chosen(Wrong(), Candidates("a", ["able", "act"]), known, *whole_rows(2))
