"""A rule as the command line gives it, and what fills in what its candidates need."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesrm_fast.cli.arguments import number
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from torch.nn import Module

    from bayesrm_fast.reward_model import BayesianRewardModel
    from bayesrm_fast.select.rules import Rule
    from bayesrm_fast.text.records import Candidates

RuleText = Annotated[
    str, typer.Option("--rule", help="A rule's name, such as mean, std, soft or rbon_wd, or its description as JSON.")
]
Weight = Annotated[str, typer.Option("--k", help="Weight of a named rule's penalty: a number, or tuned.")]
Similarity = Annotated[
    str | None, typer.Option("--similarity", help="Sentence encoder, for rules that read similarities.")
]
Policy = Annotated[
    str | None, typer.Option("--policy", help="Causal language model, for rules that read log-probabilities.")
]


@dataclass(frozen=True)
class Choosing:
    """What is asked for, checked before any model is loaded.

    Args:
        rule: a name, or an object of JSON.
        k: a number, or "tuned".
        relative: whether means and variances are of the difference to the prompt's candidates.
        similarity, policy: names or folders of models; None where rows bring what the rule reads.

    Raises:
        InputError: an unknown rule, a k that is none, or a model that the rule has no use for.
    """

    rule: str
    k: str
    relative: bool
    similarity: str | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        from bayesrm_fast.select.choice import check_needs
        from bayesrm_fast.select.rules import Need

        asked = self.asked(1.0 if self.k == "tuned" else number("k", self.k))
        check_needs(asked, [])
        for option, need in (("similarity", Need.SIMILARITIES), ("policy", Need.LOG_PROBABILITIES)):
            if getattr(self, option) is not None and need not in asked.needs:
                raise InputError(f"--{option} is for rules that read {need}, and {self.rule} does not")

    def asked(self, k: float) -> "Rule":
        """The rule with a weight."""
        from bayesrm_fast.select.named_rules import rule_of

        return rule_of(self.rule, k)

    def checked(self, sets: "Iterable[Candidates]") -> int:
        """How many rows there are; raises InputError for one that lacks what the rule reads and no model brings."""
        from bayesrm_fast.select.choice import check_needs

        asked, count = self.asked(1.0), 0
        for one in sets:
            count += 1
            brought = replace(
                one,
                similarities=[] if self.similarity else one.similarities,
                log_probabilities=[] if self.policy else one.log_probabilities,
            )
            check_needs(asked, [brought])
        return count

    def of(self, loaded: "BayesianRewardModel") -> "Rule":
        """The rule with its weight as a number, for a model that may have tuned it."""
        weight = self.k if self.k == "tuned" else number("k", self.k)
        return self.asked(loaded.penalty_weight(weight, self.relative, self.rule))

    def options(self, rule: "Rule") -> dict[str, Any]:
        """By which a resumed run is known to be the same."""
        from bayesrm_fast.select.named_rules import description_of

        named = {"relative": self.relative, "similarity": self.similarity, "policy": self.policy}
        return {"rule": description_of(rule), **named}


class Completion:
    """Fills in similarities and log-probabilities, by models that are loaded once.

    Attributes:
        weights: hashes of theirs, by which a resumed run is known to have the same models under their names.

    Raises:
        InputError: a model that cannot be loaded.
    """

    def __init__(self, choosing: Choosing) -> None:
        self._models: list[Any] = []
        self.weights: dict[str, str] = {}
        if choosing.similarity is not None:
            from bayesrm_fast.proximity.similarity import SentenceSimilarities

            encoder = SentenceSimilarities(choosing.similarity)
            self._models.append(encoder)
            self.weights["weights of the sentence encoder"] = _digest(encoder.encoder)
        if choosing.policy is not None:
            from bayesrm_fast.proximity.log_probability import PolicyLogProbabilities

            policy = PolicyLogProbabilities.from_pretrained(choosing.policy)
            self._models.append(policy)
            self.weights["weights of the policy"] = _digest(policy.model)

    def __call__(self, sets: "Sequence[Candidates]") -> "Sequence[Candidates]":
        """The same candidates with what they lacked."""
        for model in self._models:
            sets = model.add(sets)
        return sets


def _digest(model: "Module") -> str:
    from bayesrm_fast.model.fingerprint import joined_digest, rounded_digest

    return joined_digest({name: rounded_digest(weight) for name, weight in model.state_dict().items()})
