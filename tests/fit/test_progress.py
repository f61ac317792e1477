"""One count over several passes."""

from bayesrm_fast.fit.progress import PassCounter


def counter(total):
    told = []
    return PassCounter(lambda *at: told.append(at), total), told


def test_passes_are_counted_as_one():
    count, told = counter(13)
    for examples, steps in ((5, (3, 5)), (5, (5,)), (3, (1, 3))):
        tell = count.next_pass()
        for done in steps:
            tell(done, examples)
    assert told == [(3, 13), (5, 13), (10, 13), (11, 13), (13, 13)]


def test_a_pass_that_starts_again_is_not_counted_twice():
    count, told = counter(10)
    tell = count.next_pass()
    for done in (4, 2, 5):
        tell(done, 5)
    count.next_pass()(5, 5)
    assert told == [(4, 10), (2, 10), (5, 10), (10, 10)]


def test_where_nobody_is_told_nothing_is_counted():
    count = PassCounter(None, 10)
    assert count.next_pass() is None
    assert count.next_pass() is None
