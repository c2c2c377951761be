"""The one exception that users see."""


class UserError(Exception):
    """Bad input, explained in one line: what was got, what is expected, and the fix.

    The command line prints it as ``error: ...`` and exits with code 2, without a traceback.
    """
