"""A reward manager and a reward function for verl, which asks for one sample at a time."""

import asyncio
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from bayesrm_fast.errors import InputError
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.select.penalties import Penalty, PenaltyOfStd
from bayesrm_fast.serve.client import AsyncClient
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.text.texts import Text, described, is_missing

OPTIONS = "bayesrm"
"""Block of `reward` in verl's configuration that the manager reads."""

_loading = threading.Lock()


def _scorer(model: str) -> AsyncScorer | AsyncClient:
    """Of a folder or of a server's URL; one for each in a process, also where the first samples come together."""
    with _loading:
        return _loaded(model)


@cache
def _loaded(model: str) -> AsyncScorer | AsyncClient:
    if model.startswith(("http://", "https://")):
        return AsyncClient(model)
    rm = BayesianRewardModel.from_pretrained(model)
    rm.fitted  # noqa: B018  (raises where there is none)
    return AsyncScorer(rm)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    model: str,
    penalty: Penalty = "std",
    k: float = 1.0,
    prompt: str = "prompt",
    reference: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """For `reward.custom_reward_function`; the other arguments are its `reward_kwargs`.

    verl passes no prompt to a function, so it must be in `extra_info`; `BayesianRewardManager` needs none there.

    Args:
        data_source, ground_truth: not read.
        solution_str: the response.
        extra_info: of the row.
        model: folder of a model with its posterior, or a server's URL.
        penalty, k: as for `PenalisedReward`.
        prompt: key of `extra_info` that holds the prompt.
        reference: key of `extra_info` that holds a response to the same prompt, to whose difference the std is then;
            None for the reward's own std.

    Returns:
        `score`, the penalised reward, with `mean`, `std` and `penalty`.

    Raises:
        InputError: keys that are not there, text that cannot be read, or a penalty that is none.
    """
    weight = PenaltyOfStd(penalty, k)
    given = extra_info or {}
    asked = _of(given, prompt)
    compared = None if reference is None else _of(given, reference)
    return await _scored(model, asked, solution_str, compared, weight)


class BayesianRewardManager(RewardManagerBase):
    """For `reward.reward_manager`: the reward of a sample's last response, less its penalty.

    It reads the block `reward.bayesrm` of verl's configuration: `model`, and where they are wanted `penalty`, `k` and
    `reference`, as `compute_score` has them.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        options = dict(config.reward.get(OPTIONS) or {})
        if not options.get("model"):
            raise InputError(f"verl's configuration has no reward.{OPTIONS}.model: a folder or a server's URL")
        unknown = sorted(set(options) - {"model", "penalty", "k", "reference"})
        if unknown:
            raise InputError(f"reward.{OPTIONS} has no option {', '.join(unknown)}")
        self.model = str(options["model"])
        self.penalty = PenaltyOfStd(options.get("penalty", "std"), options.get("k", 1.0))
        self.reference = options.get("reference")

    async def run_single(self, data: Any) -> dict[str, Any]:
        """See verl's `RewardManagerBase`."""
        sample = data[-1:][0]
        responses = sample.batch["responses"]
        real = int(sample.batch["attention_mask"][-responses.shape[-1] :].sum())
        response = await asyncio.to_thread(self.tokenizer.decode, responses[:real], skip_special_tokens=True)
        held = sample.non_tensor_batch
        compared = None if self.reference is None else _of(held.get("extra_info") or {}, self.reference)
        found = await _scored(self.model, list(held["raw_prompt"]), response, compared, self.penalty)
        return {"reward_score": found.pop("score"), "reward_extra_info": found}


async def _scored(
    model: str, prompt: Text, response: Text, reference: Text | None, penalty: PenaltyOfStd
) -> dict[str, float]:
    scorer = await asyncio.to_thread(_scorer, model)
    relative_to = None if reference is None else [reference]
    asked: Any = [prompt] if isinstance(scorer, AsyncClient) else prompt
    found = await scorer.score(asked, [response], relative_to=relative_to)
    mean, std = found.mean.double(), found.std.double()
    if found.baseline is not None:
        mean = mean + found.baseline
    less = penalty.of(std)
    return {"score": float(mean - less), "mean": float(mean), "std": float(std), "penalty": float(less)}


def _of(extra_info: Mapping[str, Any], key: str) -> Any:
    if not isinstance(extra_info, Mapping):
        raise InputError(f"the row's extra_info must be an object, not {described(extra_info)}")
    # A table has None for a row without what others have; no reference would be another std.
    if is_missing(extra_info.get(key)):
        raise InputError(f"the row's extra_info has no {key!r}")
    return extra_info[key]
