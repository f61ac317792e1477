"""The one error a caller is meant to read, and what its messages share."""

from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be served; the message is one line that names what is wrong and where.

    The command line prints it without a traceback and exits with code 2.
    """


LONGEST_SHOWN = 40
"""Characters of what was given that a message repeats: a server's messages must not have its clients' texts."""


def shortened(text: str, longest: int = LONGEST_SHOWN) -> str:
    """The text, or its beginning."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shown(value: object) -> str:
    """What a message repeats of a value."""
    return shortened(repr(value))


def named(names: Sequence[str]) -> str:
    """At most four names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
