"""Where the recordings come from: a folder, Kaggle, the challenge's page or the Hub.

Only the sources ``kaggle``, ``challenge`` and ``hub:...`` contact the network.
"""

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from hb_ssl.data.archives import safe_extract_zip, zip_file_names
from hb_ssl.data.hub_dataset import download_hub_dataset
from hb_ssl.data.pascal import AUDIO_SUFFIXES
from hb_ssl.errors import UserError, first_line
from hb_ssl.files import cache_folder, file_sha256, read_json, write_json_atomic

logger = logging.getLogger(__name__)

KAGGLE_DATASET = "kinguistics/heartbeat-sounds"
CHALLENGE_URL = "http://www.peterjbentley.com/heartchallenge/wav/"
# The page spells some names unlike the folders inside; the other spelling is tried on a 404.
CHALLENGE_ZIPS: tuple[tuple[str, ...], ...] = (
    ("Atraining_artifact.zip",),
    ("Atraining_extrahs.zip", "Atraining_extrahls.zip"),
    ("Atraining_murmur.zip",),
    ("Atraining_normal.zip",),
    ("Aunlabelledtest.zip",),
    ("Btraining_extrasystole.zip", "Btraining_extrastole.zip"),
    ("Btraining_murmur.zip",),
    ("Btraining_normal.zip",),
    ("Bunlabelledtest.zip",),
)
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 3
BACKOFF_SECONDS = 2.0  # doubled after every attempt
MAX_ZIP_BYTES = 200 * 1024**2  # the largest real one has 25 MB
_CHUNK = 256 * 1024


def resolve_source(source: str, cache_dir: str | Path | None = None) -> Path:
    """Turns a source into a folder that ``list_recordings`` reads.

    Args:
        source: a folder (or zip file), ``kaggle``, ``challenge`` or ``hub:ORG/NAME``. Zips in a
            folder are extracted to the cache.
        cache_dir: where downloads and extracted zips go; ``None`` for ``cache_folder()``.

    Raises:
        UserError: no such folder, a download failed, or a zip is damaged or refused.
    """
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()
    if source == "kaggle":
        return _with_zips_extracted(_download_kaggle(), cache)
    if source == "challenge":
        return download_challenge(cache)
    if source.startswith("hub:"):
        return download_hub_dataset(source.removeprefix("hub:"), cache)
    folder = Path(source).expanduser()
    try:
        if folder.is_file() and folder.suffix.lower() == ".zip":
            return _extract_all([folder], cache)
        found = bool(source) and folder.is_dir()  # Path("") would be the current folder
    except OSError:  # a name that is too long for the file system
        found = False
    if not found:
        raise UserError(
            f"data source '{source}': no such folder; expected a folder, 'kaggle', 'challenge' or "
            "'hub:ORG/NAME'"
        )
    return _with_zips_extracted(folder, cache)


def _with_zips_extracted(folder: Path, cache: Path) -> Path:
    files = [path for path in sorted(folder.rglob("*")) if not path.name.startswith(".")]
    zips = [path for path in files if path.suffix.lower() == ".zip" and path.is_file()]
    loose = {path.name for path in files if path.suffix.lower() in AUDIO_SUFFIXES}
    if not zips:
        return folder
    if not loose:
        return _extract_all(zips, cache)
    for path in zips:
        names = [n for n in zip_file_names(path) if Path(n).suffix.lower() in AUDIO_SUFFIXES]
        missing = [name for name in names if name not in loose]
        if missing:
            raise UserError(
                f"{path}: {len(missing)} of its {len(names)} recordings are not among the "
                f"extracted files of {folder}; extract it there, or keep zips only, or remove it"
            )
        logger.info("%s is not read: all its recordings are already extracted", path)
    return folder


def _extract_all(zips: list[Path], cache: Path) -> Path:
    """Extracts each zip to a folder of its own; the same zips are extracted once."""
    identity = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in zips]
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    root = cache / "extracted" / key
    for number, path in enumerate(tqdm(zips, desc="Extracting", unit="zip", disable=None)):
        alike = [other.stem for other in zips[:number]].count(path.stem)  # in other folders
        safe_extract_zip(path, root / (f"{path.stem}-{alike}" if alike else path.stem))
    return root


def _download_kaggle() -> Path:
    manual = (
        f"or download {KAGGLE_DATASET} in a browser, unpack it and give the folder instead of "
        "'kaggle'"
    )
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(
            "data source 'kaggle' needs the package kagglehub; "
            f"pip install 'hb-ssl[kaggle]', {manual}"
        ) from error
    # kagglehub's errors share no base class and reach from requests' to its own.
    try:
        return Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except Exception as error:
        raise UserError(
            f"data source 'kaggle': download failed ({type(error).__name__}: {first_line(error)}); "
            f"check the network, {manual}"
        ) from error


def download_challenge(cache_dir: str | Path, base_url: str = CHALLENGE_URL) -> Path:
    """Downloads the challenge's zips and extracts them; whole files are not fetched again.

    The SHA-256 of every zip is remembered in ``checksums.json`` at the first download, so a file
    that changes on disk later is noticed. The page gives no checksums to compare the first with.

    Returns:
        The folder with one extracted folder a zip.

    Raises:
        UserError: a file can't be downloaded, is not a zip, is too large or has changed.
    """
    zips = Path(cache_dir) / "challenge" / "zips"
    try:
        zips.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{zips}: can't be created ({error.strerror}); choose a writable cache folder"
        ) from error
    checksum_file = zips / "checksums.json"
    checksums: dict[str, str] = read_json(checksum_file) if checksum_file.exists() else {}
    paths = []
    for names in tqdm(CHALLENGE_ZIPS, desc="Challenge zips", unit="zip", disable=None):
        path = next((zips / name for name in names if (zips / name).is_file()), None)
        if path is None:
            path = _download_first(base_url, names, zips)
        checksum = file_sha256(path)
        if checksums.setdefault(path.name, checksum) != checksum:
            raise UserError(
                f"{path}: its SHA-256 {checksum[:12]}... is not the {checksums[path.name][:12]}... "
                f"of the first download in {checksum_file.name}; delete the zip and the file's "
                "entry to download it again"
            )
        write_json_atomic(checksum_file, checksums)
        paths.append(path)
    return _extract_all(paths, Path(cache_dir))


def _download_first(base_url: str, names: tuple[str, ...], folder: Path) -> Path:
    """Downloads the first of the spellings that the server has."""
    for name in names[:-1]:
        try:
            return download_zip(base_url + name, folder / name)
        except _NotFound:
            logger.info("%s%s: not there, trying the other spelling", base_url, name)
    return download_zip(base_url + names[-1], folder / names[-1])


class _NotFound(UserError):
    """The server answered 404 or 410."""


def download_zip(url: str, path: Path) -> Path:
    """Downloads a zip to ``path`` (by way of ``<path>.part``), with retries.

    Raises:
        UserError: the server can't be reached or refuses, or what comes is not a whole zip.
    """
    part = path.with_name(path.name + ".part")
    manual = "download the zips in a browser and give their folder instead of 'challenge'"
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                content_type = _fetch(url, part)
                break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500:
                    kind = _NotFound if error.code in (404, 410) else UserError
                    raise kind(f"{url}: HTTP {error.code} {error.reason}; {manual}") from error
                if attempt == ATTEMPTS:
                    raise UserError(
                        f"{url}: download failed {ATTEMPTS} times ({error}); check the network, "
                        f"or {manual}"
                    ) from error
                logger.warning("%s: %s; trying again", url, error)
                time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        if not zipfile.is_zipfile(part):
            raise UserError(f"{url}: got {content_type or 'data'}, expected a zip file; {manual}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _fetch(url: str, part: Path) -> str:
    """Writes the body of ``url`` to ``part``; returns the content type."""
    request = urllib.request.Request(url, headers={"User-Agent": "hb-ssl"})
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response,
        part.open("wb") as out,
    ):
        length = response.headers.get("Content-Length")
        expected = int(length) if length and length.isdecimal() else None
        received = 0
        with tqdm(
            total=expected, desc=part.stem, unit="B", unit_scale=True, leave=False, disable=None
        ) as bar:
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                if received > MAX_ZIP_BYTES:
                    raise UserError(
                        f"{url}: larger than {MAX_ZIP_BYTES} bytes, expected at most 25 MB; this "
                        "is not the challenge's file"
                    )
                out.write(chunk)
                bar.update(len(chunk))
        if expected is not None and received != expected:
            raise http.client.HTTPException(f"connection closed at {received} of {expected} bytes")
        return response.headers.get_content_type()
