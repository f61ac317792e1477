"""Work that is prepared in a thread beside the work that waits for it."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

AHEAD = 2
"""Items that wait between the threads; one more is being made."""

LAST_ITEM = 5.0
"""Seconds in which a generator that is closed lets its thread finish the item that it is at."""


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """The items in their order, made in a thread of its own, no more than `AHEAD` ahead.

    An exception of the iterable is raised here, after the items before it. The thread ends with the generator.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=produce, name="bayesrm-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(timeout=LAST_ITEM)
