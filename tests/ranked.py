"""Processes on one machine that fit together, over gloo: what a test does on each rank, and what that gave.

They are forked from a process that has imported what they need, and their store is the test's, as it is torchrun's: it
outlives every rank.
"""

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

LONG = timedelta(seconds=120)
SHORT = timedelta(seconds=8)
"""In which a rank that does come has come, on a busy machine."""


@dataclass(frozen=True)
class AtWork:
    """One rank.

    Attributes:
        rank, size: its number, and how many there are.
        folder: for what it leaves.
    """

    rank: int
    size: int
    folder: str

    def group(self, *ranks):
        """A group of some ranks, which all ranks have to make; None on those outside of it."""
        made = dist.new_group(list(ranks))
        return made if self.rank in ranks else None

    def keep(self, name, value):
        torch.save(value, os.path.join(self.folder, f"{name}.{self.rank}.pt"))


def on_ranks(size, work, folder, timeout=LONG):
    """Run `work(AtWork)`, a function of a module, in so many processes; raises what any of them raised.

    Args:
        size: how many.
        work: what each does.
        folder: for what they keep.
        timeout: of their group.

    Returns:
        A function that gives by name what each rank kept, None where it kept nothing.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bayesrm_fast.reward_model"])
    processes = [
        context.Process(target=_run, args=(AtWork(rank, size, str(folder)), store.port, work, timeout))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LONG.total_seconds()  # of all, who take seconds
    for process in processes:
        process.join(deadline - time.monotonic())
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()

    def kept(name):
        paths = [os.path.join(folder, f"{name}.{rank}.pt") for rank in range(size)]
        return [torch.load(path, weights_only=False) if os.path.exists(path) else None for path in paths]

    raised = [text for text in kept("raised") if text is not None]
    assert not raised, raised[0]
    assert not hanging
    return kept


def _run(at_work, port, work, timeout):
    os.environ.update(GLOO_SOCKET_IFNAME="lo", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
        dist.init_process_group("gloo", store=store, rank=at_work.rank, world_size=at_work.size, timeout=timeout)
        work(at_work)
    except BaseException:
        at_work.keep("raised", traceback.format_exc())
        raise
    finally:
        os._exit(0)  # a group of which ranks are dead is not taken down
