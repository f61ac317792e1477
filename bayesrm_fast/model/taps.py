"""One forward and one backward pass that hands every site's `(p, q, offsets)` to a consumer.

A reward depends on its own sequence alone, so the backward pass of a weighted sum of rewards holds every sequence's
gradient at once: at a layer `h = W0 a + s B A a` with cotangent `g = ∂r/∂h` the gradient of A is `Σ_t (s Bᵀg_t) a_tᵀ`
and that of Bᵀ is `Σ_t (s A a_t) g_tᵀ` (docs/maths.md, section 1). No gradient of a parameter is computed. A virtual
adapter's only site is the second, with A fixed and s = 1.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.calls import Call, joined, loses
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.head import HeadTap
from bayesrm_fast.model.layers import class_name, last_layer, refuse
from bayesrm_fast.model.lora import LoraTap
from bayesrm_fast.model.virtual import VirtualTap
from bayesrm_fast.sites import Consumer, Site
from bayesrm_fast.text.batches import TokenBatch

Tap = LoraTap | VirtualTap | HeadTap

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
            run = _Pass(batch, self.forward.calls(batch), drops_padding=not gradients_alone)
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
            run = _Pass(batch, self.forward.calls(batch), drops_padding=True)
            with run.tapping(self.taps):
                self.forward(batch)
                run.end_forward(self.taps)
            return {tap.name: run.first_on_input[tap.name] for tap in self.taps}


def _of_examples(scalars: Tensor, signs: Sequence[float]) -> Tensor:  # (B, S) -> (N, S)
    if signs == (1.0,):
        return scalars
    weights = torch.tensor(signs, dtype=scalars.dtype, device=scalars.device)
    return (scalars.view(-1, len(signs), scalars.shape[1]) * weights[:, None]).sum(1)


def _backward(run: "_Pass", scalars: Tensor, cotangents: Tensor, consumer: Consumer, is_last: bool) -> None:
    if not run.has_half_outputs:
        with run.receiving(lambda seen: run.feed(consumer, seen, 1.0)):
            torch.autograd.grad(scalars, run.root, cotangents, allow_unused=True, retain_graph=not is_last)
        return
    # float16 gradients underflow unscaled and overflow scaled too far, which shows only once it has happened: nothing
    # reaches the consumer before the whole backward pass is known to be finite.
    scale = FIRST_FP16_SCALE
    while scale >= SMALLEST_FP16_SCALE:
        held: list[_Seen] = []
        with run.receiving(held.append):
            torch.autograd.grad(scalars, run.root, cotangents * scale, allow_unused=True, retain_graph=True)
        if all(seen.is_finite() for seen in held):
            with torch.no_grad():  # what a consumer keeps would keep the whole pass, as in a backward pass it does not
                for seen in held:
                    run.feed(consumer, seen, scale)
            return
        scale /= 16
    raise InputError("float16 gradients overflow; load the model in bfloat16 or float32")


@dataclass(frozen=True)
class _Seen:
    """What a backward pass has seen at a tap: the layer's input, or its `A a` for a virtual adapter, and its output's
    cotangent.

    For LoRA also `A a` and its cotangent `s Bᵀ g`, which autograd computes anyway: no product is computed twice.
    `call` is the model's call that it was seen in.
    """

    tap: Tap
    call: int
    a: Tensor
    g: Tensor
    down: Tensor | None = None
    down_cotangent: Tensor | None = None

    def is_finite(self) -> bool:
        cotangents = [self.g] if self.down_cotangent is None else [self.g, self.down_cotangent]
        return all(bool(g.isfinite().all()) for g in cotangents)


@dataclass
class _Pass:
    """State of one forward and backward pass."""

    batch: TokenBatch
    model_calls: Sequence[Call]
    drops_padding: bool
    root: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True))
    receive: Callable[[_Seen], None] | None = None
    calls: dict[str, int] = field(default_factory=dict)
    downs: set[str] = field(default_factory=set)
    first_on_input: dict[str, str] = field(default_factory=dict)
    cotangents: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    has_half_outputs: bool = False
    in_forward: bool = True
    _inputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    _called_on: dict[str, Tensor] = field(default_factory=dict)
    _projected: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    _waiting: dict[str, list[_Seen]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mask = self.batch.attention_mask.bool()
        rows, length = mask.shape
        step = len(self.batch.signs)
        self.mask = mask if self.drops_padding and not bool(mask.all()) else None
        lengths = (
            torch.full((rows,), length, dtype=torch.int64, device=mask.device) if self.mask is None else mask.sum(1)
        )
        self.token_offsets = _offsets(lengths)[::step]
        self.row_offsets = _offsets(torch.ones_like(lengths))[::step]

    @contextlib.contextmanager
    def tapping(self, taps: Sequence[Tap]) -> Iterator[None]:
        lora = [tap for tap in taps if isinstance(tap, LoraTap)]
        refuse([tap.name for tap in lora if tap.has_hooks], "hooks of others on the two matrices of LoRA")
        handles = []
        try:
            for tap in taps:
                handles.append(tap.module.register_forward_pre_hook(self._entering(tap)))
                if isinstance(tap, LoraTap):
                    handles.append(tap.down_module.register_forward_hook(self._leaving_down(tap), prepend=True))
                # Before hooks of others, which may change the output: B's gradient is with what the layer itself gave.
                handles.append(tap.module.register_forward_hook(self._leaving(tap), prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._let_go_of_tensors()

    @contextlib.contextmanager
    def receiving(self, receive: Callable[[_Seen], None]) -> Iterator[None]:
        """Hand what the taps see to `receive`, and forget it: it knows this pass and the consumer, which a cycle of
        references would keep alive.
        """
        self.receive = receive
        try:
            yield
        finally:
            self.receive = None

    def _let_go_of_tensors(self) -> None:
        """They know their graph, which knows this pass."""
        self._inputs.clear()
        self._called_on.clear()
        self._projected.clear()
        self._waiting.clear()

    def _entering(self, tap: Tap) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            a: Tensor = args[0]
            self._called_on[tap.name] = a.detach()
            if self.in_forward:
                self.calls[tap.name] = self.calls.get(tap.name, 0) + 1
                # Holding the input keeps its id from being given to another tensor while the forward pass runs.
                self.first_on_input[tap.name] = self._inputs.setdefault(id(a), (tap.name, a))[0]

        return hook

    def _leaving_down(self, tap: LoraTap) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if self.in_forward:
                self.downs.add(tap.name)
            if not torch.is_grad_enabled():
                return output
            a, call = self._called_on[tap.name], self.calls[tap.name] - 1
            return _DownTap.apply(output, a, self.root, self, tap, call)  # type: ignore[no-any-return]

        return hook

    def _leaving(self, tap: Tap) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            a = self._called_on.pop(tap.name)
            if self.in_forward:
                self.has_half_outputs |= output.dtype == torch.float16
            if not torch.is_grad_enabled():
                return output
            kept = self._projection(tap, a) if isinstance(tap, VirtualTap) else a
            call = self.calls[tap.name] - 1
            return _OutputTap.apply(output, kept, self.root, self, tap, call)  # type: ignore[no-any-return]

        return hook

    def _projection(self, tap: VirtualTap, a: Tensor) -> Tensor:  # shape: (…, r)
        """`A a`; one product, and one tensor that is kept, for the layers that share input and A."""
        down = tap.down.to(a.dtype)
        if not self.in_forward:
            return a @ down.T
        key = (self.first_on_input[tap.name], id(tap.down), self.calls[tap.name])
        if key not in self._projected:
            self._projected[key] = a @ down.T
        return self._projected[key]

    def end_forward(self, taps: Sequence[Tap]) -> None:
        """Let go of what the forward pass has left, and refuse layers that were not called exactly once."""
        self.in_forward = False
        self._let_go_of_tensors()
        wrong = [tap.name for tap in taps if self.calls.get(tap.name, 0) != len(self.model_calls)]
        if wrong:
            raise InputError(
                f"cannot serve layers that a forward pass does not call exactly once: {', '.join(wrong[:8])}"
            )
        refuse(
            [tap.name for tap in taps if isinstance(tap, LoraTap) and tap.name not in self.downs],
            "layers whose forward does not call their adapter",
        )

    def feed(self, consumer: Consumer, seen: _Seen, scale: float) -> None:
        """Turn a layer's inputs and cotangents into its sites' `(p, q, offsets)`, once all calls have brought them."""
        tap = seen.tap
        waiting = self._waiting.setdefault(tap.name, [])
        waiting.append(seen)
        if len(waiting) < len(self.model_calls):
            return
        seen_in_order = sorted(self._waiting.pop(tap.name), key=lambda one: one.call)
        if any(loses(one.g, call.batch) for one, call in zip(seen_in_order, self.model_calls, strict=True)):
            raise InputError(f"cannot serve {tap.name}: the reward reads it beyond the batch's tokens")
        a, offsets = self._tokens(tap, [one.a for one in seen_in_order])
        g = self._tokens(tap, [one.g for one in seen_in_order], scale)[0]
        if isinstance(tap, LoraTap):
            downs = [one.down for one in seen_in_order if one.down is not None]
            cotangents = [one.down_cotangent for one in seen_in_order if one.down_cotangent is not None]
            down = _at_least_float32(self._tokens(tap, downs)[0])
            down_cotangent = _at_least_float32(self._tokens(tap, cotangents, scale)[0])
            if "forward" in vars(tap.layer):
                _check_replaced_forward(tap, g, down_cotangent)
            site_a, site_b = tap.sites
            consumer.consume(site_a, down_cotangent, a, offsets)
            consumer.consume(site_b, down * tap.scaling, g, offsets)
        elif isinstance(tap, VirtualTap):
            consumer.consume(tap.sites[0], _at_least_float32(a), g, offsets)
        else:
            if self.drops_padding and offsets is self.token_offsets:
                a, g = self._scored_tokens(a, g)
                offsets = self.row_offsets
            consumer.consume(tap.sites[0], _at_least_float32(g), a, offsets)

    def _tokens(self, tap: Tap, seen: Sequence[Tensor], scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """The tokens `[T, features]` of a layer's input or of a scaled cotangent, and their segments `[N + 1]`."""
        x = joined(self.model_calls, seen, self.batch, tap.name)
        flat = x.reshape(-1, x.shape[-1])
        if scale != 1.0:
            flat = flat.float() / scale
        if x.dim() == 2:  # a pooler, a head, or scored tokens alone: one vector a row
            return flat, self.row_offsets
        if x.shape[1] < self.batch.input_ids.shape[1]:  # the tokens at which rows are read, alone
            return flat, self.row_offsets * x.shape[1]
        return (flat if self.mask is None else flat[self.mask.to(x.device).reshape(-1)]), self.token_offsets

    def _scored_tokens(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The one token of each row that its reward reads.

        A decoder's head is called on every token and read at one. Averaging activations over the others would give
        KFAC's input factor tokens that the head's gradient never sees.
        """
        lengths = self.batch.attention_mask.sum(1)
        row = torch.repeat_interleave(
            torch.arange(len(lengths), dtype=torch.int64, device=a.device), lengths.to(a.device)
        )
        starts = _offsets(lengths)[:-1].to(a.device)
        size = g.abs().sum(-1)
        peak = torch.zeros(len(lengths), dtype=size.dtype, device=a.device).scatter_reduce(0, row, size, "amax")
        position = torch.arange(len(row), dtype=torch.int64, device=a.device)
        at_peak = torch.where(size == peak[row], position, len(row))
        chosen = torch.full_like(starts, len(row)).scatter_reduce(0, row, at_peak, "amin")
        return a[chosen], g[chosen]


class _DownTap(torch.autograd.Function):
    """Identity on `A a`; its backward sees the cotangent `s Bᵀ g`, and then all that the layer's two sites need.

    `root` requires a gradient and nothing else needs to: the graph then begins at the first tapped layer, and nothing
    is kept for the layers under it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, a: Tensor, root: Tensor, run: _Pass, tap: LoraTap, call: int) -> Tensor:
        ctx.save_for_backward(a, output)
        ctx.run, ctx.tap, ctx.call = run, tap, call
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        a, down = ctx.saved_tensors
        g = ctx.run.cotangents.pop((ctx.tap.name, ctx.call))
        ctx.run.receive(_Seen(ctx.tap, ctx.call, a, g, down, grads[0]))
        return grads[0], None, None, None, None, None


class _OutputTap(torch.autograd.Function):
    """Identity on a layer's output; its backward sees the output's cotangent."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, a: Tensor, root: Tensor, run: _Pass, tap: Tap, call: int) -> Tensor:
        ctx.run, ctx.tap, ctx.call = run, tap, call
        if not isinstance(tap, LoraTap):
            ctx.save_for_backward(a)
        return output.data  # unlike a view of it, may be added to in place, as Falcon does

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if isinstance(ctx.tap, LoraTap):
            ctx.run.cotangents[ctx.tap.name, ctx.call] = grads[0]
        else:
            (a,) = ctx.saved_tensors
            ctx.run.receive(_Seen(ctx.tap, ctx.call, a, grads[0]))
        return grads[0], None, None, None, None, None


def _check_replaced_forward(tap: LoraTap, g: Tensor, down_cotangent: Tensor) -> None:
    """Raise InputError where a `forward` that others have put on a layer does not give `W0 a + s B A a` as it is."""
    expected = _at_least_float32(g) @ _at_least_float32(tap.up) * tap.scaling
    rounding = torch.finfo(g.dtype).eps ** 0.5
    if not (down_cotangent - expected).norm() <= rounding * expected.norm():
        refuse([tap.name], "a layer whose replaced forward does other than add the adapter's output")


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
