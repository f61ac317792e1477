"""Ways to a model's rewards that cost less than its plain call."""

from dataclasses import dataclass

from bayesrm_fast.model.scored_token import ScoredToken


@dataclass(frozen=True)
class Shortcuts:
    """Ways to a model's rewards that cost less than its plain call and give the same numbers.

    `shortcut_trials.find_shortcuts` tries each on the model; none is taken on trust.

    Attributes:
        no_mask: rows padded on the right need no attention mask, because attention is causal.
        scored_token: the token of each row that the reward reads, where the last layer's queries and feed-forward block
            may be left out at all others; None where they may not.
        shared_prefix: rows that begin alike may share the keys and values of their beginning.
        equal_lengths: rows share a call with rows of their own length alone, because padding changes their rewards.
        switches: lengths past which a row gets other position embeddings; rows on two sides of one share no call.
        tokens_first: some layers are called on `[T, B, d]`.
        reasons: why a shortcut is not taken, by its name.
    """

    no_mask: bool = False
    scored_token: ScoredToken | None = None
    shared_prefix: bool = False
    equal_lengths: bool = False
    switches: tuple[int, ...] = ()
    tokens_first: bool = False
    reasons: tuple[tuple[str, str], ...] = ()

    def told(self) -> dict[str, str]:
        """For each shortcut what it does for this model, or why it is not taken."""
        why = dict(self.reasons)
        token = self.scored_token and f"queries and feed-forward block at the {self.scored_token} token alone"
        return {
            "attention mask": "left out" if self.no_mask else f"kept: {why.get('no_mask')}",
            "last layer": token or f"at every token: {why.get('scored_token')}",
            "rows of other lengths": f"in calls of their own: {why.get('padding')}"
            if self.equal_lengths
            else f"padded to one length{''.join(f', apart from those of over {n} tokens' for n in self.switches)}",
            "beginnings that rows share": "once" if self.shared_prefix else f"in every row: {why.get('shared_prefix')}",
        }
