"""Which shortcuts to a model's rewards are exact: tried on the model itself, not looked up in a list."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayesrm_fast.errors import InputError
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.layers import class_name, linear_modules
from bayesrm_fast.model.lengths import switches, windows
from bayesrm_fast.model.readout import Readout
from bayesrm_fast.model.scored_token import ScoredToken, is_separable
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.model.token_budget import is_out_of_memory
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.encoder import TextEncoder
from bayesrm_fast.text.examples import TokenizedRow

LENGTHS = (23, 9, 16, 23, 9, 16)
"""Of the trial rows: ragged, so that padding and positions matter, and each twice, for calls of equal lengths."""

BEGINNINGS = (7, 5)
"""Tokens with which the trial rows of each of the two groups begin."""

LONG_TRIAL = range(128, 521)
"""Tokens of the long trial row, for models that take so many.

What a shared beginning does to a reward may grow with its length, or with how much longer another's is, and be less
than rounding for a few tokens.
"""

DRAWS = 4
"""Of rounding errors, of which the largest counts."""

ERRORS = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError, NotImplementedError)
"""What models raise that cannot do what they are asked."""


@dataclass(frozen=True)
class RowFrame:
    """What trial rows have in common with the rows that will be scored.

    Attributes:
        begins, ends: special tokens at the ends of every row, such as the eos at which an encoder-decoder is read.
        reserved: token ids that no row has in between.
        has_types: whether rows have token types.
        is_told_where: whether rows say at which token they are read; the trial rows are read at their last one.
    """

    begins: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    reserved: frozenset[int] = frozenset()
    has_types: bool = False
    is_told_where: bool = False


def row_frame(encoder: TextEncoder, is_told_where: bool = False) -> RowFrame:
    """What rows of an encoder have in common."""
    tokenizer = encoder.tokenizer
    has_types = "token_type_ids" in tokenizer.model_input_names
    reserved = frozenset(tokenizer.all_special_ids)
    ids = encoder.encode(["a"], ["a"])[0].input_ids
    special = [token in reserved and token != tokenizer.unk_token_id for token in ids]
    if all(special):
        return RowFrame(reserved=reserved, has_types=has_types, is_told_where=is_told_where)
    first, last = special.index(False), special[::-1].index(False)
    return RowFrame(tuple(ids[:first]), tuple(ids[len(ids) - last :]), reserved, has_types, is_told_where)


def find_shortcuts(
    model: nn.Module, readout: Readout, collate: Collator, *, max_length: int, frame: RowFrame | None = None
) -> Shortcuts:
    """Try each shortcut on rows of random tokens, and take those that give the rewards of each row alone.

    Equal means: within twice what rounding errors of one unit in every layer's output make of a reward. For trial
    rewards that differ by no more than that, equality says nothing, and then no shortcut is taken. Where the model's
    attention or its position embeddings change past a length, rows on both sides of it are tried. Sharing, where short
    rows may share, is tried on long ones too.

    Args:
        model, readout: as for `Forward`.
        collate: as for the rows that will be scored.
        max_length: the longest row that will be scored.
        frame: of these rows.

    Raises:
        InputError: a model that cannot be called on a row, or whose rewards depend on the rows beside.
    """
    frame = frame or RowFrame()
    sides = tuple(length for length in switches(model) if length < max_length)
    plain = Shortcuts(switches=sides)
    lengths = [min(length, max_length) for length in LENGTHS]
    trials = [_Trial(model, readout, collate, frame, lengths, DRAWS)]
    plain = replace(plain, tokens_first=trials[0].tokens_first)
    seen_in_part = tuple(length for length in windows(model) if length < max_length)
    for length in sorted({*sides, *seen_in_part}):
        past = (length + 9, length + 4, length + 1) if length in sides else (length + 9, length + 2, 9)
        trials.append(_Trial(model, readout, collate, frame, [min(one, max_length) for one in past], 1))
    if not all(trial.is_finite for trial in trials):
        return _nothing_but(plain, "its rewards of trial rows are NaN or infinite")

    padding = _refusal(trials, lambda trial: trial.plainly(plain))
    if padding is not None:
        plain = replace(plain, equal_lengths=True)
        apart = _refusal(trials, lambda trial: trial.plainly(plain))
        if apart is not None:
            raise InputError(
                f"cannot serve {class_name(model)}: the reward of a row depends on the rows beside it in a batch, "
                f"even of its own length ({apart})"
            )
        return _nothing_but(plain, "rows share a call with rows of their own length alone", padding=padding)
    if not trials[0].tells_rows_apart:
        return _nothing_but(plain, "its rewards of trial rows do not differ by more than their rounding")
    found = _exact(model, readout, trials, plain, seen_in_part)
    if not found.shared_prefix or max_length < LONG_TRIAL.start:
        return found
    longest = min(max_length, LONG_TRIAL[-1])
    long_trial = _Trial(
        model, readout, collate, frame, [longest, longest // 8 + 8], 1, beginnings=(longest - 8, longest // 8)
    )
    prefix = _refusal([long_trial], partial(_Trial.after_prefixes, shortcuts=found))
    if prefix is None:
        return found
    return replace(found, shared_prefix=False, reasons=(*found.reasons, ("shared_prefix", prefix)))


def _exact(
    model: nn.Module, readout: Readout, trials: "Sequence[_Trial]", plain: Shortcuts, seen_in_part: Sequence[int]
) -> Shortcuts:
    """The shortcuts that change no trial reward."""
    found = plain
    reasons: dict[str, str] = {}
    without_mask = _refusal(trials, lambda trial: trial.plainly(replace(plain, no_mask=True)))
    if without_mask is None:
        found = replace(found, no_mask=True)
    else:
        reasons["no_mask"] = without_mask

    if not readout.reads_one_token:
        reasons["scored_token"] = "its scalars are read at several tokens of a row"
    elif not is_separable(model):
        reasons["scored_token"] = "neither its last layer's attention nor its feed-forward block is one call"
    else:
        tokens: tuple[ScoredToken, ...] = ("read",) if trials[0].is_told_where else ("last", "first")
        refusals = {token: _refusal(trials, _at(replace(plain, scored_token=token))) for token in tokens}
        exact = [token for token in tokens if refusals[token] is None]
        if exact:
            found = replace(found, scored_token=exact[0])
        else:
            reasons["scored_token"] = "; ".join(f"the {token} token: {refusals[token]}" for token in tokens)

    if without_mask is not None:  # as of BERT in bfloat16, whose cache alone may differ by less than rounding
        reasons["shared_prefix"] = "what follows a token may change it, as without a mask padding does"
    elif seen_in_part:
        reasons["shared_prefix"] = f"its attention slides over {seen_in_part[0]} tokens, fewer than a row may have"
    elif plain.switches:
        reasons["shared_prefix"] = f"its position embeddings change past {plain.switches[0]} tokens"
    else:
        prefix = _refusal(trials, partial(_Trial.after_prefixes, shortcuts=found))
        if prefix is None:
            found = replace(found, shared_prefix=True)
        else:
            reasons["shared_prefix"] = prefix
    return replace(found, reasons=tuple(reasons.items()))


def _at(shortcuts: Shortcuts) -> "Callable[[_Trial], Tensor]":
    return lambda trial: trial.plainly(shortcuts)


def _nothing_but(plain: Shortcuts, why: str, **reasons: str) -> Shortcuts:
    none = dict.fromkeys(("no_mask", "scored_token", "shared_prefix"), why)
    return replace(plain, reasons=tuple((none | reasons).items()))


def _refusal(trials: "Sequence[_Trial]", rewards: "Callable[[_Trial], Tensor]") -> str | None:
    """Why a way to the rewards is not taken; None where it gives those of every row alone."""
    for trial in trials:
        try:
            error = float((rewards(trial) - trial.alone).abs().max())
        except ERRORS as failure:
            return said(failure)
        if not error <= trial.tolerance:
            return f"its rewards differ by {error:.1e}, where rounding makes {trial.tolerance:.1e}"
    return None


def said(failure: Exception) -> str:
    """What a model raised, in one line."""
    return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"


class _Trial:
    """Random rows that begin alike, in two groups of different beginnings, with the rewards that each has alone."""

    def __init__(
        self,
        model: nn.Module,
        readout: Readout,
        collate: Collator,
        frame: RowFrame,
        lengths: Sequence[int],
        copies: int,
        beginnings: tuple[int, int] = BEGINNINGS,
    ) -> None:
        self.model, self.readout, self.collate = model, readout, collate
        self.beginnings = beginnings
        self.rows = random_rows(frame, lengths, collate, beginnings)
        self.is_told_where = frame.is_told_where
        self.tokens_first = False
        plain = Forward(model, readout)
        try:
            with contextlib.ExitStack() as stack:
                for module, _, _ in linear_modules(model).values():
                    stack.callback(module.register_forward_pre_hook(lambda _, args: self._watch(*args[:1])).remove)
                self.alone = torch.cat([self._of_one(plain, row) for row in self.rows])
        except InputError:
            raise
        except ERRORS as failure:
            if is_out_of_memory(failure):
                raise
            raise InputError(f"{class_name(model)} cannot be called on a row of tokens: {said(failure)}") from failure
        self.tolerance = 2 * self._rounding(copies)

    def _of_one(self, plain: Forward, row: TokenizedRow) -> Tensor:
        self._length = len(row.input_ids)
        return plain.scalars(self.collate([row]))

    def _watch(self, x: Tensor | None = None) -> None:
        self.tokens_first |= x is not None and x.dim() == 3 and x.shape[1] == 1 and x.shape[0] >= self._length > 1

    def _rounding(self, copies: int) -> float:
        """The most that rounding errors of one unit in every layer's output make of a reward.

        With them and without, the calls are the same: what padding or other rows do to a reward is in neither less.
        """
        eps = _unit(next(p.dtype for p in self.model.parameters() if p.is_floating_point()))
        least = eps * float(self.alone.abs().max())
        batch = self.collate(self.rows * copies)
        for shortcuts in (Shortcuts(), Shortcuts(equal_lengths=True)):
            forward = Forward(self.model, self.readout, shortcuts)
            with contextlib.suppress(*ERRORS):
                exact = forward.scalars(batch)
                with _rounding_errors(self.model):
                    return max(least, float((forward.scalars(batch) - exact).abs().max()))
        return least

    @property
    def is_finite(self) -> bool:
        return bool(self.alone.isfinite().all())

    @property
    def tells_rows_apart(self) -> bool:
        return float(self.alone.max() - self.alone.min()) > 4 * self.tolerance

    def plainly(self, shortcuts: Shortcuts) -> Tensor:
        return Forward(self.model, self.readout, shortcuts).scalars(self.collate(self.rows))

    def after_prefixes(self, shortcuts: Shortcuts) -> Tensor:
        forward = Forward(self.model, self.readout, shortcuts)
        beginnings = self.beginnings
        cache = forward.prefill(self.collate([self.rows[g].part(0, length) for g, length in enumerate(beginnings)]))
        device = self.collate.device
        owners = torch.arange(len(self.rows), dtype=torch.int64, device=device) % 2
        rest = self.collate([row.part(beginnings[i % 2], None) for i, row in enumerate(self.rows)])
        lengths = torch.tensor(beginnings, dtype=torch.int64, device=device)
        return forward.scalars_after(cache, lengths, owners, rest)


def random_rows(
    frame: RowFrame, lengths: Sequence[int], collate: Collator, beginnings: tuple[int, int] = BEGINNINGS
) -> list[TokenizedRow]:
    """Rows of random tokens within a frame, which begin alike in two groups; the same ones every time."""
    own = {collate.pad_token_id, *frame.reserved, *frame.begins, *frame.ends}
    ids = [i for i in range(1, collate.vocab_size) if i not in own] or [0]
    free = torch.tensor(ids, dtype=torch.int64, device="cpu")
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), max(lengths))
    places = torch.randint(len(free), shape, generator=generator, dtype=torch.int64, device="cpu")
    drawn = free[places].tolist()
    drawn = [drawn[i % 2][: beginnings[i % 2]] + ids[beginnings[i % 2] :] for i, ids in enumerate(drawn)]
    rows = []
    for ids, length in zip(drawn, lengths, strict=True):
        inner = max(length - len(frame.begins) - len(frame.ends), 1)
        row = [*frame.begins, *ids[:inner], *frame.ends]
        read_at = (len(row) - 1,) if frame.is_told_where else None
        rows.append(TokenizedRow(row, [0] * len(row) if frame.has_types else None, False, read_at=read_at))
    return rows


def _unit(dtype: torch.dtype) -> float:
    """Relative size of a rounding error; float32's for float64, because such models round to float32 inside."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


@contextlib.contextmanager
def _rounding_errors(model: nn.Module) -> Iterator[None]:
    """Every innermost module's output off by one unit in the last place, or none, at random."""
    calls = itertools.count()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        generator = torch.Generator(output.device).manual_seed(next(calls))
        units = torch.randint(-1, 2, output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output * (1 + _unit(output.dtype) * units)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if not any(module.children()):
                stack.callback(module.register_forward_hook(hook).remove)
        yield
