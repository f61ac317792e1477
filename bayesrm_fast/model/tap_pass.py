"""What the taps of one forward and backward pass see, and how that becomes a consumer's `(p, q, offsets)`."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.calls import Call, joined, loses
from bayesrm_fast.model.head import HeadTap
from bayesrm_fast.model.layers import refuse
from bayesrm_fast.model.lora import LoraTap
from bayesrm_fast.model.virtual import VirtualTap
from bayesrm_fast.sites import Consumer, Site
from bayesrm_fast.text.batches import TokenBatch

Tap = LoraTap | VirtualTap | HeadTap


@dataclass(frozen=True)
class Seen:
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
        """Whether the cotangents are."""
        cotangents = [self.g] if self.down_cotangent is None else [self.g, self.down_cotangent]
        return all(bool(g.isfinite().all()) for g in cotangents)


@dataclass
class TapPass:
    """State of one forward and backward pass.

    Attributes:
        batch: of the pass.
        model_calls: what it calls the model on.
        drops_padding: whether a consumer gets the real tokens alone.
        root: what the graph begins at, so that nothing is kept for the layers under the first tap.
        receive: what is handed what the taps see.
        first_on_input: for each tap's name, the first tap that is called on the very same tensor.
        has_half_outputs: whether a tapped layer's output is in float16.
    """

    batch: TokenBatch
    model_calls: Sequence[Call]
    drops_padding: bool
    root: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True))
    receive: Callable[[Seen], None] | None = None
    calls: dict[str, int] = field(default_factory=dict)
    downs: set[str] = field(default_factory=set)
    first_on_input: dict[str, str] = field(default_factory=dict)
    cotangents: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    has_half_outputs: bool = False
    in_forward: bool = True
    _inputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    _called_on: dict[str, Tensor] = field(default_factory=dict)
    _projected: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)
    _waiting: dict[str, list[Seen]] = field(default_factory=dict)

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
        """The taps' hooks, for the forward pass and for what checkpointing runs again.

        Raises:
            InputError: a layer that is not tapped as it is, by its name.
        """
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
    def receiving(self, receive: Callable[[Seen], None]) -> Iterator[None]:
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
        down = tap.down.to(a)
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

    def feed(self, consumer: Consumer, seen: Seen, scale: float) -> None:
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
        down = down_cotangent = None
        if isinstance(tap, LoraTap):
            downs = [one.down for one in seen_in_order if one.down is not None]
            cotangents = [one.down_cotangent for one in seen_in_order if one.down_cotangent is not None]
            down, down_cotangent = self._tokens(tap, downs)[0], self._tokens(tap, cotangents, scale)[0]
        elif isinstance(tap, HeadTap) and self.drops_padding and offsets is self.token_offsets:
            a, g = self._scored_tokens(a, g)
            offsets = self.row_offsets
        device = self.batch.input_ids.device  # where the posterior is, and not every layer of a model on several
        for site, p, q in sides(Seen(tap, 0, a, g, down, down_cotangent)):
            consumer.consume(site, p.to(device), q.to(device), offsets)

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


def sides(seen: Seen) -> Iterator[tuple[Site, Tensor, Tensor]]:
    """Of each of a tap's sites p `[…, r]` and q `[…, d]`, by token.

    Raises:
        InputError: a layer whose replaced forward does other than add its adapter's output.
    """
    tap, a, g = seen.tap, seen.a, seen.g
    if isinstance(tap, LoraTap):
        assert seen.down is not None
        assert seen.down_cotangent is not None
        down_cotangent = _at_least_float32(seen.down_cotangent)
        if "forward" in vars(tap.layer):
            _check_replaced_forward(tap, g, down_cotangent)
        site_a, site_b = tap.sites
        yield site_a, down_cotangent, a
        yield site_b, _at_least_float32(seen.down) * tap.scaling, g
    elif isinstance(tap, VirtualTap):
        yield tap.sites[0], _at_least_float32(a), g
    else:
        yield tap.sites[0], _at_least_float32(g), a


def feed_gradients(consumer: Consumer, site: Site, gradients: Tensor) -> None:  # shape: (N, r, d)
    """Gradients as r tokens each, `G = Σ_k e_k G_kᵀ`: what a consumer takes."""
    count = gradients.shape[0]
    p = torch.eye(site.r, dtype=gradients.dtype, device=gradients.device).repeat(count, 1)
    offsets = torch.arange(0, (count + 1) * site.r, site.r, dtype=torch.int64, device=gradients.device)
    consumer.consume(site, p, gradients.reshape(-1, site.d), offsets)


class _DownTap(torch.autograd.Function):
    """Identity on `A a`; its backward sees the cotangent `s Bᵀ g`, and then all that the layer's two sites need.

    `root` requires a gradient and nothing else needs to: the graph then begins at the first tapped layer, and nothing
    is kept for the layers under it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, a: Tensor, root: Tensor, run: TapPass, tap: LoraTap, call: int) -> Tensor:
        ctx.save_for_backward(a, output)
        ctx.run, ctx.tap, ctx.call = run, tap, call
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        a, down = ctx.saved_tensors
        g = ctx.run.cotangents.pop((ctx.tap.name, ctx.call))
        ctx.run.receive(Seen(ctx.tap, ctx.call, a, g, down, grads[0]))
        return grads[0], None, None, None, None, None


class _OutputTap(torch.autograd.Function):
    """Identity on a layer's output; its backward sees the output's cotangent."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, a: Tensor, root: Tensor, run: TapPass, tap: Tap, call: int) -> Tensor:
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
            ctx.run.receive(Seen(ctx.tap, ctx.call, a, grads[0]))
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
