"""Rules, tuning on the other half, and gains: a wrong sign would show."""

import numpy as np
import pytest

from bayesrm_fast.select.rules import StochasticRule
from benchmarks.overoptimisation.__main__ import gains, summary
from benchmarks.overoptimisation.rules import Rule, crossed, curve, rules
from benchmarks.overoptimisation.steps import PRECISIONS

COUNT = len(PRECISIONS) + 1


def made_task(seed, sign=1.0, n=40):
    """What is wrong has a large relative std and, once in ten times, the largest mean; the absolute std is noise."""
    lot = np.random.default_rng(seed)
    gold = (lot.random(n) < 0.4).astype(float)
    relative = np.where(gold == 1, 0.5, 1.5) if sign > 0 else np.where(gold == 1, 1.5, 0.5)
    mean = lot.normal(size=n) + 3.0 * ((gold == 0) & (lot.random(n) < 0.1))
    task = {"gold": gold, "samples": np.arange(n), "mean": mean, "mbr": -relative, "best": -relative}
    task["caution"] = np.stack([relative] * 3)
    task["draws"] = mean + relative * lot.normal(size=(8, n))
    for number in range(1, 5):
        task[f"member{number}"] = mean + number + relative * lot.normal(size=n)
    for name in ("exact", "ggn", "kfac", "ekfac", "last layer", "prior", "margins", "virtual"):
        task[f"{name}/absolute"] = np.tile(1 + lot.random(n), (COUNT, 1))
        task[f"{name}/relative"] = np.tile(relative + 0.1 * lot.random(n), (COUNT, 1))
    return task


TASKS = [made_task(seed) for seed in range(24)]
NAMES = [[str(i) for i in range(24)]]
ROWS = {rule.name: rule for rule in rules()}


def gain(name, tasks=TASKS):
    found, _ = crossed(ROWS[name], tasks)
    base, _ = crossed(ROWS["MAP"], tasks)
    return float((found - base)[:, -1].mean())


def test_of_one_candidate_every_rule_picks_that_one_and_the_oracle_bounds_all():
    tasks = [made_task(seed, n=16) for seed in range(6)]
    oracle = np.stack([curve(None, task) for task in tasks])
    for rule in ROWS.values():
        found, _ = crossed(rule, tasks)
        np.testing.assert_allclose(found[:, 0], oracle[:, 0])
        # Gold of a rule that draws is an estimate over a few subsets, but for one candidate and for all.
        is_drawn = (
            any(isinstance(choice, StochasticRule) for choice in rule.choices.values()) or "HedgeTune" in rule.name
        )
        exact = [0, -1] if is_drawn else slice(None)
        assert (found[:, exact] <= oracle[:, exact] + 1e-12).all()


@pytest.mark.parametrize("structure", ["exact", "ggn", "kfac", "ekfac"])
def test_what_tells_right_from_wrong_gains_and_noise_does_not(structure):
    assert gain(f"{structure}, relative std, k = 1, λ by evidence") > 0
    for choice in ("std, k tuned", "std, k and λ tuned", "variance, k tuned"):
        assert gain(f"{structure}, relative {choice}") > 0.3
        assert abs(gain(f"{structure}, absolute {choice}")) < 0.3
    assert gain("ggn, relative std, k by tune_penalty") > 0.3
    assert gain("MBR") > 0.3
    assert gain("caution, λ tuned") > 0.3
    assert gain("caution, λ and tokens tuned") > 0.3
    assert gain("prior alone, relative, k tuned") > 0.3


def test_where_a_penalty_harms_the_tuned_one_is_none():
    tasks = [made_task(seed, sign=-1.0) for seed in range(24)]
    assert gain("exact, relative std, k = 1, λ by evidence", tasks) < -0.1
    assert gain("exact, relative std, k tuned", tasks) == 0.0
    assert gain("ggn, relative std, k by tune_penalty", tasks) == 0.0


def test_a_constant_that_a_member_adds_to_a_prompt_is_no_disagreement_of_relative_members():
    def scores(kind, constant):
        task = dict(TASKS[0], member1=TASKS[0]["member1"] + constant)
        return ROWS[f"ensemble of 3, {kind} worst"].choices[""](task)

    np.testing.assert_allclose(scores("relative", 100.0), scores("relative", 0.0), atol=1e-12)
    assert not np.allclose(scores("absolute", -100.0), scores("absolute", 0.0))


def test_thompson_sampling_is_the_mean_over_its_draws_and_not_the_choice_by_their_mean():
    task = TASKS[0]
    by_draw = np.stack([curve(lambda task, one=one: one, task) for one in task["draws"]])
    np.testing.assert_allclose(curve(lambda task: task["draws"], task), by_draw.mean(0))


def test_a_row_is_of_the_seeds_that_have_what_it_reads():
    without = [{name: array for name, array in task.items() if not name.startswith("member")} for task in TASKS]
    row = summary(ROWS["ensemble of 3, mean"], [without, TASKS])
    assert row["seeds"] == [1]
    assert gains(row, summary(ROWS["MAP"], [without, TASKS]), NAMES * 2) == gains(
        summary(ROWS["ensemble of 3, mean"], [TASKS]), summary(ROWS["MAP"], [TASKS]), NAMES
    )
    assert summary(ROWS["ensemble of 3, mean"], [without])["curves"] == []


def test_a_half_is_scored_by_what_the_other_half_chose():
    right = Rule("", {"gold": lambda task: task["gold"], "wrong": lambda task: -task["gold"]})
    tasks = [dict(task, gold=1 - task["gold"]) if i % 2 else task for i, task in enumerate(TASKS)]
    _, chosen = crossed(right, tasks)
    assert chosen == ["gold", "gold"]
    choices = {"a": lambda task: task["gold"] * task["odd"], "b": lambda task: task["gold"] * (1 - task["odd"])}
    odd_only = Rule("", choices)
    tasks = [dict(task, odd=np.float64(i % 2)) for i, task in enumerate(TASKS)]
    found, chosen = crossed(odd_only, tasks)
    assert chosen == ["a", "b"]  # the even half by the odd one's choice, which is of no use to it
    assert found[:, -1].mean() < 0.9


def test_a_task_in_several_seeds_counts_once_in_the_standard_error():
    row, base = summary(ROWS["MBR"], [TASKS]), summary(ROWS["MAP"], [TASKS])
    once = gains(row, base, NAMES)
    doubled = {name: {"seeds": [0, 1], "curves": one["curves"] * 2} for name, one in (("row", row), ("base", base))}
    twice = gains(doubled["row"], doubled["base"], NAMES * 2)
    assert twice["standard_error"] == pytest.approx(once["standard_error"])
    assert (twice["gain"], once["spread_of_seeds"]) == (pytest.approx(once["gain"]), None)
    assert twice["spread_of_seeds"] == 0.0
