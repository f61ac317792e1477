"""Which virtual adapters a model is to have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bayesrm_fast.errors import InputError

Targets = str | Sequence[str]


@dataclass(frozen=True)
class VirtualOptions:
    """Which virtual adapters a model is to have; checked when it is made.

    Attributes:
        rank: rows of each A.
        targets: "auto", names of layers as peft has them (the last parts of their paths), or a regular expression for
            whole paths.

    Raises:
        InputError: a rank below 1, no targets, or a pattern that is none.
    """

    rank: int
    targets: Targets = "auto"

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InputError(f"virtual_rank must be a whole number of at least 1, not {self.rank!r}")
        if not self.targets:
            raise InputError("virtual_targets is empty")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise InputError(f"virtual_targets {self.targets!r} is no regular expression: {error}") from error

    def match(self, name: str) -> bool:
        """Whether a layer of this path is meant."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.targets)
