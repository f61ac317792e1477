"""Rewards with their variance: identical examples once, and each error by its own example."""

import math

import pytest
import torch
from drawn_figure import drawn_figure
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from whole_rows import whole_rows

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.score.variances import PairScores, RewardScores, score_examples


def model(**options):
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"), **options)
    return rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)


@pytest.fixture
def rm():
    return model()


@pytest.fixture
def broken(rm):
    """Every row with "art" has a reward that is NaN."""
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[rm.tokenizer("art").input_ids[1]] = float("nan")
    rm.posterior = rm.posterior  # of the model as it is now
    return rm


@pytest.mark.parametrize("budget", [None, 1])
def test_a_row_whose_reward_is_nan_has_its_own_number_also_after_its_equals(budget):
    rm = model(max_batch_tokens=budget)
    with torch.no_grad():
        rm.model.get_input_embeddings().weight[rm.tokenizer("art").input_ids[1]] = float("nan")
    rm.posterior = rm.posterior  # of the model as it is now
    with pytest.raises(InputError, match=r"^row 3: the model's reward is NaN or infinite"):
        rm.score(["a"] * 3, ["a", "a", "art"])
    with pytest.raises(InputError, match=r"^row 4: "):
        rm.score(["a", "a", "about", "art"], ["a", "a", "act", "able"])


def test_of_equal_rows_whose_reward_is_nan_the_first_is_named(broken):
    with pytest.raises(InputError, match=r"^row 2: "):
        broken.score(["a"] * 3, ["able", "art", "art"])


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_pair_whose_reward_is_nan_has_its_own_number_also_after_its_equals(broken, side):
    fine = {"prompt": "a", "chosen": "able", "rejected": "about"}
    with pytest.raises(InputError, match=r"^pairs, row 3: the model's reward is NaN"):
        broken.score_pairs([fine, fine, fine | {side: "art"}])


def test_candidates_are_named_by_their_prompt(broken):
    sets = [{"prompt": "a", "responses": ["able", "able"]}, {"prompt": "a", "responses": ["able", "about", "art"]}]
    for exhaustive in (False, True):
        with pytest.raises(InputError, match=r"^candidates, row 2: responses\[2\]: the model's reward is NaN"):
            broken.best_of_each(sets, exhaustive=exhaustive)


def test_identical_rows_and_pairs_are_computed_once(rm):
    seen = []
    rm.model.get_input_embeddings().register_forward_hook(lambda m, args, out: seen.append(args[0].numel()))
    responses = [words(4, i) for i in range(5)]
    passes, rows = rm.passes(), rm.tokenize(["a"] * 15, responses * 3)
    told = []
    mean, variance = score_examples(passes, rows, rm.fitted, lambda *at: told.append(at))
    assert sum(seen) == sum(row.length for row in rows[:5])
    assert told[-1] == (5, 5)
    for values in (mean, variance):
        assert torch.equal(values, values[:5].repeat(3))
    seen.clear()
    pairs = rm.tokenize_pairs(tiny_pairs(3) * 4)
    mean, variance = score_examples(passes, pairs, rm.fitted)
    assert sum(seen) <= 6 * max(pair.length for pair in pairs)  # padded; of 24 rows six are distinct
    assert torch.equal(variance, variance[:3].repeat(4))


def test_numbers_are_in_the_order_of_the_examples_whatever_the_batches(rm):
    prompts, responses = [words(3, i) for i in range(12)], [words(1 + (5 * i) % 12, i) for i in range(12)]
    one_by_one = [rm.score([p], [r]) for p, r in zip(prompts, responses, strict=True)]
    for tokens in (1, 40, 4096):
        other = BayesianRewardModel(rm.model, rm.tokenizer, max_batch_tokens=tokens)
        other.posterior = rm.posterior
        found = other.score(prompts, responses)
        torch.testing.assert_close(found.mean, torch.cat([one.mean for one in one_by_one]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.variance, torch.cat([one.variance for one in one_by_one]), rtol=1e-4, atol=0)


def test_a_table_of_scores_has_their_columns():
    mean, variance = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.0])
    scores = RewardScores(mean, variance, torch.tensor([False, True]), torch.tensor([3, 9]))
    assert scores.std.tolist() == [2.0, 0.0]
    table = scores.to_pandas()
    assert list(table.columns) == ["mean", "variance", "std", "truncated"]
    assert table.iloc[1].tolist() == [-2.0, 0.0, 0.0, True]


def test_the_probability_of_a_pair_knows_variance_and_temperature():
    pairs = PairScores(torch.tensor([3.0]), torch.tensor([5.0]), *whole_rows(1), temperature=2.0)
    expected = 1 / (1 + math.exp(-3 / math.sqrt(4 + math.pi / 8 * 5)))
    assert float(pairs.probability) == pytest.approx(expected, rel=1e-6)
    assert list(pairs.to_pandas().columns) == ["mean", "variance", "std", "truncated", "probability"]


@pytest.mark.parametrize("structure", ["ggn", "kfac"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_variance_that_is_infinite_is_refused_by_its_row(structure, relative):
    """Rewards of 10²¹ are finite, the squares of their gradients are not."""
    rm = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    rm.fit(tiny_pairs(), structure=structure, rank=4, prior_precision=1.0)
    with torch.no_grad():
        rm.model.get_base_model().score.modules_to_save["default"].weight.mul_(1e21)
    rm.posterior = rm.posterior  # of the weights as they now are
    rows = ["able", "about"]
    for call, name in (
        (lambda: rm.score(["a"] * 2, rows), "row 1"),
        (lambda: rm.score(["a"] * 2, rows, relative_to="prompt"), "row 1"),
        (lambda: rm.covariance("a", rows), r"responses\[0\]"),
        (lambda: rm.score_pairs([{"prompt": "a", "chosen": "able", "rejected": "about"}]), "pairs, row 1"),
        (lambda: rm.best_of_n("a", rows, relative=relative), r"responses\[0\]"),
    ):
        with pytest.raises(InputError, match=rf"{name}: the variance is NaN or infinite: the prior precision is too"):
            call()


def test_a_posterior_on_another_device_is_refused(rm):
    rm.posterior = rm.posterior.to("meta")
    with pytest.raises(InputError, match=r"the posterior is on meta, the model on cpu: give the model posterior\.to"):
        rm.score(["a"], ["able"])


@pytest.mark.parametrize(
    ("cls", "baseline", "label"),
    [
        (RewardScores, None, "reward"),
        (RewardScores, torch.zeros(3), "difference of the reward to its baseline"),
        (PairScores, None, "reward of chosen less rejected"),
    ],
)
def test_a_plot_has_every_row_from_the_lowest_mean_on(cls, baseline, label, tmp_path, monkeypatch):
    figure = drawn_figure(monkeypatch, "bayesrm_fast.score.variances")
    scores = cls(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 4.0, 9.0]), *whole_rows(3), baseline)
    scores.plot(tmp_path / "scores.png")
    (axis,) = figure[0].axes
    assert axis.get_ylabel() == label
    assert [int(tick.get_text()) for tick in axis.get_xticklabels()] == [1, 2, 0]
    assert axis.lines[0].get_ydata().tolist() == [0, 1, 2]
    (bars,) = axis.collections
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[-2, 2], [-2, 4], [1, 3]]
    assert (tmp_path / "scores.png").is_file()
