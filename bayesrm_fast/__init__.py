"""Reward models that know what they do not know."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesrm_fast.ensemble import RewardEnsemble
    from bayesrm_fast.errors import InputError
    from bayesrm_fast.fit.options import FitOptions
    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.text.records import Candidates, PreferencePair
    from bayesrm_fast.text.steps import StepwiseResponse

__all__ = [
    "BayesianRewardModel",
    "Candidates",
    "FitOptions",
    "InputError",
    "PreferencePair",
    "RewardEnsemble",
    "StepwiseResponse",
]

_HOMES = {
    "BayesianRewardModel": "reward_model",
    "Candidates": "text.records",
    "FitOptions": "fit.options",
    "InputError": "errors",
    "PreferencePair": "text.records",
    "RewardEnsemble": "ensemble",
    "StepwiseResponse": "text.steps",
}


def __getattr__(name: str) -> Any:
    """Import a name's home when it is first asked for: the command line's help needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
