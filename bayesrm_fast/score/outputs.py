"""Several outputs of a reward model with their uncertainty: preferences chosen afterwards, and Pareto fronts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.passes import Passes, check_finite_variances
from bayesrm_fast.model.readout import OutputsReadout
from bayesrm_fast.posterior.base import Posterior
from bayesrm_fast.score.features import Outside, gradients_of_scalars, resolved_outside
from bayesrm_fast.score.joint import CHUNK, DRAWS, JointRewards
from bayesrm_fast.score.variances import truncated_and_tokens
from bayesrm_fast.text.examples import TokenizedRow
from bayesrm_fast.text.texts import Text

Weights = Sequence[float] | Tensor
Gating = Callable[[Text], Weights]
"""Weights of the outputs by the prompt, as ArmoRM's gating network gives them (Wang et al., arXiv 2406.12845)."""


@dataclass(frozen=True)
class OutputScores:
    """Joint Gaussian over the L outputs of n candidates of one prompt.

    Attributes:
        prompt: theirs.
        mean: `[n, L]`.
        covariance: `[n, L, n, L]`.
        truncated: which rows `max_length` cut, `[n]`, bool.
        tokens: that were read of each row, `[n]`, int64.
        sketch_error, temperature: as for `JointRewards`.
    """

    prompt: Text
    mean: Tensor
    covariance: Tensor
    truncated: Tensor
    tokens: Tensor
    sketch_error: float | None = None
    temperature: float = 1.0

    @property
    def std(self) -> Tensor:  # shape: (n, L)
        """Posterior standard deviations, in each output's own units."""
        return self._flat_covariance.diagonal().sqrt().view_as(self.mean)

    @property
    def _flat_covariance(self) -> Tensor:  # shape: (n · L, n · L)
        return self.covariance.reshape(self.mean.numel(), self.mean.numel())

    def preferred(self, weights: Weights | Gating) -> JointRewards:
        """The joint Gaussian of the rewards `weights · outputs`; costs nothing but that product.

        Args:
            weights: `[L]`, or a function from the prompt to them. Their own uncertainty is not in the result.

        Raises:
            InputError: weights that are not L finite numbers.
        """
        given = weights(self.prompt) if callable(weights) else weights
        outputs = self.mean.shape[1]
        try:
            w = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"weights must be {outputs} finite numbers, one for each output") from error
        if w.shape != (outputs,) or not w.isfinite().all():
            raise InputError(f"weights must be {outputs} finite numbers, one for each output, not {list(w.shape)}")
        covariance = torch.einsum("iajb,a,b->ij", self.covariance.double(), w, w)
        return JointRewards(
            (self.mean.double() @ w).to(self.mean),
            covariance.to(self.mean),
            self.truncated,
            self.tokens,
            self.sketch_error,
            self.temperature,
        )

    def pareto_probability(self, draws: int = DRAWS, seed: int = 0) -> Tensor:  # shape: (n,)
        """Probability that no other candidate is as good in every output and better in one, by Monte Carlo.

        Args:
            draws: from the joint posterior; a probability p has a standard error of `√(p(1 − p) / draws)`.
            seed: of the draws.

        Raises:
            InputError: no whole count of at least 1.
        """
        count, outputs = self.mean.shape
        truncated, tokens = (one.repeat_interleave(outputs) for one in (self.truncated, self.tokens))
        flat = JointRewards(self.mean.flatten(), self._flat_covariance, truncated, tokens)
        found = torch.zeros(count, dtype=torch.int64, device="cpu")
        for drawn in flat.samples(draws, seed).split(max(CHUNK // (count * count * outputs), 1)):
            values = drawn.view(len(drawn), count, outputs)
            at_least = (values[:, None] >= values[:, :, None]).all(3)  # whether [d, i, j] has j as good as i everywhere
            more = (values[:, None] > values[:, :, None]).any(3)
            found += (~(at_least & more).any(2)).sum(0)
        return found.double() / draws


def output_scores(
    passes: Passes,
    rows: Sequence[TokenizedRow],
    prompt: Text,
    outputs: int,
    posterior: Posterior,
    outside: Outside = "auto",
) -> OutputScores:
    """The joint posterior of the outputs, by one forward pass and L backward passes.

    Args:
        passes: the model.
        rows: of one prompt's candidates.
        prompt: theirs.
        outputs: L.
        posterior, outside: as for `whitened_gradients`.

    Raises:
        InputError: an unknown `outside`, or an output or a variance that is NaN or infinite, by its row.
    """
    forward = passes.forward.reading(OutputsReadout(outputs))
    of_outputs = replace(passes, tapped=passes.tapped.with_forward(forward))
    kept = resolved_outside(outside, len(rows) * outputs, passes, posterior)
    features = gradients_of_scalars(of_outputs, rows, posterior, kept)
    covariance, error = features.covariance()
    check_finite_variances(covariance.diagonal(), [row for row in rows for _ in range(outputs)])
    shape = (len(rows), outputs)
    return OutputScores(
        prompt,
        features.mean.view(shape),
        covariance.to(features.mean).view(*shape, *shape),
        *truncated_and_tokens(rows),
        error,
        posterior.temperature,
    )
