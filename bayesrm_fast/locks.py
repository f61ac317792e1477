"""A lock for each object that a call changes and puts back as it was."""

import threading
import weakref

_locks: dict[int, threading.RLock] = {}
_making = threading.Lock()


def lock_of(owner: object) -> threading.RLock:
    """The one lock of an object; kept outside of it, because a lock can be neither copied nor pickled."""
    with _making:
        if id(owner) not in _locks:
            _locks[id(owner)] = threading.RLock()
            weakref.finalize(owner, _locks.pop, id(owner), None)
        return _locks[id(owner)]
