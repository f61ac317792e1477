"""Probabilities of preferences under a Gaussian posterior."""

import math

import torch
from torch import Tensor


def probit_logit(difference: Tensor, variance: Tensor, temperature: float = 1.0) -> Tensor:
    """`Δ / √(T² + π v / 8)`, the logit of `probit_probability`."""
    return difference / (temperature**2 + math.pi / 8 * variance).sqrt()


def probit_probability(difference: Tensor, variance: Tensor, temperature: float = 1.0) -> Tensor:
    """`σ(Δ / √(T² + π v / 8))`, the probability that a reward difference `N(Δ, v)` decides for the first response.

    The probit approximation of a logistic-Gaussian integral (MacKay, *The evidence framework applied to
    classification networks*, 1992), of the difference over a temperature T.
    """
    return torch.sigmoid(probit_logit(difference, variance, temperature))


def label_entropy(probability: Tensor) -> Tensor:
    """Entropy of a yes-or-no label, in nats."""
    entropy: Tensor = torch.special.entr(probability) + torch.special.entr(1 - probability)
    return entropy
