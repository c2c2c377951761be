"""The recordings as a Hub dataset: parquet with the untouched file bytes, and back to files."""

import hashlib
import logging
import re
import shutil
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, Value
from huggingface_hub import snapshot_download
from tqdm import tqdm

from hb_ssl.data.pascal import AUDIO_SUFFIXES, SYNTHETIC_MARKER, RecordingList
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError, first_line
from hb_ssl.files import folder_written_whole, write_json_atomic, write_text_atomic
from hb_ssl.hub_requests import ask_hub, push_folder

logger = logging.getLogger(__name__)

PASCAL_CITATION = """\
```bibtex
@misc{pascal-chsc-2011,
  author = {Bentley, P. and Nordehn, G. and Coimbra, M. and Mannor, S.},
  title = {The {PASCAL} {C}lassifying {H}eart {S}ounds {C}hallenge 2011 {(CHSC2011)} {R}esults},
  year = {2011},
  howpublished = {http://www.peterjbentley.com/heartchallenge/index.html}
}
```"""

_TYPES = {
    "noisy": "bool",
    "timestamp": "float64",
    "sampling_rate": "int32",
    "num_samples": "int64",
}
_COLUMNS = [field.name for field in fields(Recording) if field.name != "path"]
# Audio's own encoder wants torchcodec; its storage type takes the bytes as they are.
FEATURES = Features(
    {name: Value(_TYPES.get(name, "string")) for name in _COLUMNS} | {"audio": Audio(decode=False)}
)
_ROWS = 32  # recordings written or read at a time, about 25 MB
_RECORDING_ID = re.compile(r"(?P<set>[ab])/(?P<stem>[A-Za-z0-9_]+)")


def export_dataset(recording_list: RecordingList, folder: str | Path) -> Path:
    """Writes parquet files (splits ``train`` and ``unlabelled``) and a dataset card.

    Args:
        recording_list: what to export.
        folder: new or empty folder.

    Raises:
        UserError: the folder is not empty, or a recording has changed since it was listed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not an empty folder; choose a new folder")
    splits = {
        "train": [r for r in recording_list.recordings if r.raw_label is not None],
        "unlabelled": [r for r in recording_list.recordings if r.raw_label is None],
    }
    splits = {name: recordings for name, recordings in splits.items() if recordings}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, recordings in splits.items():
        _write_parquet(recordings, folder / "data" / f"{name}-00000-of-00001.parquet")
    if recording_list.synthetic:
        write_json_atomic(folder / SYNTHETIC_MARKER, {"synthetic": True})
    write_text_atomic(folder / "README.md", _dataset_card(recording_list, list(splits)))
    return folder


def _write_parquet(recordings: list[Recording], path: Path) -> None:
    schema = FEATURES.arrow_schema
    starts = range(0, len(recordings), _ROWS)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in tqdm(starts, desc=f"Writing {path.name}", disable=None):
            rows = [_to_row(recording) for recording in recordings[start : start + _ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _to_row(recording: Recording) -> dict[str, Any]:
    path = Path(recording.path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}); list the folder again"
        ) from error
    if hashlib.sha256(content).hexdigest() != recording.content_hash:
        raise UserError(f"{path}: has changed since it was listed; list the folder again")
    row = asdict(recording)
    del row["path"]
    stem = recording.recording_id.split("/")[-1]
    row["audio"] = {"bytes": content, "path": stem + path.suffix.lower()}
    return row


def import_dataset(folder: str | Path, target: str | Path) -> Path:
    """Turns exported parquet files back into the files of Kaggle's layout.

    Every file has its original bytes, so ids and content hashes are the same as before.

    Args:
        folder: a folder that ``export_dataset`` wrote.
        target: the folder to make; one that exists is returned as it is.

    Raises:
        UserError: no parquet files, other columns, an unsafe id, or bytes that fail their hash.
    """
    folder, target = Path(folder), Path(target)
    if target.is_dir():
        return target
    parquets = sorted(folder.rglob("*.parquet"))
    if not parquets:
        raise UserError(f"{folder}: holds no parquet file; expected an export of hb-ssl")
    with folder_written_whole(target) as temporary:
        for set_ in ("a", "b"):
            (temporary / f"set_{set_}").mkdir()
        for path in tqdm(parquets, desc="Unpacking parquet", unit="file", disable=None):
            _unpack_parquet(path, temporary)
        if (folder / SYNTHETIC_MARKER).is_file():
            shutil.copyfile(folder / SYNTHETIC_MARKER, temporary / SYNTHETIC_MARKER)
    return target


def _unpack_parquet(path: Path, folder: Path) -> None:
    wanted = ["recording_id", "content_hash", "audio"]
    try:
        with pq.ParquetFile(path) as parquet:
            missing = set(wanted) - set(parquet.schema_arrow.names)
            if missing:
                raise UserError(
                    f"{path}: has no column {', '.join(sorted(missing))}; expected an export of "
                    "hb-ssl"
                )
            found = {name: parquet.schema_arrow.field(name).type for name in wanted}
            if any(found[name] != FEATURES.arrow_schema.field(name).type for name in wanted):
                raise UserError(
                    f"{path}: its columns have other types ({found}); expected an export of hb-ssl"
                )
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    _write_recording(row, path, folder)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: can't be unpacked ({first_line(error)}); download it again"
        ) from error


def _write_recording(row: dict[str, Any], path: Path, folder: Path) -> None:
    # The parquet is somebody else's: a file name from it must not leave the folder.
    audio = row["audio"] or {}
    match = _RECORDING_ID.fullmatch(row["recording_id"] or "")
    suffix = Path(audio.get("path") or "").suffix
    if match is None or suffix not in AUDIO_SUFFIXES:
        raise UserError(
            f"{path}: row with id {row['recording_id']!r} and file {audio.get('path')!r}; expected "
            "an id such as a/normal__201101070538 and a wav or aiff file"
        )
    content = audio.get("bytes") or b""
    if hashlib.sha256(content).hexdigest() != row["content_hash"]:
        raise UserError(
            f"{path}: the bytes of {row['recording_id']} fail their SHA-256; download it again"
        )
    (folder / f"set_{match['set']}" / (match["stem"] + suffix)).write_bytes(content)


def download_hub_dataset(repo_id: str, cache_dir: str | Path, token: str | None = None) -> Path:
    """Downloads a dataset that ``push_dataset`` made and unpacks it into the cache.

    Raises:
        UserError: the repository can't be reached or is not an export of hb-ssl.
    """

    def download() -> Path:
        patterns = ["*.parquet", SYNTHETIC_MARKER]
        return Path(
            snapshot_download(repo_id, repo_type="dataset", allow_patterns=patterns, token=token)
        )

    snapshot = ask_hub(download, repo_id)
    # The snapshot's folder is named after the commit, so a new commit is unpacked anew.
    return import_dataset(
        snapshot, Path(cache_dir) / "hub" / repo_id.replace("/", "--") / snapshot.name
    )


def push_dataset(
    recording_list: RecordingList,
    repo_id: str,
    private: bool = True,
    i_may_share: bool = False,
) -> str:
    """Uploads the recordings as a dataset repository.

    Args:
        recording_list: what to upload.
        repo_id: ``ORG/NAME``.
        private: make a new repository private.
        i_may_share: the caller's statement that these recordings may be shared.

    Returns:
        The address of the repository.

    Raises:
        UserError: ``i_may_share`` is false, or the Hub refuses.
    """
    if not i_may_share:
        raise UserError(
            f"hub dataset '{repo_id}': these are people's heart sounds, nothing was uploaded; "
            "check that you may share them and pass --i-may-share"
        )
    with tempfile.TemporaryDirectory() as temporary:
        pushed = push_folder(
            export_dataset(recording_list, Path(temporary) / "dataset"),
            repo_id,
            f"Upload {len(recording_list.recordings)} recordings with hb-ssl",
            is_stale=lambda name: name.endswith(".parquet") or name == SYNTHETIC_MARKER,
            repo_type="dataset",
            private=private,
        )
    return pushed.url


def _dataset_card(recording_list: RecordingList, splits: list[str]) -> str:
    data_files = "\n".join(f"  - split: {name}\n    path: data/{name}-*.parquet" for name in splits)
    if recording_list.synthetic:
        title, origin, licence = "Synthetic heart sounds", _SYNTHETIC_ORIGIN, "apache-2.0"
    else:
        title, origin, licence = "PASCAL heart sounds 2011", _REAL_ORIGIN, "cc0-1.0"
    return f"""---
pretty_name: {title}
license: {licence}
task_categories:
- audio-classification
tags:
- heart-sounds
- phonocardiogram
configs:
- config_name: default
  data_files:
{data_files}
---

# {title}

{len(recording_list.recordings)} recordings. {origin}

## Labels

`raw_label` is the class as the challenge names it; it is empty in the split `unlabelled`.

- `normal`: two clear sounds a beat, S1 and S2.
- `murmur`: noise between S1 and S2 or between S2 and S1.
- `extrahls` (set A only): an extra heart sound, a third sound in every beat.
- `extrastole` (set B only): an extrasystole, a beat out of rhythm now and then. Another finding
  than `extrahls`.
- `artifact` (set A only): no heart sound to speak of.

## Columns

`audio` holds the untouched bytes of the file. `recording_id`, `set` (`a`: phone app, 44.1 kHz;
`b`: digital stethoscope, 4 kHz), `noisy` (set B: the challenge marks it as noisy), `subject` and
`site` (set B), `timestamp` (seconds since 1970, UTC), `sampling_rate` (Hz), `num_samples`,
`content_hash` (SHA-256 of the bytes).

Not for diagnosis. Split by subject and session, and never by file: one person has many recordings.
"""


_SYNTHETIC_ORIGIN = "**They are simulated by hb-ssl; no person was recorded.**"
_REAL_ORIGIN = f"""From the PASCAL Classifying Heart Sounds Challenge 2011, as
on Kaggle (`kinguistics/heartbeat-sounds`, public domain there). Cite:

{PASCAL_CITATION}"""
