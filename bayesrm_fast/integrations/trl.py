"""Reward functions for trl's GRPOTrainer, RLOOTrainer and the others that take functions."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.integrations.penalised import GROUP, PenalisedReward, Scorer
from bayesrm_fast.select.penalties import Penalty
from bayesrm_fast.text.texts import Text

Rewards = list[float | None]


class reward_function:
    """What goes into `reward_funcs=` of a trainer; it can be pickled where its scorer can.

    It logs means of reward, posterior std and penalty, and the share of advantages whose sign the penalty changes
    (`PenalisedRewards.metrics`); and mean and std of every completion, in the table of completions. A row that cannot
    be scored gets None, which trl leaves to other reward functions.

    Args:
        rm: the model with its posterior; or a server's `Client`, for trainers that start their reward functions in
            processes without a GPU.
        penalty, k: as for `PenalisedReward`.
        relative_to: "group" for stds of differences to the mean of a prompt's completions, each of whose groups must
            be whole on its process; the name of a column that holds a reference response to each prompt; None for the
            rewards' own.
        name: of the rewards in the trainer's log, and before a slash of what is logged of them. A trainer mixes what
            has one name, so of several functions each needs its own.

    Raises:
        InputError: as for `PenalisedReward`; from a call also a column that is not there.
    """

    def __init__(
        self,
        rm: Scorer,
        penalty: Penalty = "std",
        k: float = 1.0,
        relative_to: str | None = GROUP,
        name: str = "bayesrm",
    ) -> None:
        self.scorer = PenalisedReward(rm, penalty, k)
        if relative_to is not None and not isinstance(relative_to, str):
            raise InputError(f"relative_to must be 'group', the name of a column or None, not {shown(relative_to)}")
        self.relative_to = relative_to
        self.__name__ = name

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> Rewards:
        """Rewards of the completions, and what is logged of them."""
        if self.relative_to in (GROUP, None):
            found = self.scorer.of(prompts, completions, self.relative_to)
        elif self.relative_to in columns:
            found = self.scorer.of(prompts, completions, columns[self.relative_to])
        else:
            raise InputError(
                f"relative_to names the column {self.relative_to!r}, which the training data does not have"
            )
        if log_metric is not None:
            for name, value in found.metrics().items():
                log_metric(f"{self.__name__}/{name}", value)
        if log_extra is not None:
            log_extra(f"{self.__name__}/mean", found.mean.tolist())
            log_extra(f"{self.__name__}/std", found.std.tolist())
        return found.as_list()


class async_reward_function(reward_function):
    """The same as a coroutine, which lets a trainer's other asynchronous reward functions run meanwhile."""

    async def __call__(  # type: ignore[override]
        self, prompts: Sequence[Text], completions: Sequence[Text], **given: Any
    ) -> Rewards:
        """See `reward_function`."""
        return await asyncio.to_thread(super().__call__, prompts, completions, **given)
