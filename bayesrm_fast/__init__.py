"""Reward models that know what they do not know."""

import torch  # noqa: F401  (first, so that its OpenMP is the one that compiled parts share)

from bayesrm_fast.ensemble import RewardEnsemble
from bayesrm_fast.errors import InputError
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.text import PreferencePair

__all__ = ["BayesianRewardModel", "InputError", "PreferencePair", "RewardEnsemble"]
