"""k comes from data, and is 0 where data does not speak for it; so do the parameters of every rule."""

import dataclasses
import itertools
import math

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.posterior.files import load_posterior, save_posterior
from bayesrm_fast.select.regularised import LogProbability, Regularised
from bayesrm_fast.select.rules import KnownCandidates, MeanReward, PenalisedReward, Rule, StochasticRule
from bayesrm_fast.select.stochastic import SoftBestOfN, TopShare
from bayesrm_fast.select.tuning import (
    SUBSETS,
    WEIGHTS,
    JudgedPrompt,
    digest_of,
    gain_by_folds,
    grid_of,
    report,
    tuned,
    tuned_by_gold,
    tuned_by_pairs,
)
from bayesrm_fast.text.records import Candidates


def prompts(count, sign, noise=0.1, n=32, seed=0):
    """Gold is what the mean says, less (sign > 0) or more (sign < 0) of the std."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        mean, std = torch.randn(n, generator=generator), torch.rand(n, generator=generator) * 2
        gold = mean - sign * std + noise * torch.randn(n, generator=generator)
        made.append(JudgedPrompt(KnownCandidates(mean, std**2), gold, f"{number}"))
    return made


def test_the_k_that_gold_speaks_for_is_found():
    chosen = tuned_by_gold(prompts(40, sign=1.0))
    assert chosen.k == 1.0
    assert chosen.gain > 2 * chosen.standard_error > 0
    assert (chosen.judged, chosen.prompts) == ("responses", 40)
    assert [k for k, _ in chosen.curve] == list(WEIGHTS)


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_where_a_penalty_harms_or_does_nothing_k_is_zero(sign):
    chosen = tuned_by_gold(prompts(40, sign))
    assert chosen.k == 0.0
    assert not chosen.gain > 2 * chosen.standard_error


def test_a_gain_within_one_standard_error_is_none():
    assert tuned_by_gold(prompts(1, sign=1.0)).k == 0.0  # of one prompt nobody knows the error


def test_of_a_single_prompt_nobody_knows_the_error(tmp_path):
    assert math.isnan(tuned_by_gold(prompts(1, sign=1.0)).standard_error)


def test_prompts_whose_gold_is_all_the_same_say_nothing():
    same = JudgedPrompt(KnownCandidates(torch.randn(4), torch.rand(4)), torch.ones(4), "same")
    assert tuned_by_gold([*prompts(20, 1.0), same]) == tuned_by_gold(prompts(20, 1.0))
    with pytest.raises(InputError, match="different gold"):
        tuned_by_gold([same])


def pairs_of(sign, count=2000):
    generator = torch.Generator().manual_seed(1)
    mean, std = torch.randn(count, generator=generator), torch.randn(count, generator=generator)
    prefers = torch.rand(count, generator=generator) < torch.sigmoid(3 * (mean - sign * std))
    flip = torch.where(prefers, 1.0, -1.0)
    return flip * mean, flip * std


def test_pairs_that_prefer_certainty_give_a_weight_and_others_none():
    assert tuned_by_pairs(*pairs_of(1.0), prompts=7).k == 1.0
    assert tuned_by_pairs(*pairs_of(2.0), prompts=7).k == 2.0
    chosen = tuned_by_pairs(*pairs_of(-1.0), prompts=7)
    assert (chosen.k, chosen.judged, chosen.prompts) == (0.0, "pairs", 7)
    assert math.isnan(chosen.gain)


@pytest.fixture(scope="module")
def rm():
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    return model.fit(tiny_pairs(), rank=4, prior_precision=1.0)


def judged(rm, sign):
    rows = []
    for i in range(12):
        prompt, responses = words(3, i), [words(2 + j % 7, 50 * i + j) for j in range(10)]
        scores = rm.score([prompt] * 10, responses, relative_to="prompt")
        rows.append({"prompt": prompt, "responses": responses, "gold": (scores.mean - sign * scores.std).tolist()})
    return rows


def test_a_tuned_penalty_is_used_saved_and_loaded(rm, adapter_folder, tmp_path):
    loaded = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu").fit(tiny_pairs(), rank=4)
    with pytest.raises(InputError, match="call tune_penalty first"):
        loaded.best_of_n("above", ["able", "about"], k="tuned")
    rows = judged(loaded, 1.0)
    chosen = loaded.tune_penalty(rows)
    assert chosen.k > 0
    loaded.save_pretrained(tmp_path / "rm")
    again = BayesianRewardModel.from_pretrained(tmp_path / "rm", device="cpu")
    assert again.posterior.penalty == chosen
    row = rows[0]
    tuned = again.best_of_n(row["prompt"], row["responses"], k="tuned")
    torch.testing.assert_close(tuned.scores, loaded.best_of_n(row["prompt"], row["responses"], k=chosen.k).scores)
    with pytest.raises(InputError, match="relative=True"):
        again.best_of_n("above", ["able", "about"], k="tuned", relative=False)
    for rule in ("variance", PenalisedReward("std", 2.0)):
        with pytest.raises(InputError, match="rule='std'"):
            again.best_of_n("above", ["able", "about"], rule, k="tuned")
    with pytest.raises(InputError, match="a number or 'tuned'"):
        again.best_of_n("above", ["able", "about"], k="much")


def test_another_prior_precision_needs_another_tuning(rm):
    rows = judged(rm, 1.0)
    for gold in ([True, False] * 5, [1e9 + i for i in range(10)]):
        rm.tune_penalty([row | {"gold": gold} for row in rows])
    assert rm.posterior.to("cpu").penalty == rm.posterior.penalty
    before = rm.posterior.prior_precision
    rm.posterior.prior_precision = before
    assert rm.posterior.penalty is not None
    rm.posterior.prior_precision = 50.0
    assert rm.posterior.penalty is None
    rm.posterior.prior_precision = before


def test_a_penalty_that_one_prompt_chose_is_saved(rm, tmp_path):
    rm.tune_penalty([{"prompt": "a", "responses": ["able", "act"], "gold": [1.0, 2.0]}])
    save_posterior(rm.posterior, tmp_path)
    again = load_posterior(tmp_path).penalty
    assert (again.k, again.prompts) == (0.0, 1)
    assert math.isnan(again.standard_error)


def test_rows_that_hold_gold_are_tuned_by_it_whatever_else_they_hold(rm):
    rows = [row | {"chosen": "a", "rejected": "b"} for row in judged(rm, 1.0)]
    assert rm.tune_penalty(rows).judged == "responses"


def test_pairs_tune_where_there_is_nothing_better_and_it_is_told(rm):
    pairs = []
    for row in judged(rm, 1.0):
        order = sorted(range(10), key=lambda i: -row["gold"][i])
        responses = row["responses"]
        pairs += [
            {"prompt": row["prompt"], "chosen": responses[order[i]], "rejected": responses[order[-1 - i]]}
            for i in range(4)
            if responses[order[i]] != responses[order[-1 - i]]
        ]
    with pytest.warns(UserWarning, match="judged responses say more"):
        chosen = rm.tune_penalty(pairs)
    assert chosen.judged == "pairs"
    assert math.isnan(chosen.standard_error)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows"),
        ([{"prompt": "a", "responses": ["able", "act"]}], "judged, row 1 has no gold"),
        ([{"prompt": "a", "responses": ["able", "act"], "gold": [1]}], "judged, row 1: gold must be 2 finite numbers"),
        ([{"prompt": "a", "responses": ["able"], "gold": [1]}], "no prompt has several responses"),
        ([{"prompt": "a", "responses": ["able", "act"], "gold": [1, 1]}], "different gold"),
        (tiny_pairs(3), "three or more different responses"),
    ],
)
def test_what_cannot_be_tuned_by_is_named(rm, rows, message):
    with pytest.raises(InputError, match=message):
        rm.tune_penalty(rows)


def known(n, seed, **more):
    generator = torch.Generator().manual_seed(seed)
    return KnownCandidates(torch.randn(n, generator=generator), torch.rand(n, generator=generator), **more)


@pytest.mark.parametrize("rule", [MeanReward(), SoftBestOfN(0.7, reward=MeanReward()), TopShare(3.0)], ids=repr)
def test_the_gold_of_a_rule_is_that_of_its_choices(rule):
    prompt = JudgedPrompt(known(8, 1), torch.randn(8, generator=torch.Generator().manual_seed(2)), "a")
    scores = rule.scores(prompt.known)
    is_drawn = isinstance(rule, StochasticRule)
    expected = scores.double() @ prompt.gold.double() if is_drawn else prompt.gold[scores.argmax()]
    assert prompt.curve(rule)[-1] == pytest.approx(float(expected))
    assert len(prompt.curve(rule)) == 3  # 2, 4 and 8


def test_among_two_a_drawing_rule_is_worth_its_mean_over_all_pairs():
    prompt = JudgedPrompt(known(6, 3), torch.arange(6.0), "a")
    rule = SoftBestOfN(0.5, reward=MeanReward())
    pairs = [torch.tensor(pair) for pair in itertools.combinations(range(6), 2)]
    golds = torch.stack([rule.scores(prompt.known.at(pair)) @ prompt.gold[pair].double() for pair in pairs])
    assert prompt.curve(rule)[0] == pytest.approx(float(golds.mean()), abs=4 * float(golds.std()) / SUBSETS**0.5)


def judged_prompts(count, gold_of, **more):
    made = []
    for seed in range(count):
        one = known(16, seed, **more)
        made.append(JudgedPrompt(one, gold_of(one), f"{seed}"))
    return made


def test_two_parameters_are_tuned_together_and_the_indifferent_interval_holds_the_choice():
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for seed in range(40):
        one = known(16, seed, log_probabilities=torch.randn(16, generator=generator))
        prompts.append(JudgedPrompt(one, one.mean - one.variance.sqrt() + one.log_probabilities, f"{seed}"))
    rule = Regularised(LogProbability())
    found = tuned(rule, grid_of(rule, ("beta", "reward.k")), prompts)
    assert found.parameters == {"beta": 1.0, "reward.k": 1.0}
    assert found.rule == Regularised(LogProbability(), 1.0, PenalisedReward("std", 1.0))
    assert found.gain > 5 * found.standard_error
    for name, (low, high) in found.indifferent.items():
        assert low <= found.parameters[name] <= high
    assert len(found.curve) == len(Regularised.grids["beta"]) * len(PenalisedReward.grids["k"])


def test_what_the_choosing_gains_is_measured_on_prompts_that_did_not_choose():
    """Where gold is noise the best of a grid gains on its own prompts, and nothing on others."""
    generator = torch.Generator().manual_seed(3)
    prompts = judged_prompts(60, lambda one: torch.randn(16, generator=generator))
    found = tuned(SoftBestOfN(reward=MeanReward()), {"temperature": SoftBestOfN.grids["temperature"]}, prompts)
    assert abs(found.gain) < 3 * found.standard_error


def test_what_the_choosing_gains_on_a_prompt_is_told_by_the_others():
    """Each of three is told by two whose best is its worst."""
    gold = torch.tensor([[0.0, -1.0, 2.0, 2.0], [0.0, 2.0, -1.0, 2.0], [0.0, 2.0, 2.0, -1.0]], dtype=torch.float64)
    assert gain_by_folds(gold) == (-1.0, 0.0)


def test_more_rows_of_a_prompt_are_no_more_prompts():
    once = prompts(10, 1.0, noise=2.0)
    rule, grid = PenalisedReward(), {"k": WEIGHTS}
    assert tuned(rule, grid, once * 4) == tuned(rule, grid, once)
    assert report(rule, once * 4) == report(rule, once)
    halves = [dataclasses.replace(one, digest=f"{int(one.digest) // 2}") for one in once]
    assert (tuned(rule, grid, halves).prompts, report(rule, halves).prompts) == (5, 5)


@pytest.mark.parametrize(
    "again",
    ["  able\nabout ", [{"role": "user", "content": "able about"}], [{"content": " able about", "role": "user"}]],
)
def test_a_prompt_is_known_again_in_another_form(again):
    assert digest_of(Candidates(again, ["a"])) == digest_of(Candidates("able about", ["a"]))
    for other in ("ableabout", "Able about", [{"role": "system", "content": "able about"}]):
        assert digest_of(Candidates(other, ["a"])) != digest_of(Candidates(again, ["a"]))


class Own(Rule):
    """Of a caller: not a dataclass."""

    grids = {"k": (0.0, 1.0)}  # noqa: RUF012

    def scores(self, known):
        return known.mean


@pytest.mark.parametrize(
    "values", [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]).numpy(), [0, 1]], ids=["torch", "numpy", "list"]
)
def test_values_to_choose_from_are_numbers_in_any_container(values):
    assert grid_of(PenalisedReward(), {"k": values}) == {"k": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("rule", "parameters", "message"),
    [
        (MeanReward(), None, "MeanReward has no parameter to tune"),
        (SoftBestOfN(), ("theta",), "SoftBestOfN has no values to choose theta from"),
        (SoftBestOfN(), ("reward.b",), "no values to choose"),
        (SoftBestOfN(), ("reward.k.k",), "no values to choose"),
        (SoftBestOfN(), {"temperature": ()}, "no values to choose temperature from"),
        (SoftBestOfN(), {"heat": (1.0,)}, "SoftBestOfN has no parameter 'heat'"),
        (SoftBestOfN(), "temperature", "parameters must be a list of names, or values by name, not 'temperature'"),
        (SoftBestOfN(), (1,), "no values to choose 1 from"),
        (SoftBestOfN(), {1: (1.0,)}, "SoftBestOfN has no parameter '1'"),
        (SoftBestOfN(), {"temperature": 1.0}, "temperature from must be a list of numbers, not 1.0"),
        (SoftBestOfN(), {"temperature": iter((1.0,))}, "temperature from must be a list of numbers"),
        (SoftBestOfN(), {"reward": (MeanReward(),)}, "reward from must be a list of numbers"),
        (Own(), None, "Own has no parameter 'k'"),
        (SoftBestOfN(), {"temperature": (-1.0,)}, "temperature must be"),
        (SoftBestOfN(), {"temperature": (1.0, float("nan"))}, "temperature must be"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_the_model_runs(rm, rule, parameters, message, monkeypatch):
    monkeypatch.setattr(type(rm.encoder), "encode", None)
    with pytest.raises(InputError, match=message):
        rm.tune(rule, [{"prompt": "a", "responses": ["b", "c"], "gold": [0, 1]}], parameters)


def test_a_rule_is_tuned_and_reported_on_other_prompts(rm):
    rows = judged(rm, 1.0)
    found = rm.tune("std", rows[:8])
    assert found.rule == PenalisedReward("std", rm.tune_penalty(rows[:8]).k)
    told = rm.report(found, rows[8:])
    assert told == rm.report(found.rule, rows[8:]) == rm.report("std", rows[8:], k=found.parameters["k"])
    assert (told.sizes, told.prompts) == ([2, 4, 8, 10], 4)
    assert len(told.gold) == len(told.gold_by_mean) == 4
    with pytest.raises(InputError, match=r"was tuned on judged, row 1, judged, row 2.*: report on other prompts"):
        rm.report(found, rows)


def test_a_report_needs_what_the_rule_needs(rm):
    rows = [{"prompt": "a", "responses": ["b", "c"], "gold": [0, 1]}]
    with pytest.raises(InputError, match="needs similarities, which judged, row 1 does not have"):
        rm.report("mbr", rows)
    told = rm.report("mbr", [rows[0] | {"similarities": [[1, 0.5], [0.5, 1]]}])
    assert told.gold == [0.0]
    assert math.isnan(told.standard_error)


@pytest.mark.parametrize("rule", ["thompson", "joint_soft", "expected_pessimism", "poisson", "variance"])
def test_rules_of_every_kind_are_reported(rm, rule):
    assert len(rm.report(rule, judged(rm, 1.0)[:2]).gold) == 4
