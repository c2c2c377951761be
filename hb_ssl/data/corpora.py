"""Unlabelled heart-sound corpora: any folder of audio, decoded once and read as random windows."""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from tqdm import tqdm

from hb_ssl.audio import load_audio, random_window
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"})
CIRCOR_TABLE = "training_data.csv"  # beside the recordings or one folder above them
CIRCOR_SUBJECTS = "circor2022"  # names its subjects, whatever the folder is called
_CACHE_VERSION = 2
INT16_SCALE = 32768.0  # as libsndfile: 16-bit PCM survives exactly


@dataclass(frozen=True)
class CorpusRecording:
    """One recording inside a decoded corpus.

    Attributes:
        recording_id: ``<name of the corpus folder>/<path below it without suffix>``.
        subject: ``circor2022/<subject>`` whatever the folder is called, so that the same people are
            held out on every machine; ``None`` where nobody knows.
        start: first sample in the corpus array.
        num_samples: length in samples at the corpus rate.
    """

    recording_id: str
    subject: str | None
    start: int
    num_samples: int


@dataclass(frozen=True)
class Corpus:
    """Recordings one after the other in one memory-mapped ``int16`` array.

    Attributes:
        samples: ``[total]`` int16, full scale = 32768.
        recordings: where each recording lies.
        sampling_rate: Hz.
        content_hash: SHA-256 (hex) of all decoded samples, for model cards.
    """

    samples: np.ndarray
    recordings: tuple[CorpusRecording, ...]
    sampling_rate: int
    content_hash: str

    @property
    def hours(self) -> float:
        return sum(r.num_samples for r in self.recordings) / self.sampling_rate / 3600

    def waveform(self, index: int) -> np.ndarray:
        """Recording ``index`` as float32 ``[T]`` in [-1, 1]."""
        recording = self.recordings[index]
        samples = self.samples[recording.start : recording.start + recording.num_samples]
        return samples.astype(np.float32) / INT16_SCALE

    def random_window(self, index: int, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """A random window ``[num_samples]`` (float32); a shorter recording is tiled."""
        recording = self.recordings[index]
        samples = self.samples[recording.start : recording.start + recording.num_samples]
        return random_window(samples, num_samples, rng).astype(np.float32) / INT16_SCALE


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """A waveform ``[T]`` in [-1, 1] as 16-bit samples; louder ones are clipped."""
    return np.clip(np.round(waveform * INT16_SCALE), -32768, 32767).astype(np.int16)


def list_audio_files(folder: str | Path) -> list[Path]:
    """Every audio file below ``folder``, sorted, hidden files left out.

    Raises:
        UserError: the folder is missing or holds no audio.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a folder of audio files")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"{folder}: holds no audio; expected {', '.join(sorted(AUDIO_SUFFIXES))} files"
        )
    return files


def circor_subjects(table: str | Path) -> dict[str, str]:
    """CirCor patient id -> subject; a person enrolled twice (`Additional ID`) is one subject.

    Source: the data description of CirCor DigiScope 1.0.3 (PhysioNet), column `Additional ID`.
    """
    with Path(table).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    links = {row["Patient ID"]: row["Patient ID"] for row in rows}

    def root(patient: str) -> str:
        while links.setdefault(patient, patient) != patient:
            patient = links[patient]
        return patient

    for row in rows:
        if row["Additional ID"]:
            first, second = sorted((root(row["Patient ID"]), root(_whole(row["Additional ID"]))))
            links[second] = first
    return {row["Patient ID"]: root(row["Patient ID"]) for row in rows}


def circor_patients(table: str | Path) -> dict[str, dict[str, str]]:
    """CirCor patient id -> row of ``training_data.csv``."""
    with Path(table).open(newline="", encoding="utf-8") as stream:
        return {row["Patient ID"]: row for row in csv.DictReader(stream)}


def murmur_heard(patients: dict[str, dict[str, str]], stem: str) -> str | None:
    """Present or Absent in the recording ``<patient>_<site>``, else ``None``.

    Nobody knows it for patients marked Unknown, and at sites of a murmur patient where it was not
    heard.
    """
    patient, _, site = stem.partition("_")
    row = patients.get(patient)
    if row is None or row["Murmur"] == "Unknown":
        return None
    if row["Murmur"] == "Present" and site.split("_")[0] not in row["Murmur locations"].split("+"):
        return None
    return row["Murmur"]


def circor_murmurs(corpus: "Corpus", table: str | Path) -> list[tuple[int, str]]:
    """``(index, "Present" or "Absent")`` of CirCor recordings whose murmur is known."""
    patients = circor_patients(table)
    known = []
    for index, recording in enumerate(corpus.recordings):
        murmur = murmur_heard(patients, recording.recording_id.split("/")[-1])
        if recording.subject is not None and murmur is not None:
            known.append((index, murmur))
    return known


def _whole(number: str) -> str:
    return str(int(float(number)))  # the table writes ids of this column as 50379.0


def load_corpus(folders: Sequence[str | Path], sampling_rate: int, cache_dir: str | Path) -> Corpus:
    """Decodes folders of audio at ``sampling_rate`` into a cache and maps it into memory.

    The cache is keyed on every file's name, size and modification time, so a changed folder is
    decoded again. Files that can't be decoded are left out and logged by name.

    Args:
        folders: searched recursively. Subjects are known for CirCor only (``<patient>_<site>``
            names with ``training_data.csv`` in or above the folder).
        sampling_rate: target rate in Hz.
        cache_dir: created if missing; needs 2 bytes a sample.

    Raises:
        UserError: a folder is missing or empty, two folders share a name, or nothing decodes.
    """
    files = list_corpus_files(folders)
    cache = Path(cache_dir) / _cache_key(files, sampling_rate)
    if not (cache / "index.json").is_file():
        _decode(files, sampling_rate, cache)
    index = read_json(cache / "index.json")
    return Corpus(
        samples=np.load(cache / "samples.npy", mmap_mode="r"),
        recordings=tuple(CorpusRecording(**entry) for entry in index["recordings"]),
        sampling_rate=sampling_rate,
        content_hash=index["content_hash"],
    )


@dataclass(frozen=True)
class CorpusFile:
    """An audio file of a corpus folder.

    Attributes:
        path: where it is.
        recording_id: see ``CorpusRecording``.
        subject: see ``CorpusRecording``.
        table: CirCor's ``training_data.csv`` of its folder, if there is one.
    """

    path: Path
    recording_id: str
    subject: str | None
    table: Path | None


def list_corpus_files(folders: Sequence[str | Path]) -> list[CorpusFile]:
    """Every audio file of several folders, with what is known of it.

    Raises:
        UserError: a folder is missing or empty, or two folders share a name.
    """
    roots = [Path(folder).resolve() for folder in folders]
    if len({root.name for root in roots}) != len(roots):
        names = ", ".join(str(root) for root in roots)
        raise UserError(f"{names}: two corpus folders share their last name; rename one")
    files = []
    for root in roots:
        table = circor_table(root)
        subjects = circor_subjects(table) if table else {}
        for path in list_audio_files(root):
            subject = subjects.get(path.stem.split("_")[0])
            files.append(
                CorpusFile(
                    path=path,
                    recording_id=f"{root.name}/{path.relative_to(root).with_suffix('').as_posix()}",
                    subject=f"{CIRCOR_SUBJECTS}/{subject}" if subject else None,
                    table=table,
                )
            )
    return files


def _cache_key(files: list[CorpusFile], sampling_rate: int) -> str:
    entries = []
    for file in files:
        name = file.recording_id + file.path.suffix
        try:
            status = file.path.stat()
        except OSError:  # a link to nowhere; decoding will say so
            entries.append((name, 0, 0))
            continue
        entries.append((name, status.st_size, status.st_mtime_ns))
    tables = sorted({file.table.stat().st_mtime_ns for file in files if file.table})
    key = json.dumps([_CACHE_VERSION, sampling_rate, entries, tables])
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def circor_table(root: Path) -> Path | None:
    """CirCor's table of a corpus folder: in it, or one folder above it."""
    candidates = (root / CIRCOR_TABLE, root.parent / CIRCOR_TABLE)
    return next((table for table in candidates if table.is_file()), None)


def _decode(files: list[CorpusFile], sampling_rate: int, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    chunks: list[np.ndarray] = []
    recordings: list[CorpusRecording] = []
    start = 0
    for file in tqdm(files, desc="decode", unit="file", disable=None):
        try:
            waveform, _ = load_audio(file.path, sampling_rate)
        except UserError as error:
            logger.warning("left out of pre-training: %s", error)
            continue
        chunk = to_int16(waveform)
        recordings.append(CorpusRecording(file.recording_id, file.subject, start, len(chunk)))
        chunks.append(chunk)
        start += len(chunk)
    if not recordings:
        raise UserError(
            f"{files[0].path.parent}: no file could be decoded; expected WAV, FLAC or Ogg audio"
        )
    temporary = cache / f".samples.{os.getpid()}.tmp"
    samples = open_memmap(temporary, mode="w+", dtype=np.int16, shape=(start,))
    digest = hashlib.sha256()
    for recording, chunk in zip(recordings, chunks):
        samples[recording.start : recording.start + recording.num_samples] = chunk
        digest.update(chunk.tobytes())
    samples.flush()
    temporary.replace(cache / "samples.npy")
    # The index goes last: a cache without it counts as absent.
    write_json_atomic(
        cache / "index.json",
        {"content_hash": digest.hexdigest(), "recordings": [asdict(r) for r in recordings]},
    )


def is_held_out(subject: str | None, fraction: float) -> bool:
    """Whether a subject belongs to the part of the data that pre-training never sees.

    Decided by a hash of the subject, so the same subjects are held out on every machine. Unknown
    subjects never are: a hash of the recording could part recordings of one person.
    """
    if subject is None:
        return False
    return _hash_share(subject) < fraction


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def take_share(corpus: "Corpus", indices: list[int], fraction: float) -> list[int]:
    """Those of ``indices`` in a share of the subjects; a larger share contains a smaller one.

    A recording of an unknown subject counts as its own. Whether a subject is held out
    (``is_held_out``) makes no difference.
    """

    def name(index: int) -> str:
        recording = corpus.recordings[index]
        return f"share/{recording.subject or recording.recording_id}"

    return [index for index in indices if _hash_share(name(index)) < fraction]


def split_corpus(corpus: Corpus, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Indices of the recordings to train on, and of those held out by subject."""
    train: list[int] = []
    held_out: list[int] = []
    for index, recording in enumerate(corpus.recordings):
        (held_out if is_held_out(recording.subject, held_out_fraction) else train).append(index)
    return train, held_out
