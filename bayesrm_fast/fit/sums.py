"""Sums over the data, which those of its shards add up to."""

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor


class Sums(ABC):
    """What a pass adds up over its tokens or examples."""

    @abstractmethod
    def sums(self) -> list[Tensor]:
        """The sums themselves, always as many and in one order: what adds to them in place has added a shard."""

    def merge(self, other: Self) -> None:
        """Add another shard's sums."""
        for own, others in zip(self.sums(), other.sums(), strict=True):
            own += others.to(own.device)
