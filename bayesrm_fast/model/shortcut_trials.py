"""Which shortcuts to a model's rewards are exact: tried on the model itself, not looked up in a list."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bayesrm_fast.model.forward import Forward, text_config
from bayesrm_fast.model.readout import Readout
from bayesrm_fast.model.scored_token import ScoredToken, is_separable
from bayesrm_fast.model.shortcuts import Shortcuts
from bayesrm_fast.text.batches import Collator
from bayesrm_fast.text.examples import TokenizedRow

LENGTHS = (23, 9, 16, 12, 21, 10)
"""Of the trial rows: ragged, so that padding and positions matter."""

SHARED = 7
"""Tokens with which all trial rows begin."""


def find_shortcuts(
    model: nn.Module, readout: Readout, collate: Collator, *, max_length: int, has_types: bool
) -> Shortcuts:
    """Try each shortcut on six short rows of random tokens, and take those that give the plain call's rewards.

    Equal means: within the rounding that the model shows between a batch and its rows alone, which for trial rewards
    that differ by no more than that says nothing, and then no shortcut is taken.

    Args:
        model, readout: as for `Forward`.
        collate: as for the rows that will be scored.
        max_length: the longest row that will be scored.
        has_types: whether the model takes token types.
    """
    trial = _Trial(Forward(model, readout), collate, has_types)
    if not trial.tells_rows_apart:
        why = "its rewards of trial rows do not differ by more than their rounding"
        return Shortcuts(reasons=tuple((name, why) for name in ("no_mask", "scored_token", "shared_prefix")))
    found = Shortcuts()
    reasons: dict[str, str] = {}

    without_mask = trial.refusal(partial(trial.plainly, Shortcuts(no_mask=True)))
    if without_mask is None:
        found = replace(found, no_mask=True)
    else:
        reasons["no_mask"] = without_mask

    if not readout.reads_one_token:
        reasons["scored_token"] = "its scalars are read at several tokens of a row"
    elif not is_separable(model):
        reasons["scored_token"] = "neither its last layer's attention nor its feed-forward block is one call"
    else:
        tokens: tuple[ScoredToken, ...] = ("last", "first")
        refusals = {token: trial.refusal(partial(trial.plainly, Shortcuts(scored_token=token))) for token in tokens}
        exact = [token for token in tokens if refusals[token] is None]
        if exact:
            found = replace(found, scored_token=exact[0])
        else:
            reasons["scored_token"] = "; ".join(f"the {token} token: {refusals[token]}" for token in tokens)

    window = getattr(text_config(model), "sliding_window", None)
    if window is not None and window < max_length:
        reasons["shared_prefix"] = f"its attention slides over {window} tokens, fewer than a row may have"
    else:
        prefix = trial.refusal(partial(trial.after_prefixes, found))
        if prefix is None:
            found = replace(found, shared_prefix=True)
        else:
            reasons["shared_prefix"] = prefix
    return replace(found, reasons=tuple(reasons.items()))


class _Trial:
    """Random rows that begin alike, in two groups of different beginnings, with their plain rewards."""

    def __init__(self, plain: Forward, collate: Collator, has_types: bool) -> None:
        self.plain, self.collate = plain, collate
        pad_token_id, vocab_size = collate.pad_token_id, collate.vocab_size
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(
            1, vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator, dtype=torch.int64, device="cpu"
        )
        if pad_token_id is not None:
            ids[ids == pad_token_id] = (pad_token_id + 1) % vocab_size
        ids[0::2, :SHARED] = ids[0, :SHARED]
        ids[1::2, : SHARED - 2] = ids[1, : SHARED - 2]
        self.rows = [
            TokenizedRow(row[:length].tolist(), [0] * length if has_types else None, False)
            for row, length in zip(ids, LENGTHS, strict=True)
        ]
        self.rewards = plain.scalars(self.collate(self.rows))
        alone = torch.cat([plain.scalars(self.collate([row])) for row in self.rows])
        eps = torch.finfo(next(p.dtype for p in plain.model.parameters() if p.is_floating_point())).eps
        noise = max(float((self.rewards - alone).abs().max()), eps * float(self.rewards.abs().max()))
        self.tolerance = 4 * noise
        self.spread = float(self.rewards.max() - self.rewards.min())

    @property
    def tells_rows_apart(self) -> bool:
        return bool(self.rewards.isfinite().all()) and self.spread > 8 * self.tolerance

    def refusal(self, rewards: Callable[[], Tensor]) -> str | None:
        """Why a way to the rewards is not taken; None where it gives them."""
        try:
            error = float((rewards() - self.rewards).abs().max())
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError) as failure:
            return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        if not error <= self.tolerance:
            return f"its rewards differ by {error:.1e}, where rounding makes {self.tolerance:.1e}"
        return None

    def plainly(self, shortcuts: Shortcuts) -> Tensor:
        return Forward(self.plain.model, self.plain.readout, shortcuts).scalars(self.collate(self.rows))

    def after_prefixes(self, shortcuts: Shortcuts) -> Tensor:
        forward = Forward(self.plain.model, self.plain.readout, shortcuts)
        beginnings = [SHARED, SHARED - 2]
        cache = forward.prefill(self.collate([self.rows[g].part(0, length) for g, length in enumerate(beginnings)]))
        device = self.collate.device
        owners = torch.arange(len(self.rows), dtype=torch.int64, device=device) % 2
        rest = self.collate([row.part(beginnings[i % 2], None) for i, row in enumerate(self.rows)])
        lengths = torch.tensor(beginnings, dtype=torch.int64, device=device)
        return forward.scalars_after(cache, lengths, owners, rest)
