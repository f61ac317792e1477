"""One forward and one backward pass that hands every site's `(p, q, offsets)` to a consumer.

A reward depends on its own sequence alone, so the backward pass of a weighted sum of rewards holds every sequence's
gradient at once: at a layer `h = W0 a + s B A a` with cotangent `g = ∂r/∂h` the gradient of A is `Σ_t (s Bᵀg_t) a_tᵀ`
and that of Bᵀ is `Σ_t (s A a_t) g_tᵀ` (docs/maths.md, section 1). No gradient of a parameter is computed. A virtual
adapter's only site is the second, with A fixed and s = 1.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.head import HeadTap
from bayesrm_fast.model.layers import class_name, last_layer
from bayesrm_fast.model.tap_pass import Seen, Tap, TapPass
from bayesrm_fast.sites import Consumer, Site
from bayesrm_fast.text.batches import TokenBatch

C = TypeVar("C", bound=Consumer)

FIRST_FP16_SCALE = 2.0**14
SMALLEST_FP16_SCALE = 2.0**-10


class TappedModel:
    """A reward model with its taps.

    The model is left as it was found after every call: training mode, requires_grad, hooks and padding token, also
    after an exception.

    Args:
        forward: the model and the scalars that are read from it.
        taps: the layers that feed the consumer.
    """

    def __init__(self, forward: Forward, taps: Sequence[Tap]) -> None:
        self.forward = forward
        self.taps = list(taps)

    def with_forward(self, forward: Forward) -> "TappedModel":
        """The same taps of a model that is read otherwise."""
        return TappedModel(forward, self.taps)

    @property
    def sites(self) -> list[Site]:
        """The sites of all taps."""
        return [site for tap in self.taps for site in tap.sites]

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Of the sites' gradients: float64 where weights are, float32 otherwise."""
        doubles = any(weight.dtype == torch.float64 for tap in self.taps for weight in tap.weights)
        return torch.float64 if doubles else torch.float32

    def in_last_layer(self) -> "TappedModel | None":
        """The taps of the last layer and of the head alone, where their backward pass costs next to nothing.

        It does where that layer works at the scored token alone; None where it does not, or where there is no tap.
        """
        layer = last_layer(self.forward.model)
        if layer is None or self.forward.shortcuts.scored_token is None:
            return None
        modules = set(layer.modules())
        taps = [tap for tap in self.taps if isinstance(tap, HeadTap) or tap.module in modules]
        return TappedModel(self.forward, taps) if taps else None

    def run(
        self,
        batch: TokenBatch,
        cotangent: Callable[[Tensor], Tensor],
        make_consumer: Callable[[], C],
        *,
        checkpoints: bool = False,
    ) -> tuple[Tensor, list[C]]:  # shape: (N, S)
        """One forward pass, and for each of the S scalars one backward pass with every site going through a consumer.

        An example's scalar is its rows' one, weighted by their signs.

        Args:
            batch: of N examples.
            cotangent: from the examples' scalars `[N]` to their cotangents `[N]`.
            make_consumer: gives the consumer of each backward pass.
            checkpoints: run the layers again in the backward pass, to save what they would keep.

        Returns:
            The scalars, float32 (float64 for a float64 model), detached; and the S consumers.

        Raises:
            InputError: a tapped layer is not called exactly once in a call of the model, or not on the batch's tokens;
                autograd does not see them; in float16, gradients that overflow at every scale.
        """
        consumers = [make_consumer()]
        gradients_alone = consumers[0].gradients_alone
        prepared = self.forward.prepared(batch, every_token=not gradients_alone, checkpoints=checkpoints)
        with self._refusing_what_has_no_gradient(), prepared, torch.enable_grad():
            run = TapPass(batch, self.forward.calls(batch), drops_padding=not gradients_alone)
            # The hooks stay for the backward pass, because gradient checkpointing runs the layers again there.
            with run.tapping(self.taps):
                scalars = _of_examples(self.forward(batch), batch.signs)
                run.end_forward(self.taps)
                count = scalars.shape[1]
                consumers += [make_consumer() for _ in range(count - 1)]
                if self.taps:  # otherwise nothing requires a gradient
                    if not scalars.requires_grad:  # Reformer's reversible layers run without autograd
                        raise InputError(
                            f"cannot serve {class_name(self.forward.model)}: autograd does not see its adapted layers"
                        )
                    for column, consumer in enumerate(consumers):
                        one = scalars[:, column]
                        _backward(run, one, cotangent(one.detach()), consumer, is_last=column == count - 1)
            return scalars.detach(), consumers

    @contextlib.contextmanager
    def _refusing_what_has_no_gradient(self) -> Iterator[None]:
        try:
            yield
        except NotImplementedError as error:  # flex attention on a CPU
            raise InputError(f"cannot serve {class_name(self.forward.model)}: {error}") from error

    def shared_inputs(self, batch: TokenBatch) -> dict[str, str]:
        """For each tap's name, the first tap that is called on the very same tensor (itself where none is)."""
        with self.forward.prepared(batch, every_token=True), torch.no_grad():
            run = TapPass(batch, self.forward.calls(batch), drops_padding=True)
            with run.tapping(self.taps):
                self.forward(batch)
                run.end_forward(self.taps)
            return {tap.name: run.first_on_input[tap.name] for tap in self.taps}


def _of_examples(scalars: Tensor, signs: Sequence[float]) -> Tensor:  # (B, S) -> (N, S)
    if signs == (1.0,):
        return scalars
    weights = torch.tensor(signs, dtype=scalars.dtype, device=scalars.device)
    return (scalars.view(-1, len(signs), scalars.shape[1]) * weights[:, None]).sum(1)


def _backward(run: TapPass, scalars: Tensor, cotangents: Tensor, consumer: Consumer, is_last: bool) -> None:
    if not run.has_half_outputs:
        with run.receiving(lambda seen: run.feed(consumer, seen, 1.0)):
            torch.autograd.grad(scalars, run.root, cotangents, allow_unused=True, retain_graph=not is_last)
        return
    # float16 gradients underflow unscaled and overflow scaled too far, which shows only once it has happened: nothing
    # reaches the consumer before the whole backward pass is known to be finite.
    scale = FIRST_FP16_SCALE
    while scale >= SMALLEST_FP16_SCALE:
        held: list[Seen] = []
        with run.receiving(held.append):
            torch.autograd.grad(scalars, run.root, cotangents * scale, allow_unused=True, retain_graph=True)
        if all(seen.is_finite() for seen in held):
            with torch.no_grad():  # what a consumer keeps would keep the whole pass, as in a backward pass it does not
                for seen in held:
                    run.feed(consumer, seen, scale)
            return
        scale /= 16
    raise InputError("float16 gradients overflow; load the model in bfloat16 or float32")
