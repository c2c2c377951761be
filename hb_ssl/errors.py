"""The one exception that users see, and what is said of the others."""

import errno

REFUSED = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}


class UserError(Exception):
    """Bad input, explained in one line: what was got, what is expected, and the fix.

    The command line prints it as ``error: ...`` and exits with code 2, without a traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says (at most 200 characters), else its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def refused_by_system(error: BaseException | None) -> str | None:
    """One line for a full disk and the like, ``None`` if ``error`` is something else.

    Libraries hide what the system said: datasets raises its own error while it handles the
    system's, safetensors has no error class for it, torch reports a failed stream.
    """
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    while error is not None:
        if isinstance(error, OSError) and error.errno in REFUSED:
            return f"{error.filename or 'a file'}: {error.strerror}"
        if any(sign in str(error) for sign in ("(os error ", "iostream error", "inline_container")):
            return f"a file can't be written: {first_line(error)}"
        error = error.__cause__ or error.__context__
    return None
