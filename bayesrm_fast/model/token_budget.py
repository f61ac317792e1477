"""How much of a model fits into a device's memory at once."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

BATCH_TOKENS = {"cpu": 4096, "mps": 4096}
"""On a CPU larger batches gain nothing. Only CUDA tells how much memory is free."""

MOST_BATCH_TOKENS = 65_536
SHARE_OF_FREE_MEMORY = 0.7
"""What fragmentation and the consumers leave of the free memory."""


@dataclass
class TokenBudget:
    """Tokens of a batch; shrinks where they turn out not to fit.

    Attributes:
        batch_tokens: tokens of one batch, padding included.
        checkpoints: whether layers are run again in the backward pass, to save what they would keep.
        shrinks: how often a batch did not fit and something was given up.
    """

    batch_tokens: int
    checkpoints: bool = False
    shrinks: int = 0
    _told: bool = False

    def shrink(self, error: BaseException, rows: int, tokens: int, has_backward: bool) -> None:
        """Make the best of a batch that did not fit; the first time is told.

        Args:
            error: what the device said.
            rows: of the batch; one row cannot be divided.
            tokens: of the batch, padding included.
            has_backward: whether running layers again in a backward pass could help.

        Raises:
            The error itself, where nothing is left to give up.
        """
        if rows > 1:
            self.batch_tokens = max(min(self.batch_tokens, tokens) // 2, 1)
            what = f"batches of {self.batch_tokens} tokens"
        elif has_backward and not self.checkpoints:
            self.checkpoints = True
            what = "gradient checkpointing"
        else:
            raise error
        self.shrinks += 1
        if not self._told:
            warnings.warn(f"a batch did not fit in memory; going on with {what}, and less where needed", stacklevel=2)
            self._told = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_bytes(device: torch.device) -> int:
    """What a device has left, or the host's memory for the CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(psutil.virtual_memory().available)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back, so that a smaller batch is not stopped by the pieces of a larger one."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def tokens_that_fit(peak_bytes: Callable[[int], int], free_bytes: int, tokens: int) -> int:
    """A token budget from two short trials.

    Args:
        peak_bytes: the most memory that a batch of so many tokens takes.
        free_bytes: what the device has.
        tokens: of the smaller trial; the larger one has four times as many.
    """
    small, large = peak_bytes(tokens), peak_bytes(4 * tokens)
    a_token = max(large - small, 1) / (3 * tokens)
    fixed = max(small - a_token * tokens, 0)
    left = SHARE_OF_FREE_MEMORY * free_bytes - fixed
    return int(min(max(left / a_token, tokens), MOST_BATCH_TOKENS))
