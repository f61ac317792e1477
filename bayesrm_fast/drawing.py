"""Candidates that are drawn one after another, until another one is not worth its cost."""

from collections.abc import Sequence

from bayesrm_fast.fitted_model import FittedRewardModel
from bayesrm_fast.select.stopping import Stopping
from bayesrm_fast.text.records import Candidates, candidate_sets
from bayesrm_fast.text.texts import Text


class Drawing:
    """One prompt's candidates as they come; see `Stopping` for when they are enough.

    Args:
        rm: whose rewards.
        prompt: what the candidates respond to.
        stopping: that has seen no candidate.
    """

    def __init__(self, rm: FittedRewardModel, prompt: Text, stopping: Stopping) -> None:
        self._rm, self._prompt, self._stopping = rm, prompt, stopping
        self.responses: list[Text] = []

    def add(self, response: Text) -> bool:
        """Take one more candidate; True once another one is not worth its cost.

        Raises:
            InputError: what `add_all` raises.
        """
        return self.add_all([response])

    def add_all(self, responses: Sequence[Text]) -> bool:
        """Take more candidates, which share batches; True once another one is not worth its cost.

        Raises:
            InputError: no list of at least one, text that cannot be read, or a reward that is NaN; nothing is taken
                then.
        """
        (one,) = candidate_sets([Candidates(self._prompt, responses)])
        for reward in self._rm.rewards([one.prompt] * len(one.responses), one.responses).tolist():
            self._stopping.observe(reward)
        self.responses += one.responses
        return self.is_enough

    @property
    def is_enough(self) -> bool:
        """Whether another candidate is not worth its cost."""
        return self._stopping.should_stop

    @property
    def expected_gain(self) -> float:
        """Of another candidate over the best so far, before its cost; infinite while too few are known."""
        return self._stopping.expected_gain

    @property
    def best(self) -> int:
        """Position of the largest reward so far, the first of equals.

        Raises:
            InputError: no candidate was taken.
        """
        return self._stopping.best
