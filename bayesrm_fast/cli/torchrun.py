"""A command that torchrun has started on several processes."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from bayesrm_fast.atomic import one_writer
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PATIENCE_MINUTES = 30
"""That a process waits for another one, which may have a slower device, or have to repeat a pass for want of memory."""


def is_launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group() -> Iterator["ProcessGroup | None"]:
    """The group of the processes that torchrun has started, each with a GPU of its own where there are any.

    Yields:
        None without torchrun, or for a single process.

    Raises:
        InputError: fewer GPUs than processes.
    """
    if not is_launched():
        yield None
        return
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise InputError(f"torchrun has started more processes than the {gpus} GPUs here: lower --nproc-per-node")
        torch.cuda.set_device(place)
        backend = "nccl"
    dist.init_process_group(backend, timeout=timedelta(minutes=PATIENCE_MINUTES))
    if not is_first():  # what is of interest is said by the first one, and errors by each
        logging.getLogger("bayesrm_fast").setLevel(logging.WARNING)
        warnings.simplefilter("ignore")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process shows progress and summary, and writes."""
    return not is_launched() or os.environ["RANK"] == "0"


@contextmanager
def one_writer_of_all(folder: Path) -> Iterator[None]:
    """`one_writer` of a run, which the first process is for all of them."""
    with one_writer(folder, "run") if is_first() else nullcontext():
        yield


def name_of_process() -> str:
    """What an error's line begins with."""
    return "bayesrm" if is_first() else f"bayesrm, rank {os.environ['RANK']}"
