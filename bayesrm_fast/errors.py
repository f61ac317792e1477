"""The one error a caller is meant to read, and what its messages share."""

from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be served; the message is one line that names what is wrong and where.

    The command line prints it without a traceback and exits with code 2.
    """


def named(names: Sequence[str]) -> str:
    """At most four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
