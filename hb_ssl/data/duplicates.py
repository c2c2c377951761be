"""Finds recordings that hold the same sound, from the audio itself.

PASCAL ships some recordings twice: under two labels, under two subjects, cut shorter, shifted in
time and with fresh dither, so neither names nor byte hashes tell. Such copies must never end up on
both sides of a split.
"""

import hashlib
import json
import logging
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hb_ssl.audio import load_audio, resample
from hb_ssl.data.recording import Recording
from hb_ssl.data.shared_audio import CHECK_RATE, find_shared_stretches
from hb_ssl.errors import UserError
from hb_ssl.files import cache_folder, read_json, write_json_atomic

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 1  # part of the cache key; raise it when the result can change


@dataclass(frozen=True)
class Duplicate:
    """Two recordings that hold the same sound.

    Attributes:
        first: recording_id, ``first < second``.
        second: recording_id.
        correlation: normalised correlation of the shared stretch, 25 to 900 Hz.
        offset_seconds: sample t of ``first`` sounds at t + offset in ``second``.
        shared_seconds: length of the shared stretch.
    """

    first: str
    second: str
    correlation: float
    offset_seconds: float
    shared_seconds: float


def find_duplicates(
    recordings: list[Recording], cache_dir: str | Path | None = None
) -> list[Duplicate]:
    """Finds every pair of recordings that share a stretch of sound.

    Copies may be dithered, shifted, cut, contained in one another, changed in gain, or resampled.
    Shared stretches of 2.5 s or more are found wherever they lie, stretches from 1.5 s if the
    shorter recording starts or ends with them (as cuts of one take do), and a recording of any
    length if the other holds all of it.

    The result is cached as JSON under a key made of the recordings' ids and content hashes.

    Args:
        recordings: labelled and unlabelled, of any set and sampling rate.
        cache_dir: cache folder; ``None`` for ``cache_folder()``.

    Returns:
        Pairs sorted by (first, second); one, the longest stretch, for each pair.

    Raises:
        UserError: a recording can't be decoded.
    """
    cache_path = _cache_path(recordings, cache_dir)
    cached = _read_cache(cache_path)
    if cached is not None:
        return cached
    duplicates = _search(recordings)
    try:
        write_json_atomic(cache_path, [asdict(duplicate) for duplicate in duplicates])
    except UserError as error:
        logger.warning("duplicates are not cached: %s", error)
    return duplicates


def contradictory_duplicates(recordings: list[Recording], duplicates: list[Duplicate]) -> set[str]:
    """Ids of labelled recordings that share sound with one of another raw label.

    Their label can't be right for both, so neither can teach or score anything.
    """
    labels = {recording.recording_id: recording.raw_label for recording in recordings}
    found: set[str] = set()
    for duplicate in duplicates:
        first, second = labels.get(duplicate.first), labels.get(duplicate.second)
        if first is not None and second is not None and first != second:
            found |= {duplicate.first, duplicate.second}
    return found


def _search(recordings: list[Recording]) -> list[Duplicate]:
    ordered = sorted(recordings, key=lambda r: (r.duration_seconds, r.recording_id))
    best: dict[tuple[str, str], Duplicate] = {}
    by_hash: dict[str, list[Recording]] = defaultdict(list)
    for recording in ordered:  # equal bytes are copies even where there is nothing to correlate
        for other in by_hash[recording.content_hash]:
            first, second = sorted((recording.recording_id, other.recording_id))
            best[first, second] = Duplicate(first, second, 1.0, 0.0, recording.duration_seconds)
        by_hash[recording.content_hash].append(recording)

    waveforms = []
    for recording in tqdm(ordered, desc="Decoding recordings", unit="file", disable=None):
        waveform, rate = load_audio(recording.path)
        # The resampler sees zeros outside: a constant offset would become a step at either end.
        waveforms.append(resample(waveform - waveform.mean(), rate, CHECK_RATE))
    # Near half the sampling rate the resampler's filter differs between rates.
    high_hz = 0.45 * min((r.sampling_rate for r in ordered), default=CHECK_RATE)
    for stretch in find_shared_stretches(waveforms, high_hz):
        first, second = ordered[stretch.first].recording_id, ordered[stretch.second].recording_id
        lag = stretch.lag_seconds
        if second < first:
            first, second, lag = second, first, -lag
        if (first, second) not in best:
            best[first, second] = Duplicate(
                first,
                second,
                correlation=round(stretch.correlation, 6),
                offset_seconds=round(lag, 5),
                shared_seconds=round(stretch.shared_seconds, 3),
            )
    return [best[pair] for pair in sorted(best)]


def _cache_path(recordings: list[Recording], cache_dir: str | Path | None) -> Path:
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    rows = sorted((r.recording_id, r.content_hash) for r in recordings)
    key = hashlib.sha256(json.dumps([ALGORITHM_VERSION, rows]).encode()).hexdigest()[:24]
    return folder / f"duplicates-{key}.json"


def _read_cache(path: Path) -> list[Duplicate] | None:
    try:
        if not path.is_file():
            return None
        rows: list[dict[str, Any]] = read_json(path)
        return [Duplicate(**row) for row in rows]
    except (OSError, UserError, TypeError) as error:
        logger.warning("the duplicate cache can't be used and is made again: %s", error)
        return None
