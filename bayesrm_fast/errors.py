"""The one error a caller is meant to read."""


class InputError(ValueError):
    """Input that cannot be served; the message is one line that names what is wrong and where.

    The command line prints it without a traceback and exits with code 2.
    """
