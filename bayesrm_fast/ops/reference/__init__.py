"""The operations in plain torch, written to be read beside the formula. They serve every device and dtype."""

from torch import Tensor


def unavailable() -> None:
    """Never."""


def refuses(operation: str, tensors: tuple[Tensor, ...]) -> None:
    """Nothing."""
