"""What a request asks of a model: its parts, a call that parts of several requests share, and its answer."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from bayesrm_fast.model.passes import Passes
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.score.joint import JointRewards, joint_rewards
from bayesrm_fast.score.means import rewards_of
from bayesrm_fast.score.relative import Comparison, score_differences
from bayesrm_fast.score.variances import RewardScores, score_examples, truncated_and_tokens
from bayesrm_fast.select.choice import BestOfN, check_needs, choose_each
from bayesrm_fast.select.named_rules import rule_of
from bayesrm_fast.select.rules import Rule
from bayesrm_fast.serve.texts import Responses, Texts, numbered
from bayesrm_fast.text.examples import TokenizedRow
from bayesrm_fast.text.records import Candidates, candidate_sets
from bayesrm_fast.text.texts import Text


@dataclass(frozen=True)
class Part:
    """Rows of a request that run in one call.

    Attributes:
        rows: at least one.
    """

    rows: Sequence[TokenizedRow]


@dataclass(frozen=True, kw_only=True)
class ComparedPart(Part):
    """Rows with what they are compared with.

    Attributes:
        comparison: of positions in `rows`.
        positions: of the compared rows in the request's answer.
    """

    comparison: Comparison
    positions: Sequence[int]


P = TypeVar("P", bound=Part)
R = TypeVar("R")


class Work(ABC, Generic[P, R]):
    """What a request asks.

    Attributes:
        texts: that it asks of.
        shares_beginnings: whether rows that begin alike may share that in a call.
    """

    texts: Texts
    shares_beginnings: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, rm: BayesianRewardModel) -> list[P]:
        """Its parts; called beside the model, and anew where the posterior is replaced before the answer is there.

        Raises:
            InputError: what cannot be served.
        """

    @property
    def key(self) -> Hashable:
        """Equal for works whose parts may share a call; known once it is prepared."""
        return type(self)

    @abstractmethod
    def run(self, rm: BayesianRewardModel, passes: Passes, parts: Sequence[P]) -> list[Any]:
        """What each of the parts gives, which may be those of other works of an equal key.

        Raises:
            InputError: a reward or a variance that is NaN or infinite.
        """

    @abstractmethod
    def answer(self, parts: Sequence[P], results: Sequence[Any]) -> R:
        """From its own parts and what they gave."""


class Means(Work[Part, RewardScores]):
    """Rewards by forward passes alone; their variances are NaN."""

    shares_beginnings = True

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def prepare(self, rm: BayesianRewardModel) -> list[Part]:
        """See `Work`."""
        return [Part([row]) for row in self.texts.tokenized(rm)]

    def run(self, rm: BayesianRewardModel, passes: Passes, parts: Sequence[Part]) -> list[Tensor]:
        """See `Work`."""
        return list(rewards_of(passes, _rows(parts)))

    def answer(self, parts: Sequence[Part], results: Sequence[Tensor]) -> RewardScores:
        """See `Work`."""
        mean = torch.stack(list(results))
        return RewardScores(mean, torch.full_like(mean, torch.nan), *truncated_and_tokens(_rows(parts)))


class Scores(Work[Part, RewardScores]):
    """Rewards with their own variances."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def prepare(self, rm: BayesianRewardModel) -> list[Part]:
        """See `Work`."""
        rm.fitted  # noqa: B018  (raises where there is none)
        return [Part([row]) for row in self.texts.tokenized(rm)]

    def run(self, rm: BayesianRewardModel, passes: Passes, parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
        """See `Work`."""
        return list(zip(*score_examples(passes, _rows(parts), rm.fitted), strict=True))

    def answer(self, parts: Sequence[Part], results: Sequence[tuple[Tensor, Tensor]]) -> RewardScores:
        """See `Work`."""
        mean, variance = (torch.stack(values) for values in zip(*results, strict=True))
        return RewardScores(mean, variance, *truncated_and_tokens(_rows(parts)))


class Differences(Work[ComparedPart, RewardScores]):
    """Rewards relative to others of the same prompt."""

    def __init__(self, texts: Responses, relative_to: Literal["prompt"] | Sequence[Text]) -> None:
        self.texts, self._responses, self._relative_to = texts, texts, relative_to

    def prepare(self, rm: BayesianRewardModel) -> list[ComparedPart]:
        """See `Work`."""
        rm.fitted  # noqa: B018  (raises where there is none)
        prompts, responses = self._responses.checked()
        where = numbered("response", len(prompts))
        rows, comparisons = rm.tokenize_comparisons(prompts, responses, self._relative_to, where)
        parts = []
        for one in comparisons:
            own = list(dict.fromkeys([*one.rows, *one.baseline]))
            place = {position: i for i, position in enumerate(own)}
            within = Comparison([place[i] for i in one.rows], [place[i] for i in one.baseline])
            parts.append(ComparedPart([rows[i] for i in own], comparison=within, positions=one.rows))
        return parts

    def run(self, rm: BayesianRewardModel, passes: Passes, parts: Sequence[ComparedPart]) -> list[tuple[Tensor, ...]]:
        """See `Work`."""
        comparisons = []
        before = 0
        for part in parts:
            compared, baseline = ([before + i for i in own] for own in (part.comparison.rows, part.comparison.baseline))
            comparisons.append(Comparison(compared, baseline))
            before += len(part.rows)
        found = score_differences(passes, _rows(parts), comparisons, rm.fitted)
        counts = [len(part.positions) for part in parts]
        return list(zip(*(v.split(counts) for v in (found.mean, found.variance, found.baseline)), strict=True))

    def answer(self, parts: Sequence[ComparedPart], results: Sequence[tuple[Tensor, ...]]) -> RewardScores:
        """See `Work`."""
        order = [position for part in parts for position in part.positions]
        back = torch.tensor(order, dtype=torch.int64, device="cpu").argsort()
        mean, variance, baseline = (torch.cat(values)[back] for values in zip(*results, strict=True))
        rows = [part.rows[i] for part in parts for i in part.comparison.rows]
        truncated, tokens = truncated_and_tokens(rows)
        return RewardScores(mean, variance, truncated[back], tokens[back], baseline)


@dataclass(frozen=True, kw_only=True)
class CandidatesPart(Part):
    """All candidates of a prompt."""

    candidates: Candidates


class Choice(Work[CandidatesPart, BestOfN]):
    """The best of a prompt's candidates by a rule."""

    def __init__(
        self,
        candidates: Candidates,
        rule: str | Mapping[str, Any] | Rule,
        k: float | Literal["tuned"] | None,
        relative: bool,
    ) -> None:
        self.texts = Responses(candidates.prompt, candidates.responses)
        self._candidates, self._rule, self._k, self._relative = candidates, rule, k, relative

    def prepare(self, rm: BayesianRewardModel) -> list[CandidatesPart]:
        """See `Work`."""
        rm.fitted  # noqa: B018  (raises where there is none)
        self._asked = rule_of(self._rule, rm.penalty_weight(self._k, self._relative, self._rule))
        part = _of_candidates(rm, self._candidates)
        check_needs(self._asked, [part.candidates])
        return [part]

    @property
    def key(self) -> Hashable:
        """See `Work`."""
        try:
            hash(self._asked)
        except TypeError:  # a caller's own rule
            return type(self), id(self._asked), self._relative
        return type(self), self._asked, self._relative

    def run(self, rm: BayesianRewardModel, passes: Passes, parts: Sequence[CandidatesPart]) -> list[BestOfN]:
        """See `Work`."""
        sets = [part.candidates for part in parts]
        return choose_each(passes, sets, _rows(parts), rm.fitted, self._asked, relative=self._relative)

    def answer(self, parts: Sequence[CandidatesPart], results: Sequence[BestOfN]) -> BestOfN:
        """See `Work`."""
        return results[0]


class Joint(Work[CandidatesPart, JointRewards]):
    """The joint posterior of a prompt's candidates."""

    def __init__(self, candidates: Candidates) -> None:
        self.texts, self._candidates = Responses(candidates.prompt, candidates.responses), candidates

    def prepare(self, rm: BayesianRewardModel) -> list[CandidatesPart]:
        """See `Work`."""
        rm.fitted  # noqa: B018  (raises where there is none)
        return [_of_candidates(rm, self._candidates)]

    @property
    def key(self) -> Hashable:
        """Its own: gradients of several prompts at once would gain nothing and take memory."""
        return type(self), id(self)

    def run(self, rm: BayesianRewardModel, passes: Passes, parts: Sequence[CandidatesPart]) -> list[JointRewards]:
        """See `Work`."""
        return [joint_rewards(passes, part.rows, rm.fitted) for part in parts]

    def answer(self, parts: Sequence[CandidatesPart], results: Sequence[JointRewards]) -> JointRewards:
        """See `Work`."""
        return results[0]


def _of_candidates(rm: BayesianRewardModel, candidates: Candidates) -> CandidatesPart:
    (one,) = candidate_sets([candidates])
    count = len(one.responses)
    rows = rm.encoder.encode([one.prompt] * count, one.responses, numbered("response", count))
    return CandidatesPart(rows, candidates=one)


def _rows(parts: Sequence[Part]) -> list[TokenizedRow]:
    return [row for part in parts for row in part.rows]
