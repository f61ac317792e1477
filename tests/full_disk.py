"""A disk that is full: every file that grows beyond a size fails to be written."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(size):
    """Until this is left, no file can become larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
