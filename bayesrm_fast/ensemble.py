"""Several reward models as one: adapters on a shared base, or models of their own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import torch
from peft import PeftModel
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.exclusive import exclusively
from bayesrm_fast.model.lora import active
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.saved.folders import hub_options, local_folder
from bayesrm_fast.score.relative import positions_of_equals
from bayesrm_fast.score.variances import RewardScores, truncated_and_tokens
from bayesrm_fast.select.choice import BestOfN, chosen
from bayesrm_fast.select.named_rules import rule_of
from bayesrm_fast.select.rules import KnownCandidates, Need, Rule
from bayesrm_fast.text.records import Candidates, candidate_sets, checked_rows
from bayesrm_fast.text.texts import Text, key_of


@dataclass(frozen=True)
class EnsembleScores:
    """Rewards of N rows by M members.

    Attributes:
        members: MAP rewards of each member `[M, N]`.
        within: mean over the members of their posterior variances `[N]`; zero where they have no posterior.
        truncated: which rows `max_length` cut for any member, `[N]`, bool.
        tokens: that the member which read most of a row has read of it `[N]`, int64.
        baseline: mean of the members' mean rewards of each row's prompt `[N]`; all rewards and variances are then those
            of the difference to each member's own. None where they are the rewards' own.
    """

    members: Tensor
    within: Tensor
    truncated: Tensor
    tokens: Tensor
    baseline: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """Over the members, `[N]`."""
        return self.members.mean(0)

    @property
    def worst(self) -> Tensor:
        """The least of the members' rewards, `[N]`."""
        return self.members.amin(0)

    @property
    def between(self) -> Tensor:
        """Population variance of the members' rewards, `[N]`."""
        return self.members.var(0, correction=0)

    @property
    def variance(self) -> Tensor:
        """Of the mixture of the members' posteriors, `[N]`: within and between, by the law of total variance."""
        return self.within + self.between

    @property
    def std(self) -> Tensor:
        """Of the mixture, `[N]`."""
        return self.variance.sqrt()

    @property
    def known(self) -> KnownCandidates:
        """What a rule may know of the rows, if they are one prompt's candidates."""
        return KnownCandidates(self.mean, self.variance, members=self.members)

    def scores(self, rule: str | Rule, k: float | None = None) -> Tensor:
        """What to choose by, `[N]`.

        Args:
            rule: "mean"; "worst"; "uncertainty", the mean less k times the variance between the members (Coste et al.,
                arXiv 2310.02743, section 3: mean, worst-case and uncertainty-weighted optimisation); "std" or
                "variance", the mean less k times the mixture's; or a `Rule` that needs no more.
            k: weight of a named rule's penalty. Default: 1, of "uncertainty" 0.5, as in Coste et al. for best-of-n.

        Raises:
            InputError: an unknown rule, one that an ensemble cannot serve, or a k that is negative or not finite.
        """
        return _served(rule, k).scores(self.known)


def _served(rule: str | Rule, k: float | None) -> Rule:
    asked = rule_of(rule, k)
    absent = asked.needs - {Need.VARIANCE, Need.MEMBERS}
    if absent:
        raise InputError(f"{type(asked).__name__} needs {', '.join(sorted(absent))}, which an ensemble does not have")
    return asked


class RewardEnsemble:
    """Reward models that score together.

    Args:
        members: at least two. Those that share a base model keep their adapters on it; each is made active while it
            scores, and what was active before is again afterwards.

    Raises:
        InputError: fewer than two members, or some with a posterior and some without.
    """

    def __init__(self, members: Sequence[BayesianRewardModel]) -> None:
        if len(members) < 2:
            raise InputError("an ensemble needs at least two members")
        if len({member.posterior is None for member in members}) > 1:
            raise InputError("some members have a posterior and some have none")
        self.members = list(members)

    @classmethod
    def from_pretrained(cls, paths: Sequence[str | os.PathLike[str]], **options: Any) -> Self:
        """Load adapters onto one base model, which is loaded once, with the posteriors that are saved beside them.

        Args:
            paths: folders or hub names of peft LoRA adapters of one base model.
            options: as for `BayesianRewardModel.from_pretrained`.

        Raises:
            InputError: fewer than two paths, adapters of different base models, or what a member alone raises.
        """
        if len(paths) < 2:
            raise InputError("an ensemble needs at least two members")
        members = [BayesianRewardModel.from_pretrained(paths[0], **options)]
        for number, path in enumerate(paths[1:], start=1):
            folder = local_folder(path, **hub_options(options))
            members.append(members[0].with_adapter(folder, f"member{number}"))
        first = members[0]
        cast(PeftModel, first.model).set_adapter(str(first.adapter), inference_mode=True)
        return cls(members)

    def score(
        self, prompts: Sequence[Text], responses: Sequence[Text], *, relative_to: Literal["prompt"] | None = None
    ) -> EnsembleScores:
        """Every member's reward of `responses[i]` to `prompts[i]`, and variance where members have posteriors.

        Args:
            prompts, responses: N of each.
            relative_to: "prompt" for differences to the mean of all responses to the same prompt, each member's to its
                own: the constant that a prompt adds to a member's rewards is no disagreement about a choice.

        Raises:
            InputError: no rows, lists of different lengths, text that cannot be read, or another `relative_to`.
        """
        if relative_to is not None and not (isinstance(relative_to, str) and relative_to == "prompt"):
            raise InputError(f"relative_to of an ensemble must be 'prompt' or None, not {relative_to!r}")
        found = []
        for member in self.members:
            with exclusively(member.model), active(member.model, member.adapter):
                found.append(_scores_of(member, prompts, responses, relative_to))
        baselines = [one.baseline for one in found if one.baseline is not None]
        return EnsembleScores(
            torch.stack([one.mean for one in found]),
            torch.stack([one.variance for one in found]).mean(0),
            torch.stack([one.truncated for one in found]).any(0),
            torch.stack([one.tokens for one in found]).amax(0),
            torch.stack(baselines).mean(0) if relative_to is not None else None,
        )

    def best_of_n(
        self,
        prompt: Text,
        responses: Sequence[Text],
        rule: str | Rule = "uncertainty",
        k: float | None = None,
        *,
        relative: bool = True,
    ) -> BestOfN:
        """The candidate with the largest score (`EnsembleScores.scores`); of equals the first.

        Rewards and variances are those of the difference to the mean of the prompt's candidates, unless `relative` is
        False.

        Raises:
            InputError: no candidates, text that cannot be read, or a rule that is unknown or cannot be served.
        """
        asked = _served(rule, k)
        (one,) = candidate_sets([Candidates(prompt, responses)])
        prompts = [one.prompt] * len(one.responses)
        found = self.score(prompts, one.responses, relative_to="prompt" if relative else None)
        best = chosen(asked, one, found.known, found.truncated, found.tokens)
        return best if found.baseline is None else replace(best, baseline=float(found.baseline[0]))


def _scores_of(
    member: BayesianRewardModel,
    prompts: Sequence[Text],
    responses: Sequence[Text],
    relative_to: Literal["prompt"] | None,
) -> RewardScores:
    """One member's; without a posterior its variance is zero."""
    if member.posterior is not None:
        return member.score(prompts, responses, relative_to=relative_to)
    prompts, responses = checked_rows(prompts, responses)
    rows = member.encoder.encode(prompts, responses)
    rewards = member.rewards_tokenized(rows)
    baseline = torch.zeros_like(rewards)
    if relative_to is not None:
        for own in positions_of_equals([key_of(prompt) for prompt in prompts]):
            baseline[own] = rewards[own].double().mean().to(rewards)  # of equal rewards, that reward
    return RewardScores(rewards - baseline, torch.zeros_like(rewards), *truncated_and_tokens(rows), baseline)
