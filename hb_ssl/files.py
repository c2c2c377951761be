"""Small files written whole: a temporary name first, then a rename, so nothing is half written."""

import csv
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hb_ssl.errors import UserError


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes ``text`` (UTF-8); the file appears whole or not at all.

    What is no character, as in a file's name of another encoding, is written as an escape.

    Raises:
        UserError: the folder can't be written to.
    """
    write_bytes_atomic(path, text.encode("utf-8", errors="backslashreplace"))


def with_text_between(text: str, marks: tuple[str, str], content: str) -> str:
    """``text`` with ``content`` in place of what stands between two marks, which it holds once."""
    before, rest = text.split(marks[0])
    _, after = rest.split(marks[1])
    return f"{before}{marks[0]}\n\n{content}\n\n{marks[1]}{after}"


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Writes ``content``; the file appears whole or not at all.

    Raises:
        UserError: the folder can't be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: can't be written ({error.strerror}); expected a writable folder with free "
            "space, choose another output folder"
        ) from error


@contextmanager
def folder_written_whole(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder to fill, which then becomes ``folder``: whole or not at all.

    If another process makes the same ``folder`` meanwhile, that one stays.

    Args:
        folder: the new folder; missing, or empty.

    Raises:
        UserError: it can't be written.
    """
    folder = Path(folder)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.replace(folder)
    except OSError as error:
        if not (folder.is_dir() and any(folder.iterdir())):
            raise UserError(
                f"{folder}: can't be written ({error.strerror or error}); expected a writable "
                "folder with free space, choose another one"
            ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_json_atomic(path: str | Path, content: Any) -> None:
    """Writes JSON, indented, with a final newline."""
    write_text_atomic(path, json.dumps(content, indent=2) + "\n")


def write_csv_atomic(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows that share their keys; the first row's keys are the header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, buffer.getvalue())


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}); expected a JSON file"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); write it again") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where decoded audio, downloads and simulated data are kept.

    ``$HB_SSL_CACHE``, by default ``~/.cache/hb_ssl``; created when first used.

    Raises:
        UserError: it can't be created.
    """
    folder = Path(os.environ.get("HB_SSL_CACHE") or "~/.cache/hb_ssl").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the cache folder can't be created ({error.strerror}); set HB_SSL_CACHE to "
            "a writable folder"
        ) from error
    return folder


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Holds ``folder/.lock`` so that no second process works in the same run folder.

    The system releases the lock when the process ends, however it ends.

    Raises:
        UserError: another process holds it, or the folder can't be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: can't be written ({error.strerror}); choose another --output_dir"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder}: another run is writing there; wait for it or choose another "
                "--output_dir"
            ) from error
        yield
