"""Rules: their formulas, ties, and what they need."""

import pytest
import torch
from rule_cases import known_candidates, rules

from bayesrm_fast import InputError
from bayesrm_fast.select.named_rules import RULES, rule_of
from bayesrm_fast.select.rules import KnownCandidates, Need, PenalisedReward, first_best

MEAN, VARIANCE = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 9.0])
BAD_WEIGHTS = (-1.0, float("nan"), float("inf"))
MEMBERS = torch.tensor([[0.0, 1.0, 6.0], [2.0, 3.0, 0.0]])
KNOWN = KnownCandidates(MEAN, VARIANCE, members=MEMBERS)


@pytest.mark.parametrize(
    ("rule", "k", "scores"),
    [
        ("mean", None, [1, 2, 3]),
        ("std", 0.5, [1, 1.5, 1.5]),
        ("variance", 0.5, [1, 1.5, -1.5]),
        ("std", 0.0, [1, 2, 3]),
        ("worst", None, [0, 1, 0]),
        ("uncertainty", 0.5, [0.5, 1.5, -1.5]),
        ({"rule": "entropic", "b": 1}, None, [1, 1.5, -1.5]),
    ],
)
def test_named_rules_are_their_formulas(rule, k, scores):
    assert rule_of(rule, k).scores(KNOWN).tolist() == scores


@pytest.mark.parametrize(("name", "rule"), rules().items())
def test_a_rule_reads_no_more_than_it_needs(name, rule):
    everything = known_candidates(4)
    known = KnownCandidates(everything.mean, **{need: getattr(everything, need) for need in rule.needs})
    assert torch.equal(rule.scores(known), rule.scores(everything))


def test_needs_are_the_names_of_what_can_be_known():
    assert {str(need) for need in Need} == set(vars(KNOWN)) - {"mean"}


@pytest.mark.parametrize("penalty", ["std", "variance"])
def test_a_ceiling_is_never_below_a_score(penalty):
    rule = rule_of(penalty, 2.0)
    for share in (0.0, 0.5, 1.0):
        assert (rule.ceilings(MEAN, share * VARIANCE) >= rule.scores(KNOWN)).all()


def test_a_rule_that_does_not_know_the_variances_has_no_ceilings():
    for name in ("mean", "worst", "uncertainty"):
        assert rule_of(name).ceilings(MEAN, VARIANCE) is None


def test_a_rule_itself_is_taken_as_it_is():
    rule = PenalisedReward("variance", 3.0)
    assert rule_of(rule) is rule
    with pytest.raises(InputError, match="penalty must be"):
        PenalisedReward("mean")


def test_where_no_score_is_known_the_first_is_the_best():
    assert first_best(torch.full((3,), torch.nan)) == 0


def test_of_equal_scores_the_lower_index_wins():
    assert first_best(torch.tensor([1.0, 1.5, 1.5])) == 1
    assert first_best(torch.tensor([float("nan"), 1.0, 1.0])) == 1


@pytest.mark.parametrize(("rule", "k"), [("sdt", 1.0), *((r, k) for r in RULES for k in BAD_WEIGHTS)])
def test_unknown_rules_are_refused(rule, k):
    with pytest.raises(InputError, match=r"rule must be|k must be"):
        rule_of(rule, k)
