"""The rows of a long batch, kept one by one, so that a killed batch goes on where it was."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from hb_ssl.errors import UserError

Row = dict[str, Any]


def journal_of(table: str | Path) -> Path:
    """Where the rows of an unfinished ``table`` are kept: beside it."""
    return Path(f"{table}.partial")


def resumable_rows(
    table: str | Path,
    files: Sequence[Path],
    classify: Callable[[Sequence[Path]], Iterator[Row]],
    about: dict[str, Any],
    resume: bool,
) -> Iterator[Row]:
    """One row a file, in order; each is kept in the journal of ``table`` before the next is made.

    A row is taken from the journal if its file has the size and time it had then. Rows with an
    ``error`` are not kept: what could not be read is tried again. Whoever writes the table then
    removes the journal.

    Args:
        table: the file that all rows will go to.
        files: audio files.
        classify: makes the rows of some of them, in order.
        about: what the rows depend on besides the files (JSON-able).
        resume: go on with the journal of an interrupted batch, if there is one.

    Raises:
        UserError: the journal belongs to another model, another process writes it, or the table
            can't be written.
    """
    if Path(table).is_dir():  # better now than behind the last recording
        raise UserError(f"{table}: is a folder; expected the name of a file")
    with _opened(journal_of(table)) as journal:
        known = _read(journal, about) if resume else {}
        if not known:
            journal.truncate(0)
            _append(journal, about)
        keys = [_key(file) for file in files]
        answers = classify([file for file, key in zip(files, keys) if key not in known])
        for key in keys:
            if key in known:
                yield known[key]
                continue
            row = next(answers)
            if key is not None and not row["error"]:
                _append(journal, {"key": key, "row": row})
            yield row


def model_files(folder: Path) -> list[list[Any]]:
    """Name, size and time of every file of a model folder: another model, another list."""
    stats = [
        (path.relative_to(folder).as_posix(), path.stat())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return [[name, status.st_size, status.st_mtime_ns] for name, status in stats]


def _key(file: Path) -> str | None:
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a NUL byte
        return None
    return json.dumps([str(file), status.st_size, status.st_mtime_ns])


@contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = path.open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    with journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{path}: another process is writing this table; wait for it, or choose another "
                "output file"
            ) from error
        yield journal


def _read(journal: FileIO, about: dict[str, Any]) -> dict[str | None, Row]:
    """Kept rows by key; cuts off the line that a killed process was writing."""
    journal.seek(0)
    content = journal.read()
    whole = content.rfind(b"\n") + 1
    journal.truncate(whole)
    lines = content[:whole].splitlines()
    if not lines:
        return {}
    try:
        first, *entries = map(json.loads, lines)
        if first != json.loads(json.dumps(about)):
            raise UserError(
                f"{journal.name}: begun with another model, runtime or folder of pictures; give "
                "the same ones, or leave --resume out to begin again"
            )
        return {entry["key"]: entry["row"] for entry in entries}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{journal.name}: damaged ({error}); leave --resume out to begin again"
        ) from error


def _append(journal: FileIO, entry: dict[str, Any]) -> None:
    line = json.dumps(entry).encode() + b"\n"
    try:
        written = journal.write(line)
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _unwritable(journal.name, error) from error


def _unwritable(path: Any, error: OSError) -> UserError:
    return UserError(
        f"{path}: can't be written ({error.strerror}); expected a writable folder with free space, "
        "choose another output file"
    )
