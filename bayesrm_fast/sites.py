"""What a posterior is over, and what a pass over a model feeds: everything above is written in terms of these two."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Site:
    """One weight matrix of the posterior; its gradient is `Σ_t p_t q_tᵀ` with `p [T, r]` and `q [T, d]`.

    Attributes:
        name: path of the adapted layer and which of its matrices this is.
        r: size of the small side.
        d: size of the large side.
        activations: the side that holds activations. KFAC averages it over tokens and sums the other one.
    """

    name: str
    r: int
    d: int
    activations: Literal["p", "q"]


class Consumer(Protocol):
    """What a pass feeds.

    Attributes:
        gradients_alone: whether it makes nothing but `Σ_t p_t q_tᵀ` of the tokens. It then also gets padding, whose
            cotangents are zero, because leaving it out would copy every p and q; and it gets no more of the last
            layer's feed-forward block than the tokens that are scored, where that is exact. Any other consumer, such as
            a mean over tokens, gets every real token of every site.
    """

    gradients_alone: bool

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Take one site's `p [T, r]`, `q [T, d]` and `offsets [N + 1]`; called once per site and batch."""
        ...
