"""What a prompt's candidates tell about a penalised choice."""

import math

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.posterior.base import PenaltyChoice
from bayesrm_fast.select import advice
from bayesrm_fast.select.advice import WinnerFrom, advise, text_groups, winners_over_k


def line_set(n, seed):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, generator=generator, dtype=torch.float64)
    return mean, torch.rand(n, generator=generator, dtype=torch.float64)


def winner_at(winners, k):
    return [winner for winner in winners if winner.k <= k][-1].index


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_winners_are_those_of_every_k_on_a_fine_grid(n, seed):
    mean, std = line_set(n, seed)
    winners = winners_over_k(mean, std)
    assert winners[0].k == 0.0
    assert all(a.k < b.k <= 8 for a, b in zip(winners, winners[1:], strict=False))
    seen = set()
    for k in torch.linspace(0, 8, 4001, dtype=torch.float64).tolist():
        seen.add(int((mean - k * std).argmax()))
        assert winner_at(winners, k) == int((mean - k * std).argmax())
    # The grid passes over none but those that win on less than a step of it.
    steps = zip(winners, [*winners[1:], WinnerFrom(8.0, -1)], strict=True)
    assert {one.index for one, after in steps if after.k - one.k > 0.002} <= seen


@pytest.mark.parametrize("seed", range(5))
def test_winners_do_not_depend_on_a_constant_the_order_or_the_scale(seed):
    mean, std = line_set(30, seed)
    winners = winners_over_k(mean, std)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert [int(order[w.index]) for w in winners_over_k(mean[order], std[order])] == [w.index for w in winners]
    for other in (winners_over_k(mean + 5, std), winners_over_k(3 * mean, 3 * std)):
        assert [w.index for w in other] == [w.index for w in winners]
        assert [w.k for w in other] == pytest.approx([w.k for w in winners], rel=1e-12)


@pytest.mark.parametrize(
    ("mean", "std", "winners"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [(0.0, 0)]),
        ([1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [(0.0, 1)]),
        ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [(0.0, 2), (1.0, 0)]),  # all three tie at k = 1
        ([2.0, 0.0], [1.0, 0.0], [(0.0, 0), (2.0, 1)]),
        ([9.0, 0.0], [1.0, 0.0], [(0.0, 0)]),
        ([1.0, 2.0], [1.0, 1.0], [(0.0, 1)]),
    ],
)
def test_ties(mean, std, winners):
    assert winners_over_k(torch.tensor(mean), torch.tensor(std)) == [WinnerFrom(*one) for one in winners]


def advice_on(mean, std, tokens=None, penalty=None):
    return advise(torch.tensor(mean), torch.tensor(std), tokens or [[i] for i in range(len(mean))], penalty)


def test_the_std_is_set_beside_the_spread_of_the_means():
    told = advice_on([-1.0, 0.0, 1.0], [1.0, 2.0, 3.0])
    assert told.spread_of_means == pytest.approx(math.sqrt(2 / 3))
    assert told.typical_std == pytest.approx(math.sqrt(14 / 3))
    assert told.std_over_spread == pytest.approx(math.sqrt(7))
    assert "2.6 times that" in str(told)
    assert "response 2 wins; from k = 1 response 0." in str(told)


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        ([0.0], [0.0], "one candidate"),
        ([-1.0, 1.0], [0.5, 0.5], "Two candidates"),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], "All 3 candidates have the same reward"),
    ],
)
def test_where_there_is_nothing_to_choose_it_is_said(mean, std, sentence):
    told = advice_on(mean, std)
    assert sentence in str(told)
    assert len(told.winners) == 1
    assert math.isnan(told.std_over_spread) == (max(mean) == min(mean))
    assert bool(told.warnings) == (len(mean) < 3)


@pytest.mark.parametrize(
    ("penalty", "sentence"),
    [
        (None, "tune_penalty chooses k by them"),
        (PenaltyChoice(2.0, "responses", 40, 0.125, 0.03125), "k = 2 gained 0.125 ± 0.031"),
        (PenaltyChoice(0.0, "responses", 40, 0.0, 0.03), "no penalty gained more than its standard error"),
        (PenaltyChoice(0.5, "pairs", 40, math.nan, math.nan), "the best penalty is k = 0.5"),
    ],
)
def test_what_was_tuned_is_told(penalty, sentence):
    assert sentence in str(advice_on([-1.0, 0.0, 1.0], [1.0, 2.0, 3.0], penalty=penalty))


def texts(count, vocabulary, generator, length=40):
    """Of tokens that a source uses, some much more often than others."""
    weights = 1 / torch.arange(1.0, len(vocabulary) + 1)
    drawn = torch.multinomial(weights.expand(count, -1), length, replacement=True, generator=generator)
    return [[vocabulary[i] for i in row] for row in drawn.tolist()]


SHARED, CODE, PROSE = list(range(8)), list(range(100, 200)), list(range(300, 400))
SEEDS = 50


@pytest.mark.parametrize("minority", [8, 16])
def test_two_sources_are_told_apart(minority):
    """Missed in at most 1 of 50: were more than a tenth missed, so few would be in less than 4 % of the cases."""
    found = 0
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        mixed = texts(32 - minority, SHARED[:1] + CODE, generator) + texts(minority, SHARED[:1] + PROSE, generator)
        order = torch.randperm(32, generator=generator).tolist()
        similarity, group = text_groups([mixed[i] for i in order])
        own = [place for place, i in enumerate(order) if i >= 32 - minority]
        either = (own, [place for place in range(32) if place not in own]) if minority == 16 else (own,)
        found += group in either
        assert similarity < advice.APART
    assert found >= SEEDS - 1


@pytest.mark.parametrize("n", [8, 32])
def test_one_source_is_none_of_several(n):
    """Never in 50: were the rate a tenth, that would be luck in 0.5 % of the cases."""
    for seed in range(SEEDS):
        assert text_groups(texts(n, SHARED + CODE, torch.Generator().manual_seed(seed)))[1] == []


def mixture(first, second):
    generator = torch.Generator().manual_seed(0)
    return texts(first, CODE, generator) + texts(second, PROSE, generator)


def test_a_group_holds_its_texts_as_often_as_they_are_given():
    mixed = mixture(12, 6)
    assert text_groups(mixed * 2)[1] == [*range(12, 18), *range(30, 36)]


@pytest.mark.parametrize(
    "tokens",
    [
        mixture(3, 4),  # too few
        mixture(3, 4) * 10,  # ten times the same
        mixture(30, 6),  # a policy's odd ones
        mixture(20, 0) + [[300 + i] for i in range(20)],  # too short to share anything
        [CODE[:20]] * 40,
        [[]] * 40,
        [],
    ],
    ids=["few", "equal", "odd", "short", "all equal", "empty", "none"],
)
def test_nothing_is_told_of_texts_that_do_not_tell(tokens):
    assert text_groups(tokens)[1] == []


def test_of_very_many_texts_some_are_looked_at(monkeypatch):
    monkeypatch.setattr(advice, "MOST_TEXTS", 16)
    group = text_groups(mixture(40, 20))[1]
    assert 3 <= len(group) <= 8
    assert set(group) < set(range(40, 60))


def test_the_std_of_a_group_is_set_beside_the_others():
    tokens = mixture(12, 6)
    told = advise(torch.randn(18), torch.tensor([1.0] * 12 + [3.0] * 6), tokens)
    assert told.group == list(range(12, 18))
    assert told.std_ratio == pytest.approx(3.0)
    assert "6 of them (responses 12, 13, 14, 15, 16, 17)" in told.warnings[0]
    assert "3.00 times" in str(told)
    assert told.columns()["std_ratio"] == pytest.approx(3.0)


def test_columns_are_what_json_takes():
    columns = advice_on([0.0], [0.0]).columns()
    assert (columns["std_over_spread"], columns["similarity"], columns["std_ratio"]) == (None, None, None)
    assert columns["winners"] == [{"k": 0.0, "index": 0}]


@pytest.fixture(scope="module")
def rm():
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    return model.fit(tiny_pairs(), rank=4, prior_precision=1.0)


def test_the_advice_of_a_reward_model_is_about_its_own_choices(rm):
    responses = [words(2 + i % 7, i) for i in range(12)] + [words(2, 0)]
    told = rm.advice("above", responses)
    scores = rm.score(["above"] * 13, responses, relative_to="prompt")
    assert told.candidates == 13
    assert told.typical_std == pytest.approx(float(scores.variance.mean().sqrt()), rel=1e-5)
    assert told.spread_of_means == pytest.approx(float(scores.mean.std(correction=0)), rel=1e-5)
    ends = [*(winner.k for winner in told.winners[1:]), 8.0]
    for winner, end in zip(told.winners, ends, strict=True):
        assert rm.best_of_n("above", responses, k=(winner.k + end) / 2).index == winner.index
    assert told.penalty is None
    rm.tune_penalty([{"prompt": "above", "responses": responses, "gold": list(range(13))}])
    assert rm.advice("above", responses).penalty == rm.posterior.penalty
    with pytest.raises(InputError):
        rm.advice("above", [])


def test_texts_of_two_sources_are_told_by_a_reward_model(rm):
    vocabulary = tiny_tokenizer("llama").get_vocab()
    names = [name for name in vocabulary if not name.startswith("<")]
    first, second = names[:22], names[22:44]
    generator = torch.Generator().manual_seed(0)
    mixed = [" ".join(one) for source, n in ((first, 9), (second, 6)) for one in texts(n, source, generator, 20)]
    told = rm.advice("above", mixed)
    assert told.group == list(range(9, 15))
    assert "several sources" in str(told)
