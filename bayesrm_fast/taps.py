"""One forward and one backward pass that hands every site's `(p, q, offsets)` to a consumer.

A reward depends on its own sequence alone, so the backward pass of a weighted sum of rewards holds every sequence's
gradient at once: at a layer `h = W0 a + s B A a` with cotangent `g = ∂r/∂h` the gradient of A is `Σ_t (s Bᵀg_t) a_tᵀ`
and that of Bᵀ is `Σ_t (s A a_t) g_tᵀ` (docs/maths.md, section 1). No gradient of a parameter is computed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayesrm_fast.batching import TokenBatch
from bayesrm_fast.errors import InputError
from bayesrm_fast.sites import LoraTap, Site, Tap

FIRST_FP16_SCALE = 2.0**14
SMALLEST_FP16_SCALE = 2.0**-10


class Consumer(Protocol):
    """What a pass feeds."""

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Take one site's `p [T, r]`, `q [T, d]` and `offsets [N + 1]`; called once per site and batch."""


class TappedModel:
    """A sequence classifier with its taps, giving the scalar reward `output_weights · logits` of each row.

    The model is left as it was found after every call: training mode, requires_grad, hooks and padding token, also
    after an exception.

    Args:
        model: called with `input_ids`, `attention_mask` and perhaps `token_type_ids`; its result has `.logits [B, L]`.
        taps: the layers that feed the consumer.
        output_weights: weight of each output in the reward, `[L]`.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], output_weights: Tensor) -> None:
        self.model = model
        self.taps = list(taps)
        self.output_weights = output_weights

    @property
    def sites(self) -> list[Site]:
        """The sites of all taps."""
        return [site for tap in self.taps for site in tap.sites]

    def rewards(self, batch: TokenBatch) -> Tensor:  # shape: (B,)
        """Rewards alone, by a forward pass."""
        with _undisturbed(self.model, batch.pad_token_id), torch.no_grad():
            return self._forward(batch)

    def run(
        self,
        batch: TokenBatch,
        cotangent: Callable[[Tensor], Tensor],
        consumer: Consumer,
    ) -> Tensor:  # shape: (B,)
        """Forward, then backward with the rewards' cotangents, every site going through `consumer`.

        Args:
            batch: B rows.
            cotangent: from the rewards `[B]` to their cotangents `[B]`.
            consumer: fed once per site.

        Returns:
            The rewards `[B]`, float32 (float64 for a float64 model), detached.

        Raises:
            InputError: a tapped layer is not called exactly once, or not on the batch's tokens; in float16, gradients
                that overflow at every scale.
        """
        with _undisturbed(self.model, batch.pad_token_id), torch.enable_grad():
            run = _Pass(batch)
            # The hooks stay for the backward pass, because gradient checkpointing runs the layers again there.
            with run.tapping(self.taps):
                rewards = self._forward(batch)
                run.end_forward(self.taps)
                _backward(run, rewards, cotangent(rewards.detach()), consumer)
            return rewards.detach()

    def shared_inputs(self, batch: TokenBatch) -> dict[str, str]:
        """For each tap's name, the first tap that is called on the very same tensor (itself where none is)."""
        with _undisturbed(self.model, batch.pad_token_id), torch.no_grad():
            run = _Pass(batch)
            with run.tapping(self.taps):
                self._forward(batch)
                run.end_forward(self.taps)
            return {tap.name: run.first_on_input[tap.name] for tap in self.taps}

    def _forward(self, batch: TokenBatch) -> Tensor:
        inputs = batch.model_inputs()
        if getattr(self.model.config, "use_cache", None):
            inputs["use_cache"] = False  # type: ignore[assignment]
        logits: Tensor = self.model(**inputs).logits
        dtype = torch.promote_types(logits.dtype, torch.float32)
        # A copy, because weights made under inference mode could not be kept for the backward pass.
        return logits.to(dtype) @ self.output_weights.to(logits.device, dtype, copy=True)


def _backward(run: "_Pass", rewards: Tensor, cotangents: Tensor, consumer: Consumer) -> None:
    if not run.has_half_outputs:
        run.receive = lambda tap, a, g: run.feed(consumer, tap, a, g, 1.0)
        torch.autograd.grad(rewards, run.root, cotangents, allow_unused=True)
        return
    # float16 gradients underflow unscaled and overflow scaled too far, which shows only once it has happened: nothing
    # reaches the consumer before the whole backward pass is known to be finite.
    scale = FIRST_FP16_SCALE
    while scale >= SMALLEST_FP16_SCALE:
        held: list[tuple[Tap, Tensor, Tensor]] = []
        run.receive = _appending_to(held)
        torch.autograd.grad(rewards, run.root, cotangents * scale, allow_unused=True, retain_graph=True)
        if all(bool(g.isfinite().all()) for _, _, g in held):
            for tap, a, g in held:
                run.feed(consumer, tap, a, g, scale)
            return
        scale /= 16
    raise InputError("float16 gradients overflow; load the model in bfloat16 or float32")


def _appending_to(held: list[tuple[Tap, Tensor, Tensor]]) -> Callable[[Tap, Tensor, Tensor], None]:
    return lambda tap, a, g: held.append((tap, a, g))


@dataclass
class _Pass:
    """State of one forward and backward pass."""

    batch: TokenBatch
    root: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    receive: Callable[[Tap, Tensor, Tensor], None] = field(default=lambda tap, a, g: None)
    calls: dict[str, int] = field(default_factory=dict)
    first_on_input: dict[str, str] = field(default_factory=dict)
    has_half_outputs: bool = False
    in_forward: bool = True
    _inputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mask = self.batch.attention_mask.bool()
        step = self.batch.rows_per_segment
        self.mask = None if bool(mask.all()) else mask
        lengths = mask.sum(1)
        self.token_offsets = _offsets(lengths)[::step]
        self.row_offsets = _offsets(torch.ones_like(lengths))[::step]

    @contextlib.contextmanager
    def tapping(self, taps: Sequence[Tap]) -> Iterator[None]:
        handles = []
        try:
            for tap in taps:
                handles.append(tap.module.register_forward_hook(self._hook(tap)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, tap: Tap) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            activations: Tensor = args[0]
            if self.in_forward:
                self.calls[tap.name] = self.calls.get(tap.name, 0) + 1
                # Holding the input keeps its id from being given to another tensor while the forward pass runs.
                self.first_on_input[tap.name] = self._inputs.setdefault(id(activations), (tap.name, activations))[0]
                self.has_half_outputs |= output.dtype == torch.float16
            if not torch.is_grad_enabled():
                return output
            return _TapFunction.apply(output, activations.detach(), self.root, self, tap)  # type: ignore[no-any-return]

        return hook

    def end_forward(self, taps: Sequence[Tap]) -> None:
        """Let go of the inputs, and refuse layers that were not called exactly once."""
        self.in_forward = False
        self._inputs.clear()
        wrong = [tap.name for tap in taps if self.calls.get(tap.name, 0) != 1]
        if wrong:
            raise InputError(
                f"cannot serve layers that a forward pass does not call exactly once: {', '.join(wrong[:8])}"
            )

    def feed(self, consumer: Consumer, tap: Tap, a: Tensor, g: Tensor, scale: float) -> None:
        """Turn a layer's inputs and cotangents into its sites' `(p, q, offsets)`."""
        a, offsets = self._tokens(tap, a)
        g, _ = self._tokens(tap, g)
        if scale != 1.0:
            g = g.float() / scale
        dtype = torch.promote_types(a.dtype, torch.float32)
        if isinstance(tap, LoraTap):
            site_a, site_b = tap.sites
            s = tap.scaling
            consumer.consume(site_a, (g.to(dtype) @ tap.up.detach().to(dtype)) * s, a, offsets)
            consumer.consume(site_b, (a.to(dtype) @ tap.down.detach().to(dtype).T) * s, g, offsets)
        else:
            if offsets is self.token_offsets:
                a, g = self._scored_tokens(a, g)
            consumer.consume(tap.sites[0], g.to(dtype), a, self.row_offsets)

    def _tokens(self, tap: Tap, x: Tensor) -> tuple[Tensor, Tensor]:  # shapes: (tokens, features), (N + 1,)
        """The real tokens of a layer's input or cotangent, and their segments."""
        rows, length = self.batch.input_ids.shape
        flat = x.reshape(-1, x.shape[-1])
        if x.dim() == 2 and flat.shape[0] == rows:  # a pooler or a head: one vector a row
            return flat, self.row_offsets
        if flat.shape[0] != rows * length:
            raise InputError(f"cannot serve {tap.name}: it is called on {list(x.shape)}, not on the batch's tokens")
        return (flat if self.mask is None else flat[self.mask.to(x.device).reshape(-1)]), self.token_offsets

    def _scored_tokens(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The one token of each row that its reward reads.

        A decoder's head is called on every token and read at one. Averaging activations over the others would give
        KFAC's input factor tokens that the head's gradient never sees.
        """
        lengths = self.batch.attention_mask.sum(1)
        row = torch.repeat_interleave(torch.arange(len(lengths), device=a.device), lengths.to(a.device))
        starts = _offsets(lengths)[:-1].to(a.device)
        size = g.abs().sum(-1)
        peak = torch.zeros(len(lengths), dtype=size.dtype, device=a.device).scatter_reduce(0, row, size, "amax")
        position = torch.arange(len(row), device=a.device)
        at_peak = torch.where(size == peak[row], position, len(row))
        chosen = torch.full_like(starts, len(row)).scatter_reduce(0, row, at_peak, "amin")
        return a[chosen], g[chosen]


class _TapFunction(torch.autograd.Function):
    """Identity on a layer's output; its backward sees the output's cotangent beside the layer's input.

    `root` requires a gradient and nothing else needs to: the graph then begins at the first tapped layer, and nothing
    is kept for the layers under it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, activations: Tensor, root: Tensor, run: _Pass, tap: Tap) -> Tensor:
        ctx.save_for_backward(activations)
        ctx.run, ctx.tap = run, tap
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        (activations,) = ctx.saved_tensors
        ctx.run.receive(ctx.tap, activations, grads[0])
        return grads[0], None, None, None, None


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


@contextlib.contextmanager
def _undisturbed(model: nn.Module, pad_token_id: int) -> Iterator[None]:
    """Evaluation mode, no parameter gradients and a padding token; everything as it was afterwards."""
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    padding = config.pad_token_id
    checkpointed = [
        m
        for m in model.modules()
        if getattr(m, "gradient_checkpointing", False) and hasattr(m, "_gradient_checkpointing_func")
    ]
    functions = [module._gradient_checkpointing_func for module in checkpointed]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        config.pad_token_id = pad_token_id
        for module in checkpointed:
            # transformers recomputes a layer only while the layer itself is in training mode.
            module.training = True
            module._gradient_checkpointing_func = _checkpoint_in_evaluation(module)  # type: ignore[assignment]
        yield
    finally:
        for module, function in zip(checkpointed, functions, strict=True):
            module._gradient_checkpointing_func = function
            module.training = False
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)
        config.pad_token_id = padding


def _checkpoint_in_evaluation(layer: nn.Module) -> Callable[..., Any]:
    """A checkpointing function under which `layer` runs, and is run again, as in evaluation mode."""

    def run(function: Callable[..., Any], *args: Any) -> Any:
        def evaluate(*inner: Any) -> Any:
            layer.training = False
            try:
                return function(*inner)
            finally:
                layer.training = True

        return checkpoint(evaluate, *args, use_reentrant=False)

    return run
