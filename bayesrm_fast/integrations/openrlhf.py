"""The function that OpenRLHF calls from a Python file, in place of a server's address."""

import asyncio
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bayesrm_fast.posterior.probit import probability_above
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.select.penalties import Penalty, PenaltyOfStd
from bayesrm_fast.serve.engine import AsyncScorer


class reward_function:
    """`reward_func` of OpenRLHF: one sample a call, from many threads at once, scored in shared batches.

    A sample alone has no group, so its std is the reward's own, which holds that of the constant that a prompt adds to
    all its rewards. A trainer that gives whole groups (trl) has the std of differences.

    Args:
        rm: the model, with its posterior.
        penalty, k: as for `PenalisedReward`.
        threshold: in units of the reward; OpenRLHF filters prompts by `scores`, P(reward > threshold).

    Raises:
        InputError: as for `PenalisedReward`.
    """

    def __init__(
        self, rm: BayesianRewardModel, penalty: Penalty = "std", k: float = 1.0, threshold: float = 0.0
    ) -> None:
        self.penalty = PenaltyOfStd(penalty, k)
        self.threshold = threshold
        rm.fitted  # noqa: B018  (raises where there is none)
        self.scorer = AsyncScorer(rm)

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        """Rewards of whole texts, decoded with their special tokens and so tokenized as they stand.

        Raises:
            InputError: text that cannot be read.
        """
        found = asyncio.run(self.scorer.score_text(queries, add_special_tokens=False))
        mean, std = found.mean.double(), found.std.double()
        chances = [probability_above(self.threshold, *one) for one in zip(mean.tolist(), std.tolist(), strict=True)]
        logs = {"reward_mean": mean.float(), "reward_std": std.float()}
        return {
            "rewards": (mean - self.penalty.of(std)).float(),
            "scores": mean.new_tensor(chances).float(),
            "extra_logs": logs,
        }
