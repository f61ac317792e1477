"""What follows from the joint posterior of a prompt's candidates."""

import math

import pytest
import torch
from drawn_figure import drawn_figure
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words
from whole_rows import whole_rows

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.posterior.files import CLASSES
from bayesrm_fast.score import sketch as sketching
from bayesrm_fast.score.joint import DRAWS, MOST_PLOTTED, JointRewards

MONTE_CARLO = 10**6


def joint(n, seed=0, rank=3):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    mean = torch.randn(n, generator=generator, dtype=torch.float64)
    return JointRewards(mean, factor @ factor.T, *whole_rows(n)), factor


def drawn(n, seed=0):
    """Draws by the factor itself, which the class does not know."""
    one, factor = joint(n, seed)
    generator = torch.Generator().manual_seed(12345)
    return one, one.mean + torch.randn(
        MONTE_CARLO, factor.shape[1], generator=generator, dtype=torch.float64
    ) @ factor.T


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_probabilities_of_being_best_agree_with_a_million_draws(n):
    one, rewards = drawn(n)
    expected = torch.bincount(rewards.argmax(1), minlength=n) / MONTE_CARLO
    found = one.probability_of_being_best()
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    error = (found * (1 - found) * (1 / DRAWS + 1 / MONTE_CARLO)).sqrt()
    assert ((found - expected).abs() <= 3 * error + 3 / DRAWS).all()


def test_the_probability_of_two_is_the_normal_distribution_function():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    one = JointRewards(torch.tensor([0.3, 0.0], dtype=torch.float64), covariance, *whole_rows(2))
    expected = 0.5 * (1 + math.erf(0.3 / math.sqrt(2.0) / math.sqrt(2.0)))
    assert float(one.probability_of_being_best()[0]) == pytest.approx(expected, abs=3 * 0.5 / math.sqrt(DRAWS))


def test_expected_regret_agrees_with_draws():
    one, rewards = drawn(7)
    regret = rewards.amax(1, keepdim=True) - rewards
    error = (regret.amax(1).std() ** 2 * (1 / DRAWS + 1 / MONTE_CARLO)).sqrt() + regret.std(0) / MONTE_CARLO**0.5
    assert ((one.expected_regret() - regret.mean(0)).abs() <= 3 * error).all()
    assert int(one.expected_regret().argmin()) == int(one.mean.argmax())


def test_samples_have_the_mean_and_the_covariance_and_come_again():
    one, _ = joint(5)
    samples = one.samples(200_000, seed=3)
    assert torch.equal(samples, one.samples(200_000, seed=3))
    assert samples[:7].shape == (7, 5)
    variance = one.covariance.diagonal()
    assert ((samples.mean(0) - one.mean).abs() <= 4 * (variance / 200_000).sqrt()).all()
    error = ((variance[:, None] * variance + one.covariance.square()) / 200_000).sqrt()
    assert ((samples.T.cov() - one.covariance).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
@pytest.mark.parametrize("what", ["samples", "probability_of_being_best", "expected_regret", "next_comparison"])
def test_a_number_of_draws_is_a_whole_one(what, count):
    with pytest.raises(InputError, match="draws must be a whole number of at least 1"):
        getattr(joint(5)[0], what)(count)


def test_a_direction_whose_variance_rounding_made_negative_is_drawn_as_if_it_had_none():
    one = JointRewards(torch.zeros(2), torch.diag(torch.tensor([1.0, -1e-2])), *whole_rows(2))
    samples = one.samples(1000)
    assert samples[:, 0].std() > 0.9
    assert not samples[:, 1].any()


def test_preference_probabilities_are_those_of_differences():
    one, _ = joint(6)
    found = one.preference_probability()
    torch.testing.assert_close(found + found.T, torch.ones(6, 6, dtype=torch.float64))
    variance = one.covariance[1, 1] + one.covariance[4, 4] - 2 * one.covariance[1, 4]
    expected = torch.sigmoid((one.mean[1] - one.mean[4]) / (1 + math.pi / 8 * variance).sqrt())
    torch.testing.assert_close(found[1, 4], expected)


def test_the_next_comparison_is_of_those_that_may_win_and_differ():
    """Two leaders that vary alone; one that varies with the first, which says little of either; one far off."""
    mean = torch.tensor([0.0, 2.0, 1.9, 2.0, -9.0], dtype=torch.float64)
    factor = torch.tensor([[0.1, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    one = JointRewards(mean, factor @ factor.T, *whole_rows(5))
    first, second, information = one.next_comparison()
    assert {first, second} == {1, 3}
    assert 0.05 < information < math.log(2)


def test_the_information_of_a_comparison_is_that_of_the_formula():
    """Of two candidates: by quadrature over their difference."""
    one = JointRewards(
        torch.tensor([0.5, 0.0], dtype=torch.float64),
        torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)),
        *whole_rows(2),
    )
    grid = torch.linspace(-16, 16, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((grid - 0.5) / 2) ** 2)
    density /= density.sum()
    preferred = torch.sigmoid(grid)

    def entropy(p):
        return float(-p * math.log(p) - (1 - p) * math.log(1 - p))

    wins = float(density[grid > 0].sum())
    given = [float((density * preferred)[s].sum() / density[s].sum()) for s in (grid > 0, grid <= 0)]
    expected = entropy(float((density * preferred).sum())) - wins * entropy(given[0]) - (1 - wins) * entropy(given[1])
    assert one.next_comparison(draws=DRAWS)[2] == pytest.approx(expected, abs=0.01)


def test_a_comparison_needs_two():
    with pytest.raises(InputError, match="two candidates"):
        joint(1)[0].next_comparison()


def test_a_thousand_candidates():
    one, _ = joint(1024)
    assert one.probability_of_being_best(8192).sum() == pytest.approx(1.0)
    first, second, information = one.next_comparison(4096)
    assert first != second
    assert information > 0


@pytest.fixture(scope="module", params=CLASSES)
def rm(request):
    model = BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"), max_batch_tokens=100)
    return model.fit(tiny_pairs(), structure=request.param, rank=4, prior_precision=0.5)


RESPONSES = [words(1 + i % 7, 50 + i) for i in range(40)]


def test_the_covariance_is_positive_with_the_variances_on_its_diagonal_whatever_the_batches(rm):
    one = rm.covariance("about art", RESPONSES)
    assert one.sketch_error is None
    variance = rm.score(["about art"] * 40, RESPONSES).variance
    torch.testing.assert_close(one.covariance.diagonal(), variance, rtol=1e-4, atol=0)
    values = torch.linalg.eigvalsh(one.covariance.double())
    assert values[0] >= -1e-6 * values[-1]


@pytest.mark.parametrize("width", [64, 8192])
def test_a_sketched_covariance_errs_as_it_says(rm, width, monkeypatch):
    monkeypatch.setattr(sketching, "WIDTH", width)
    exact = rm.covariance("about art", RESPONSES, outside="exact")
    sketched = rm.covariance("about art", RESPONSES, outside="sketch")
    torch.testing.assert_close(sketched.covariance.diagonal(), exact.covariance.diagonal(), rtol=1e-4, atol=0)
    assert torch.linalg.eigvalsh(sketched.covariance.double())[0] >= -1e-6 * sketched.covariance.norm()
    assert 0 < sketched.sketch_error < 5 * (2 / width) ** 0.5
    scale = exact.covariance.diagonal().sqrt()
    # The entries' errors are those of 780 inner products with a standard deviation of at most √(2/m).
    assert ((sketched.covariance - exact.covariance) / scale / scale[:, None]).abs().max() < 5 * (2 / width) ** 0.5


def test_what_does_not_fit_is_sketched_by_itself(rm, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.score.features.free_bytes", lambda _: 1000)
    assert rm.covariance("about art", RESPONSES[:3]).sketch_error is not None
    with pytest.raises(InputError, match="outside must be one of"):
        rm.covariance("about art", RESPONSES[:3], outside="some")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_candidates_the_first_is_the_best_in_every_draw(dtype):
    covariance = torch.full((3, 3), 2.0 / 3, dtype=dtype)
    joint = JointRewards(torch.full((3,), 0.1, dtype=dtype), covariance, *whole_rows(3))
    assert joint.probability_of_being_best(4096).tolist() == [1, 0, 0]


@pytest.mark.parametrize("outside", ["exact", "sketch"])
def test_equal_candidates_are_equal_to_the_last_digit_whatever_the_batches(rm, outside):
    responses = [RESPONSES[3], RESPONSES[6], RESPONSES[3], *RESPONSES[10:30], RESPONSES[3]]
    found = rm.covariance("able about", responses, outside=outside)
    for other in (2, 23):
        assert torch.equal(found.mean[0], found.mean[other])
        assert torch.equal(found.covariance[0], found.covariance[other])
        assert torch.equal(found.covariance[:, 0], found.covariance[:, other])
    alone = rm.covariance("able about", RESPONSES[3:4] * 5, outside=outside).relative()
    assert not alone.mean.any()
    assert not alone.covariance.any()


def test_no_difference_has_a_variance_below_zero():
    covariance = torch.tensor([[1.0, 1.0 + 1e-7], [1.0 + 1e-7, 1.0]])
    one = JointRewards(torch.zeros(2), covariance, *whole_rows(2))
    assert one.relative().covariance.diagonal().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("n", [1, 5, MOST_PLOTTED + 1])
def test_a_plot_tells_who_is_best_with_what_probability(n, tmp_path, monkeypatch):
    figure = drawn_figure(monkeypatch, "bayesrm_fast.score.joint")
    one, _ = joint(n)
    one.plot(tmp_path / "joint.png")
    rewards, best = figure[0].axes
    shown = [int(label.get_text()) for label in rewards.get_yticklabels()]
    probability = one.probability_of_being_best()
    assert len(shown) == min(n, MOST_PLOTTED)
    assert [bar.get_width() for bar in best.patches] == pytest.approx(probability[shown].tolist())
    assert probability[shown].tolist() == sorted(probability.tolist(), reverse=True)[:MOST_PLOTTED]
    assert rewards.lines[0].get_xdata().tolist() == pytest.approx(one.relative().mean[shown].tolist())
    figure[0].draw_without_rendering()
    label = rewards.yaxis.label.get_window_extent()
    assert figure[0].bbox.y0 <= label.y0 < label.y1 <= figure[0].bbox.y1
    assert (tmp_path / "joint.png").is_file()
