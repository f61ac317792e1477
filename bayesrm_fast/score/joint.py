"""The joint posterior of one prompt's candidates, and what follows from it for a choice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.passes import Passes, check_finite_variances
from bayesrm_fast.plots import POSTERIOR, figure_in
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.posterior.probit import label_entropy, probit_probability
from bayesrm_fast.score.features import Outside, gradients_of_scalars, whitened_gradients
from bayesrm_fast.score.variances import truncated_and_tokens
from bayesrm_fast.text.examples import TokenizedRow, distinct

DRAWS = 65_536
"""Of the joint posterior. A probability near ½ is then known to 0.002."""

MOST_DRAWS = 2**20
"""That a rule may ask for: a probability near ½ is then known to 0.0005."""

CHUNK = 2**24
"""Numbers drawn at a time."""

MOST_CONTENDERS = 32
"""Candidates among whose pairs the next comparison is looked for: those that are most probably the best."""

MOST_PLOTTED = 30
"""Candidates of a plot: those that are most probably the best."""


@dataclass(frozen=True)
class JointRewards:
    """Joint Gaussian over the rewards of n candidates of one prompt.

    What is drawn from it is drawn by a seed of its own, so that it is the same every time.

    Attributes:
        mean: `[n]`.
        covariance: `[n, n]`, positive semi-definite; its diagonal is exact.
        truncated: which rows `max_length` cut, `[n]`, bool.
        tokens: that were read of each row, after it was cut, `[n]`, int64.
        sketch_error: None where the covariance is exact. Where its part outside of the posterior's bases was sketched,
            the root mean square of the sketch's relative error, measured on the squared norms, which are known.
        temperature: T of the preference probabilities, from `calibrate`.
    """

    mean: Tensor
    covariance: Tensor
    truncated: Tensor
    tokens: Tensor
    sketch_error: float | None = None
    temperature: float = 1.0

    def relative(self) -> "JointRewards":
        """The joint Gaussian of the rewards' differences to their mean, whatever constant the prompt adds to all.

        It says the same of a choice: probabilities of being best, regrets and preferences do not change. Where the
        covariance was sketched, its diagonal is no longer exact, and relative to the smaller variances of differences
        the error is larger than `sketch_error`; `score(…, relative_to="prompt")` has them exactly.
        """
        mean = self.mean.double()
        rows = self.covariance.double()
        centred = rows - rows.mean(0)
        centred = centred - centred.mean(1, keepdim=True)
        # Of candidates that hardly differ nothing but rounding is left, of either sign.
        centred.diagonal().clamp_(min=0)
        return replace(self, mean=(mean - mean.mean()).to(self.mean), covariance=centred.to(self.covariance))

    def at(self, positions: Tensor) -> "JointRewards":  # shape: (m,)
        """The joint Gaussian of some of them."""
        covariance = self.covariance[positions][:, positions]
        return replace(
            self,
            mean=self.mean[positions],
            covariance=covariance,
            truncated=self.truncated[positions],
            tokens=self.tokens[positions],
        )

    def samples(self, count: int, seed: int = 0) -> Tensor:  # shape: (count, n)
        """Draws of all rewards together; the best candidate of one draw is Thompson's choice.

        Raises:
            InputError: no whole count of at least 1.
        """
        return torch.cat(list(self._draws(count, seed))).to(self.mean.dtype)

    def probability_of_being_best(self, draws: int = DRAWS, seed: int = 0) -> Tensor:  # shape: (n,)
        """Probability that each candidate has the largest reward, by Monte Carlo; sums to one.

        A probability p has a standard error of `√(p(1 − p) / draws)`. Of candidates that are equal in every draw, up to
        rounding, the first counts as the best.
        """
        wins = torch.zeros(len(self.mean), dtype=torch.int64, device="cpu")
        for rewards in self._draws(draws, seed):
            wins += torch.bincount(self._winners(rewards), minlength=len(wins))
        return wins.double() / draws

    def expected_regret(self, draws: int = DRAWS, seed: int = 0) -> Tensor:  # shape: (n,)
        """`E[max_j r_j] − E[r_i]`, what choosing candidate i is expected to lose, in units of the reward."""
        mean = self.mean.double()
        # Only how far the maximum is above one fixed candidate's reward is drawn; the means are exact.
        best = int(mean.argmax())
        excess = sum(float((r.amax(1) - r[:, best]).sum()) for r in self._draws(draws, seed)) / draws
        return mean[best] + excess - mean

    def preference_probability(self) -> Tensor:  # shape: (n, n)
        """Probability that candidate i is preferred to candidate j, as `PairScores.probability`; ½ on the diagonal."""
        variance = self.covariance.diagonal()
        spread = (variance[:, None] + variance - 2 * self.covariance).clamp(min=0)
        return probit_probability(self.mean[:, None] - self.mean, spread, self.temperature)

    def next_comparison(self, draws: int = DRAWS // 4, seed: int = 0) -> tuple[int, int, float]:
        """The two candidates whose comparison by a labeller says most about which candidate is the best.

        The mutual information `H(y) − E_w[H(y | w)]` between a pair's label y, `p(y) = σ((r_i − r_j) / T)`, and the
        winner w among all candidates (Lindley, *On a measure of the information provided by an experiment*, 1956), by
        Monte Carlo over the pairs of the candidates that are most probably the best.

        Returns:
            Positions of the two, the more probable winner first, and the information in nats.

        Raises:
            InputError: fewer than two candidates.
        """
        if len(self.mean) < 2:
            raise InputError("a comparison needs at least two candidates")
        rewards = torch.cat(list(self._draws(draws, seed)))
        winner = self._winners(rewards)
        counts = torch.bincount(winner, minlength=len(self.mean))
        by_mean = self.mean.double().argsort(descending=True, stable=True)
        order = by_mean[counts[by_mean].argsort(descending=True, stable=True)]
        contenders = order[:MOST_CONTENDERS]
        count = len(contenders)
        first, second = torch.triu_indices(count, count, 1, dtype=torch.int64, device="cpu")
        among = rewards[:, contenders]
        group = torch.full_like(counts, count)
        group[contenders] = torch.arange(count, dtype=torch.int64, device="cpu")
        member = torch.nn.functional.one_hot(group[winner], count + 1).to(rewards)  # shape: (S, W)
        members = member.sum(0)
        information = torch.empty(len(first), dtype=torch.float64, device="cpu")
        step = max(CHUNK // draws, 1)
        for start in range(0, len(first), step):
            i, j = first[start : start + step], second[start : start + step]
            preferred = torch.sigmoid((among[:, i] - among[:, j]) / self.temperature)  # shape: (S, pairs)
            given = (member.T @ preferred / members.clamp(min=1)[:, None]).double()
            conditional = (members.double()[:, None] / draws * label_entropy(given)).sum(0)
            information[start : start + step] = label_entropy(preferred.double().mean(0)) - conditional
        at = int(information.argmax())
        return int(contenders[first[at]]), int(contenders[second[at]]), max(float(information[at]), 0.0)

    def plot(self, path: str | Path) -> None:
        """Draw which candidates are the best, and with what probability, into a file.

        On the left each one's mean, with one std to either side, of its difference to all candidates' mean; see
        `relative` for what that std is where the covariance was sketched. The most probable candidate is at the top.

        Raises:
            InputError: there is no matplotlib, or the file cannot be written.
        """
        probability = self.probability_of_being_best()
        by_mean = self.mean.double().argsort(descending=True, stable=True)
        order = by_mean[probability[by_mean].argsort(descending=True, stable=True)][:MOST_PLOTTED]
        shown = self.relative().at(order)
        mean, std = shown.mean.double().numpy(), shown.covariance.diagonal().double().sqrt().numpy()
        places = range(len(order))
        count = len(self.mean)
        with figure_in(path, 9.5, 1.8 + 0.26 * len(order)) as figure:
            rewards, best = figure.subplots(1, 2, sharey=True)
            rewards.hlines(places, mean - std, mean + std, color=POSTERIOR, alpha=0.35, lw=4)
            rewards.plot(mean, places, "o", color=POSTERIOR, ms=5)
            rewards.set_yticks(places, order.tolist())
            rewards.set_ylim(len(order) - 0.5, -0.5)
            rewards.set(xlabel="reward less the candidates’ mean, ± std", ylabel="candidate")
            best.barh(places, probability[order].numpy(), color=POSTERIOR)
            best.set(xlabel="probability of being the best", xlim=(0, 1))
            if len(order) < count:
                figure.suptitle(f"the {len(order)} most probable of {count} candidates")
            for axis in (rewards, best):
                axis.spines[["top", "right"]].set_visible(False)

    def _winners(self, rewards: Tensor) -> Tensor:  # shapes: (S, n) -> (S,)
        """Position of the largest reward of each draw, the lowest one of equals."""
        # An eigenvalue of zero comes out as the rounding of float64, and its root, which is drawn by, as float32's.
        rounding = torch.finfo(torch.float32).eps * self.covariance.diagonal().double().max().clamp(min=0).sqrt()
        rounding = rounding + torch.finfo(self.mean.dtype).eps * self.mean.double().abs().max()
        is_largest = rewards >= rewards.amax(1, keepdim=True) - 8 * rounding
        return (is_largest * torch.arange(len(self.mean), 0, -1, dtype=torch.int64, device="cpu")).argmax(1)

    def _draws(self, count: int, seed: int) -> Iterator[Tensor]:  # shape of each: (…, n)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"the number of draws must be a whole number of at least 1, not {count!r}")
        generator = torch.Generator().manual_seed(seed)
        values, vectors = torch.linalg.eigh(self.covariance.double())
        root = vectors * values.clamp(min=0).sqrt()
        step = max(CHUNK // len(self.mean), 1)
        for start in range(0, count, step):
            shape = (min(step, count - start), len(self.mean))
            noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            yield self.mean.double() + noise @ root.T


def joint_rewards(
    passes: Passes, rows: Sequence[TokenizedRow], posterior: Posterior, outside: Outside = "auto"
) -> JointRewards:
    """The joint posterior of the rows' rewards.

    The covariance is the inner products of whitened gradients; arguments as for `whitened_gradients`. Those of equal
    rows are computed once, so that they are equal to the last digit.

    Raises:
        InputError: an unknown `outside`, or a reward or a variance that is NaN or infinite, by its row.
    """
    first, where = distinct(rows)
    features = whitened_gradients(passes, [rows[i] for i in first], posterior, outside)
    covariance, error = features.covariance()
    mean, covariance = features.mean[where], covariance[where][:, where].to(features.mean)
    check_finite_variances(covariance.diagonal(), rows)
    return JointRewards(mean, covariance, *truncated_and_tokens(rows), error, posterior.temperature)


def joint_scores(
    passes: Passes, rows: Sequence[TokenizedRow], posterior: Posterior, outside: Outside = "auto"
) -> list[JointRewards]:
    """For each row the joint posterior of its S scalars, by one forward pass and S backward passes over all rows.

    Args:
        passes, posterior, outside: as for `whitened_gradients`.
        rows: each read at as many tokens as the others.

    Raises:
        InputError: what `joint_rewards` raises.
    """
    features = gradients_of_scalars(passes, rows, posterior, outside)
    found = []
    for row, own in zip(rows, features.split(len(features.mean) // len(rows)), strict=True):
        covariance, error = own.covariance()
        covariance = covariance.to(own.mean)
        check_finite_variances(covariance.diagonal(), [row] * len(covariance))
        whole = truncated_and_tokens([row] * len(covariance))
        found.append(JointRewards(own.mean, covariance, *whole, error, posterior.temperature))
    return found
