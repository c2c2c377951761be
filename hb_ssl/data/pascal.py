"""The PASCAL Classifying Heart Sounds Challenge 2011 recordings, from either source.

Kaggle's folder (``set_a/``, ``set_b/`` and csv files) and the challenge's own class folders
(``Atraining_normal/`` ...) hold the same recordings under different names; both give the same
recording ids here.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hb_ssl.audio import read_audio_info
from hb_ssl.data.file_names import ParsedName, UnknownName, parse_file_name
from hb_ssl.data.pascal_tables import check_tables
from hb_ssl.data.recording import Recording, task_label
from hb_ssl.errors import UserError
from hb_ssl.files import file_sha256

__all__ = ["RecordingList", "list_recordings", "parse_file_name"]

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".aif", ".aiff")
SYNTHETIC_MARKER = "SYNTHETIC.json"
RIGHT_FOLDER = (
    "expected Kaggle's folder (set_a/, set_b/), the challenge's class folders "
    "(Atraining_normal/, Btraining_murmur/, ...) or its zip files"
)
# Recordings in the full data set, by set and label (None: the unlabelled test files).
EXPECTED_COUNTS: dict[tuple[str, str | None], int] = {
    ("a", "artifact"): 40,
    ("a", "extrahls"): 19,
    ("a", "murmur"): 34,
    ("a", "normal"): 31,
    ("a", None): 52,
    ("b", "extrastole"): 46,
    ("b", "murmur"): 95,
    ("b", "normal"): 320,
    ("b", None): 195,
}


@dataclass(frozen=True)
class RecordingList:
    """The recordings of a folder, sorted by id, and what was found wrong with it.

    Attributes:
        recordings: the readable recordings.
        problems: one line each: files left out, rows without a file, classes incomplete.
        folder: the absolute folder that was listed.
        synthetic: the folder holds simulated recordings (its marker file says so).
    """

    recordings: list[Recording]
    problems: list[str]
    folder: str
    synthetic: bool

    def labelled(self, label_mode: str) -> list[tuple[Recording, str]]:
        """The recordings that take part in a task, each with its label.

        Raises:
            UserError: ``label_mode`` is not one of ``LABEL_MODES``.
        """
        pairs = [(r, task_label(r.raw_label, r.set, label_mode)) for r in self.recordings]
        return [(recording, label) for recording, label in pairs if label is not None]


def list_recordings(folder: str | Path) -> RecordingList:
    """Lists the recordings of a folder (either layout, see the module) with hashes and headers.

    Files that can't be used are named in ``problems``, never dropped silently. Csv files of the
    Kaggle layout are optional and are checked against the file names.

    Raises:
        UserError: no readable recording, a file whose name and folder contradict each other, two
            different files with one id, or a csv with the wrong columns.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {RIGHT_FOLDER}")
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")))
    files = [path for path in inside if not _is_junk(path) and (folder / path).is_file()]
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    found: dict[str, Recording] = {}
    left_out: list[str] = []
    for path in tqdm(audio, desc="Reading recordings", unit="file", disable=None):
        parsed = _parse_or_note(path, folder.name, left_out)
        if parsed is not None:
            _add_recording(folder / path, parsed, found, left_out)
    if not found:
        reason = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"{folder}: no readable recording of the challenge{reason}; {RIGHT_FOLDER}")
    recordings = [found[recording_id] for recording_id in sorted(found)]
    synthetic = any(path.name == SYNTHETIC_MARKER for path in files)
    problems = _shortened(left_out, "files left out")
    problems += _shortened(_strangers(files, audio), "files that are not recordings")
    problems += _shortened(check_tables(folder, files, recordings), "disagreements with csv files")
    problems += [] if synthetic else _incomplete(recordings)
    if problems:
        logger.warning("%s: %d problems, the first: %s", folder, len(problems), problems[0])
    return RecordingList(recordings, problems, str(folder), synthetic)


def _is_junk(path: Path) -> bool:
    """macOS resource forks (``__MACOSX``, ``._x.wav``) and hidden files are not data."""
    return any(part == "__MACOSX" or part.startswith(".") for part in path.parts)


def _parse_or_note(path: Path, root_name: str, left_out: list[str]) -> ParsedName | None:
    try:
        return parse_file_name(path.name, (root_name, *path.parts[:-1]))
    except UnknownName as error:
        left_out.append(str(error))
        return None


def _add_recording(
    path: Path, parsed: ParsedName, found: dict[str, Recording], left_out: list[str]
) -> None:
    recording_id = f"{parsed.set}/{parsed.stem}"
    try:
        info = read_audio_info(path)
        content_hash = file_sha256(path)
    except UserError as error:
        left_out.append(f"{error}; left out")
        return
    except OSError as error:
        left_out.append(f"{path}: can't be read ({error.strerror}); left out")
        return
    earlier = found.get(recording_id)
    if earlier is None:
        found[recording_id] = Recording(
            recording_id=recording_id,
            path=str(path),
            set=parsed.set,
            raw_label=parsed.label,
            noisy=parsed.noisy,
            subject=parsed.subject,
            site=parsed.site,
            timestamp=parsed.timestamp,
            sampling_rate=info.sampling_rate,
            num_samples=info.num_samples,
            content_hash=content_hash,
        )
        return
    # The challenge also ships every file as aiff: same length, other bytes.
    shape = (earlier.sampling_rate, earlier.num_samples)
    if shape != (info.sampling_rate, info.num_samples):
        raise UserError(
            f"{path}: has the id {recording_id} of {earlier.path} but another length or rate; "
            "expected one file for an id, remove one of them"
        )
    left_out.append(f"{path}: copy of {earlier.path}, left out")


def _strangers(files: list[Path], audio: list[Path]) -> list[str]:
    """Files among the recordings that are neither audio nor tables."""
    folders = {path.parent for path in audio} - {Path()}
    known = {*AUDIO_SUFFIXES, ".csv", ".json"}
    return [
        f"{path}: not a wav or aiff file, left out"
        for path in files
        if path.parent in folders and path.suffix.lower() not in known
    ]


def _incomplete(recordings: list[Recording]) -> list[str]:
    """Compares the counts with the full data set's, so half a download is noticed."""
    counts = Counter((recording.set, recording.raw_label) for recording in recordings)
    problems = []
    for set_ in ("a", "b"):
        if not any(key[0] == set_ for key in counts):
            total = sum(number for key, number in EXPECTED_COUNTS.items() if key[0] == set_)
            problems.append(f"set {set_.upper()} is missing: none of its {total} files found")
            continue
        problems += [
            f"set {set_.upper()} {label or 'unlabelled'}: {counts[set_, label]} files found, "
            f"{expected} in the full data set"
            for (of_set, label), expected in EXPECTED_COUNTS.items()
            if of_set == set_ and counts[set_, label] != expected
        ]
    return problems


def _shortened(lines: list[str], what: str, most: int = 20) -> list[str]:
    if len(lines) <= most:
        return lines
    return [*lines[:most], f"... and {len(lines) - most} more {what}"]
