"""One lock for each object, for as long as it lives."""

import gc
from concurrent.futures import ThreadPoolExecutor

from bayesrm_fast import locks
from bayesrm_fast.locks import lock_of


class Thing:
    __hash__ = None  # as of what compares by value


def test_an_object_has_one_lock_whoever_asks():
    one, other = Thing(), Thing()
    with ThreadPoolExecutor(8) as pool:
        found = set(map(id, pool.map(lambda _: lock_of(one), range(100))))
    assert found == {id(lock_of(one))}
    assert lock_of(other) is not lock_of(one)


def test_a_lock_goes_with_its_object():
    thing = Thing()
    lock_of(thing)
    key = id(thing)
    assert key in locks._locks
    del thing
    gc.collect()
    assert key not in locks._locks
