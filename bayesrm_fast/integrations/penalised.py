"""Rewards for training: the model's own, less a penalty for what the posterior does not know of them."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError, named, shown
from bayesrm_fast.fitted_model import FittedRewardModel
from bayesrm_fast.score.variances import RewardScores
from bayesrm_fast.select.penalties import Penalty, PenaltyOfStd
from bayesrm_fast.text.records import separated_rows
from bayesrm_fast.text.texts import Text, as_list, is_list, key_of

GROUP = "group"
"""What a reward's std is of the difference to, where it is the mean of the responses to the same prompt."""


@dataclass(frozen=True)
class PenalisedRewards:
    """What a trainer gets, and what it is made of. A row that could not be scored is NaN throughout.

    Attributes:
        rewards: `mean − penalty` `[N]`, float64.
        mean: MAP rewards `[N]`.
        std: posterior std `[N]`, of the difference to the baseline where there is one.
        penalty: what was subtracted `[N]`.
        truncated: which rows `max_length` cut `[N]`, bool.
        prompts: of each row the number of its prompt, equal ones have the same.
    """

    rewards: Tensor
    mean: Tensor
    std: Tensor
    penalty: Tensor
    truncated: Tensor
    prompts: list[int]

    def as_list(self) -> list[float | None]:
        """The rewards, None where there is none."""
        return [None if math.isnan(reward) else reward for reward in self.rewards.tolist()]

    def metrics(self) -> dict[str, float]:
        """Of the rows with a reward: mean reward, posterior std and penalty, and what the penalty does to advantages.

        "penalised" is the share of rewards that have a penalty; "advantage_flips" the share of those on one side of
        their prompt's mean without it and on the other side with it; "truncated" the share of a text that was cut.
        """
        there = ~self.rewards.isnan()
        if not there.any():
            return {}
        sides = [self._above_their_mean(values) for values in (self.mean, self.rewards)]
        return {
            "mean": float(self.mean[there].mean()),
            "std": float(self.std[there].mean()),
            "penalty": float(self.penalty[there].mean()),
            "penalised": float((self.penalty[there] > 0).double().mean()),
            "advantage_flips": float((sides[0] != sides[1])[there].double().mean()),
            "truncated": float(self.truncated[there].double().mean()),
        }

    def _above_their_mean(self, values: Tensor) -> Tensor:  # shape: (N,), bool
        numbers = torch.tensor(self.prompts, dtype=torch.int64, device="cpu")
        means = torch.stack([values[numbers == prompt].nanmean() for prompt in range(max(self.prompts) + 1)])
        return values > means[numbers]


class Scorer(Protocol):
    """What has rewards and their variances: a `BayesianRewardModel`, or a `Client` of a server that has one."""

    def score(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        *,
        relative_to: Literal["prompt"] | Sequence[Text] | None = None,
    ) -> RewardScores:
        """See `BayesianRewardModel.score`."""

    def rewards(self, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
        """See `BayesianRewardModel.rewards`."""


class PenalisedReward:
    """Rewards of rows for a trainer.

    In GRPO and RLOO only differences within a prompt's group count. So the std that matters is that of the difference
    to the group's mean, or to a reference response where a process has no whole group; the absolute one holds that of
    the constant which a prompt adds to its rewards, and is nearly the same for all of a group.

    Args:
        rm: the model, with its posterior.
        penalty, k: as for `PenaltyOfStd`.

    Raises:
        InputError: an unknown penalty, a k that is no finite number of at least 0, or a model that is none or has no
            posterior.
    """

    def __init__(self, rm: Scorer, penalty: Penalty = "std", k: float = 1.0) -> None:
        self.penalty = PenaltyOfStd(penalty, k)
        if not hasattr(rm, "score"):
            raise InputError(f"rm must be a BayesianRewardModel or a server's Client, not {shown(rm)}")
        if isinstance(rm, FittedRewardModel):
            rm.fitted  # noqa: B018  (raises where there is none)
        self.rm = rm

    def of(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        relative_to: Literal["group"] | Sequence[Text] | None = GROUP,
    ) -> PenalisedRewards:
        """Rewards of `responses[i]` to `prompts[i]`.

        Args:
            prompts, responses: N of each.
            relative_to: "group" for stds of differences to the mean of the responses to the same prompt; N reference
                responses, of equal rows equal ones; None for the rewards' own stds.

        Raises:
            InputError: what concerns all rows, lists of different lengths among it, or a group of one row. A row that
                cannot be scored has a warning and no reward.
        """
        responses = _column(responses, "responses")
        prompts = _column(prompts, "prompts", len(responses))
        if relative_to is not None and not (isinstance(relative_to, str) and relative_to == GROUP):
            relative_to = list(map(_alike, _column(relative_to, "references", len(responses)), responses))
        numbers = _numbers(prompts)
        rows = list(range(len(responses)))
        try:
            scores: RewardScores | None = self._scored(prompts, responses, relative_to, rows)
        except InputError as error:
            unreadable = self._unreadable(prompts, responses, rows)
            if relative_to is not None and relative_to != GROUP:
                unreadable |= self._unreadable(prompts, relative_to, rows)
            rows = [i for i in rows if i not in unreadable]
            if not unreadable or not rows:
                raise
            where = named([f"row {i + 1}" for i in sorted(unreadable)])
            warnings.warn(
                f"no reward for {where}, nor for a response that is alone in its group without: {error}", stacklevel=3
            )
            if relative_to == GROUP:
                left = Counter(numbers[i] for i in rows)
                rows = [i for i in rows if left[numbers[i]] > 1]
            scores = self._scored(prompts, responses, relative_to, rows) if rows else None
        mean, std = (torch.full((len(responses),), torch.nan, dtype=torch.float64, device="cpu") for _ in range(2))
        truncated = torch.zeros(len(responses), dtype=torch.bool, device="cpu")
        if scores is not None:
            own = scores.mean.double()
            mean[rows] = own if scores.baseline is None else own + scores.baseline.double()
            std[rows] = scores.variance.double().sqrt()
            truncated[rows] = scores.truncated
        penalty = self.penalty.of(std)
        return PenalisedRewards(mean - penalty, mean, std, penalty, truncated, numbers)

    def _scored(
        self,
        prompts: Sequence[Text],
        responses: Sequence[Text],
        relative_to: Literal["group"] | Sequence[Text] | None,
        rows: Sequence[int],
    ) -> RewardScores:
        own = [prompts[i] for i in rows], [responses[i] for i in rows]
        if relative_to is None:
            return self.rm.score(*own)
        if relative_to != GROUP:
            return self.rm.score(*own, relative_to=[relative_to[i] for i in rows])
        numbers = _numbers([prompt for prompt, *_ in separated_rows(*own)])  # as `score` groups them
        sizes = Counter(numbers)
        alone = [f"row {row + 1}" for row, number in zip(rows, numbers, strict=True) if sizes[number] == 1]
        if alone:
            raise InputError(
                f"{named(alone)}: the only response to its prompt here, which a difference to its group says nothing "
                "of. Where a group has one response (trl's num_generations_eval=1), or its responses are on several "
                "processes, give relative_to references, or None"
            )
        return self.rm.score(*own, relative_to="prompt")

    def _unreadable(self, prompts: Sequence[Text], responses: Sequence[Text], rows: list[int]) -> set[int]:
        """Rows that have no reward of their own, by halves."""
        try:
            self.rm.rewards([prompts[i] for i in rows], [responses[i] for i in rows])
        except InputError:
            if len(rows) < 2:
                return set(rows)
            half = len(rows) // 2
            return self._unreadable(prompts, responses, rows[:half]) | self._unreadable(prompts, responses, rows[half:])
        return set()


def _column(values: Any, name: str, rows: int | None = None) -> Sequence[Any]:
    values = as_list(values)
    if not is_list(values):
        raise InputError(f"{name} must be a list, not {shown(values)}")
    if rows is not None and len(values) != rows:
        raise InputError(f"there are {rows} responses but {len(values)} {name}")
    return values


def _alike(reference: Any, response: Any) -> Any:
    """A reference as a message, where the response is one: without a chat template only messages have their role."""
    if isinstance(reference, str) and is_list(response):
        return [{"role": "assistant", "content": reference}]
    return reference


def _numbers(prompts: Sequence[Text]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(key_of(prompt), len(numbers)) for prompt in prompts]
