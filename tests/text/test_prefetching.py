"""Work prepared in a thread."""

import threading
import time

import pytest

from bayesrm_fast import InputError
from bayesrm_fast.text.prefetching import AHEAD, prefetched


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "bayesrm-prefetch"]


def test_items_come_in_order_from_another_thread():
    made_in = []

    def items():
        for i in range(20):
            made_in.append(threading.current_thread())
            yield i

    assert list(prefetched(items())) == list(range(20))
    assert threading.current_thread() not in made_in
    assert not threads()


def test_no_more_than_a_few_are_made_ahead():
    made = []
    stream = prefetched(made.append(i) or i for i in range(1000))
    next(stream)
    time.sleep(0.3)
    assert len(made) <= AHEAD + 2
    stream.close()
    assert not threads()


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise InputError("row 3")

    stream = prefetched(items())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(InputError, match="row 3"):
        next(stream)
    assert not threads()
