"""Work that is killed in the middle, for what must be whole or resumable afterwards."""

import os
import signal


def killed(work, moment=None):
    """Run `work` in a copy of this process that is killed before its `moment`-th `os.rename`, or that ends by itself.

    Returns:
        Whether it was killed.
    """
    child = os.fork()
    if child == 0:
        left, rename = moment, os.rename

        def dies(*args):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*args)

        try:
            os.rename = dies
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
