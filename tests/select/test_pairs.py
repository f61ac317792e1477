"""What a label says, and the batch that says most, against integrals and matrices that are written out."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from bayesrm_fast.select.pairs import WIDE, greedy_batch, label_information

MEANS = [0.0, 0.3, -2.0, 7.0, 40.0]
STDS = [1e-6, 1e-2, 1.0, WIDE, WIDE + 1e-9, 30.0, 1e3]


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def integrated(mean, std):
    """Information and Fisher information on a grid that is fine for the density and for the logistic function."""
    step = min(std, 1.0) / 50
    z = np.arange(mean - 12 * std, mean + 12 * std, step)
    weight = np.exp(-0.5 * ((z - mean) / std) ** 2)
    weight /= weight.sum()
    p, q = scipy.special.expit(z), scipy.special.expit(-z)
    entropy = scipy.special.entr(p) + scipy.special.entr(q)
    return sum(scipy.special.entr(weight @ one) for one in (p, q)) - weight @ entropy, weight @ (p * q)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("mean", MEANS)
def test_the_information_of_a_label_is_the_integral(mean, std):
    information, fisher = label_information(doubles([mean]), doubles([std**2]))
    expected = integrated(mean, std)
    assert float(information) == pytest.approx(expected[0], abs=1e-10)
    assert float(fisher) == pytest.approx(expected[1], abs=1e-10)


def test_the_information_grows_with_the_variance_up_to_a_bit_and_does_not_see_the_order():
    mean = torch.linspace(0, 12, 49, dtype=torch.float64)
    variance = torch.logspace(-4, 5, 300, dtype=torch.float64)
    found = torch.stack([label_information(mean, one.expand_as(mean))[0] for one in variance])
    assert (found.diff(dim=0) > -1e-10).all()
    assert (found >= 0).all()
    assert (found <= math.log(2)).all()
    assert found[-1, 0] > 0.6
    assert torch.equal(found[100], label_information(-mean, variance[100].expand_as(mean))[0])
    assert not label_information(mean, torch.zeros_like(mean))[0].any()


def greedy(mean, covariance, count):
    return greedy_batch(doubles(mean), covariance.diagonal().clone(), lambda i: covariance[i], count)


@pytest.mark.parametrize("rank", [2, 5, 30])
def test_a_batch_is_that_of_posteriors_that_are_solved_anew_after_every_choice(rank):
    generator = torch.Generator().manual_seed(rank)
    features = torch.randn(30, rank, generator=generator, dtype=torch.float64)
    mean = torch.randn(30, generator=generator, dtype=torch.float64)
    chosen, told = greedy(mean.tolist(), features @ features.T, 12)
    precision = np.eye(rank)
    left = list(range(30))
    for i, information in zip(chosen, told, strict=True):
        covariance = features.numpy() @ np.linalg.solve(precision, features.numpy().T)
        expected, fisher = label_information(mean, doubles(covariance.diagonal().copy()))
        assert i == max(left, key=lambda one: expected[one])
        assert information == pytest.approx(float(expected[i]), rel=1e-9)
        precision += float(fisher[i]) * np.outer(features[i], features[i])
        left.remove(i)


def test_what_is_known_from_a_pair_is_not_asked_again():
    """Two directions, with two equal pairs each; the second one is a little less uncertain."""
    features = doubles([[2.0, 0.0], [2.0, 0.0], [0.0, 1.9], [0.0, 1.9]])
    chosen, told = greedy([0.0] * 4, features @ features.T, 4)
    assert chosen == [0, 2, 1, 3]
    assert told[2] < told[0]
    assert told[3] < told[1]


def test_of_equals_the_lower_one_comes_first_and_those_that_say_nothing_last():
    covariance = torch.diag(doubles([0.0, 1.0, 1.0, 0.0, 1.0]))
    chosen, told = greedy([0.0] * 5, covariance, 5)
    assert chosen == [1, 2, 4, 0, 3]
    assert told[3:] == [0.0, 0.0]


def test_one_that_says_less_than_float64_can_tell_comes_before_one_that_says_nothing():
    mean = torch.linspace(0, 60, 61, dtype=torch.float64)
    information = label_information(mean, torch.full_like(mean, 1e-30))[0]
    at = float(mean[int((information == 0).nonzero()[0])])
    assert greedy([at, at], torch.diag(doubles([0.0, 1e-30])), 2) == ([1, 0], [0.0, 0.0])


def test_a_pool_of_one():
    assert greedy([0.5], doubles([[1.0]]), 1)[0] == [0]
