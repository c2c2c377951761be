"""Zip files from elsewhere, extracted without trusting them."""

import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from hb_ssl.errors import UserError
from hb_ssl.files import folder_written_whole

MAX_MEMBERS = 20_000  # the whole data set has 832 files
MAX_TOTAL_BYTES = 2 * 1024**3  # and 138 MB
MAX_RATIO = 100  # PCM audio shrinks by 10 at the very most
_RATIO_FREE_BYTES = 10 * 1024**2  # below this no ratio can do harm
_CHUNK = 1024**2
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, UnicodeError, NotImplementedError,
)  # fmt: skip


def safe_extract_zip(zip_path: str | Path, target: str | Path) -> Path:
    """Extracts a zip into the new folder ``target``, which appears whole or not at all.

    macOS junk (``__MACOSX``, ``._x.wav``) is left out. A ``target`` that exists is returned as is.

    Raises:
        UserError: the zip is truncated or not a zip; a member has an absolute path, leaves the
            folder, is a link or is encrypted; or the zip holds too many or too large files.
    """
    zip_path, target = Path(zip_path), Path(target)
    if target.is_dir():
        return target
    try:
        with zipfile.ZipFile(zip_path) as archive:
            members = _checked_members(zip_path, archive)
            with folder_written_whole(target) as temporary:
                for member, inside in members:
                    _extract_member(archive, member, temporary / inside)
    except _DAMAGED as error:
        raise UserError(
            f"{zip_path}: not a whole zip file ({error}); download or copy it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"{zip_path}: can't be read ({error.strerror or error}); expected a zip file"
        ) from error
    return target


def zip_file_names(zip_path: str | Path) -> list[str]:
    """File names (without folders) of a zip's members, junk left out.

    Raises:
        UserError: the zip is not whole, or is refused by ``safe_extract_zip``'s rules.
    """
    try:
        with zipfile.ZipFile(zip_path) as archive:
            return [inside.name for _, inside in _checked_members(Path(zip_path), archive)]
    except (*_DAMAGED, OSError) as error:
        raise UserError(
            f"{zip_path}: not a whole zip file ({error}); download or copy it again"
        ) from error


def _checked_members(
    zip_path: Path, archive: zipfile.ZipFile
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The members to extract, each with its path inside the target; refuses a dangerous zip."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise _refused(zip_path, f"holds {len(infos)} members, at most {MAX_MEMBERS} are accepted")
    total = sum(info.file_size for info in infos)
    packed = max(sum(info.compress_size for info in infos), 1)
    if total > MAX_TOTAL_BYTES:
        raise _refused(zip_path, f"unpacks to {total} bytes, at most {MAX_TOTAL_BYTES} is accepted")
    if total > _RATIO_FREE_BYTES and total / packed > MAX_RATIO:
        raise _refused(zip_path, f"unpacks to {total // packed} times its size (a zip bomb?)")
    members = []
    seen: set[PurePosixPath] = set()
    for info in infos:
        # orig_filename: zipfile cuts a name at a NUL byte, the raw one shows it.
        name = info.orig_filename.replace("\\", "/")
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or ":" in name or "\0" in name:
            raise _refused(zip_path, f"member {name!r} leaves the folder")
        if info.flag_bits & 0x1:
            raise _refused(zip_path, f"member {name!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(zip_path, f"member {name!r} is packed neither plain nor by deflate")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(zip_path, f"member {name!r} is a link or a device")
        junk = any(part == "__MACOSX" or part.startswith(".") for part in inside.parts)
        if name.endswith("/") or junk:
            continue
        if inside in seen:
            raise _refused(zip_path, f"member {name!r} is there twice")
        seen.add(inside)
        members.append((info, inside))
    return members


def _extract_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Copies one member; zipfile checks its CRC and never gives more than the stated size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _refused(zip_path: Path, reason: str) -> UserError:
    return UserError(
        f"{zip_path}: refused, {reason}; expected a plain zip of recordings, extract it by hand if "
        "you trust it"
    )
