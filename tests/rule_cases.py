"""Candidates that every rule can be tried on, and every rule with a name."""

import torch
from whole_rows import whole_rows

from bayesrm_fast.score.joint import JointRewards
from bayesrm_fast.select.named_rules import RULES, rule_of
from bayesrm_fast.select.rules import KnownCandidates, Need

SMALL = {"draws": 4096}
"""Draws enough for a test."""

JOINT = [name for name in RULES if Need.JOINT in rule_of(name).needs]
PROBABILITY_ERROR = 5 * (0.5 / SMALL["draws"] ** 0.5)
"""Five standard errors of a probability by so many draws."""


def rules():
    """Every rule by its name, with few draws where it draws."""
    return {name: rule_of({"rule": name, **(SMALL if name in JOINT else {})}) for name in RULES}


def known_candidates(n, seed=0):
    """All that can be known of n candidates, drawn by a seed, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = normal(n, n + 2)
    covariance = root @ root.T / n
    mean = normal(n)
    embedded = torch.nn.functional.normalize(normal(n, 8), dim=1)
    return KnownCandidates(
        mean,
        covariance.diagonal().clone(),
        JointRewards(mean, covariance, *whole_rows(n)),
        members=normal(3, n),
        log_probabilities=-10 * normal(n).abs(),
        similarities=embedded @ embedded.T,
    )
