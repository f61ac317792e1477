"""Reward functions for trl's GRPOTrainer, RLOOTrainer and the others that take functions."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from bayesrm_fast.errors import InputError
from bayesrm_fast.fitted_model import FittedRewardModel
from bayesrm_fast.integrations.penalised import GROUP, PenalisedReward, Penalty
from bayesrm_fast.text.texts import Text

Rewards = list[float | None]
PREFIX = "bayesrm/"
"""Of the names in the trainer's log."""


def reward_function(
    rm: FittedRewardModel, penalty: Penalty = "std", k: float = 1.0, relative_to: str | None = GROUP
) -> Callable[..., Rewards]:
    """A reward function for `reward_funcs=` of a trainer.

    It logs means of reward, posterior std and penalty, and the share of advantages whose sign the penalty changes
    (`PenalisedRewards.metrics`); and mean and std of every completion, in the table of completions. A row that cannot
    be scored gets None, which trl leaves to other reward functions.

    Args:
        rm: the model, with its posterior.
        penalty, k: as for `PenalisedReward`.
        relative_to: "group" for stds of differences to the mean of a prompt's completions, each of whose groups must
            be whole on its process; the name of a column that holds a reference response to each prompt; None for the
            rewards' own.

    Raises:
        InputError: as for `PenalisedReward`; from the function also a column that is not there.
    """
    scorer = PenalisedReward(rm, penalty, k)

    def bayesian_reward(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> Rewards:
        if relative_to in (GROUP, None):
            found = scorer.of(prompts, completions, relative_to)
        elif relative_to in columns:
            found = scorer.of(prompts, completions, columns[relative_to])
        else:
            raise InputError(f"relative_to names the column {relative_to!r}, which the training data does not have")
        if log_metric is not None:
            for name, value in found.metrics().items():
                log_metric(PREFIX + name, value)
        if log_extra is not None:
            log_extra(PREFIX + "mean", found.mean.tolist())
            log_extra(PREFIX + "std", found.std.tolist())
        return found.as_list()

    return bayesian_reward


def async_reward_function(
    rm: FittedRewardModel, penalty: Penalty = "std", k: float = 1.0, relative_to: str | None = GROUP
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """The same as a coroutine, which lets a trainer's other asynchronous reward functions run meanwhile."""
    score = reward_function(rm, penalty, k, relative_to)

    async def bayesian_reward(prompts: Sequence[Text], completions: Sequence[Text], **given: Any) -> Rewards:
        return await asyncio.to_thread(score, prompts, completions, **given)

    return bayesian_reward
