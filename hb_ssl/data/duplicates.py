"""Finds recordings that hold the same sound, from the audio itself.

PASCAL ships some recordings twice: under two labels, under two subjects, cut shorter, shifted in
time and with fresh dither, so neither names nor byte hashes tell. Such copies must never end up on
both sides of a split.

Two steps. A search at a low rate slides chunks of every recording over all longer ones
(normalised cross-correlation by FFT). A check at a higher rate and in a wider band then follows
each candidate alignment along the whole overlap and keeps the stretch that really agrees.
"""

import hashlib
import json
import logging
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from tqdm import tqdm

from hb_ssl.audio import band_limit, load_audio, resample
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 1  # part of the cache key; raise it when the result can change

SEARCH_RATE = 400  # Hz
SEARCH_BAND = (25.0, 80.0)  # Hz; far below SEARCH_RATE / 2, so half a sample of shift costs little
CHUNK_SECONDS = 1.5
CHUNK_HOP_SECONDS = 1.0  # a shared stretch of CHUNK + HOP = 2.5 s always holds a whole chunk
# Copies shifted by half a search sample still reach 0.87 here; the check below decides.
SEARCH_CORRELATION = 0.80
MAX_LAGS_PER_PAIR = 4  # a periodic signal fits at many lags
FFT_SAMPLES = 4096
FFT_BLOCKS = 32  # stream blocks per transform: stays in the processor's cache

CHECK_RATE = 2000  # Hz
CHECK_BAND = (25.0, 900.0)  # Hz; wide, since same-subject beats differ mostly above 80 Hz
CHECK_WINDOW_SECONDS = 0.75  # also the shortest shared stretch; PASCAL's shortest file is 0.76 s
CHECK_HOP_SECONDS = 0.25
WINDOW_CORRELATION = 0.98
MIN_CORRELATION = 0.995
SILENCE_RMS = 1e-4  # 3 steps of 16-bit audio: what is left of digital silence is dither


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


@dataclass(frozen=True)
class _Candidate:
    """A chunk of recording ``short`` that resembles recording ``long`` (indices)."""

    correlation: float
    short: int
    long: int
    start_seconds: float  # where the chunk starts in ``short``
    lag_seconds: float  # time in ``long`` minus time in ``short``


def find_duplicates(
    recordings: list[Recording], cache_dir: str | Path | None = None
) -> list[Duplicate]:
    """Finds every pair of recordings that share a stretch of sound.

    Copies may be dithered, shifted, cut, contained in one another, changed in gain, or resampled.
    Found for certain: shared stretches of 2.5 s or more; shorter ones (from 0.75 s) if they start
    or end one of the two recordings, as cuts of one take do.

    The result is cached as JSON under a key made of the recordings' ids and content hashes.

    Args:
        recordings: labelled and unlabelled, of any set and sampling rate.
        cache_dir: cache folder; ``None`` uses ``$HB_SSL_CACHE`` or ``~/.cache/hb_ssl``.

    Returns:
        Pairs sorted by (first, second); one, the longest stretch, for each pair.

    Raises:
        UserError: a recording can't be decoded.
    """
    cache_path = _cache_path(recordings, cache_dir)
    cached = _read_cache(cache_path)
    if cached is not None:
        return cached
    duplicates = _search_and_check(recordings)
    try:
        write_json_atomic(cache_path, [asdict(duplicate) for duplicate in duplicates])
    except UserError as error:
        logger.warning("duplicates are not cached: %s", error)
    return duplicates


def contradictory_duplicates(
    recordings: list[Recording], duplicates: list[Duplicate]
) -> set[str]:
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


def _search_and_check(recordings: list[Recording]) -> list[Duplicate]:
    # Chunks come from the shorter recording of a pair: a longer one's need not fit in it.
    ordered = sorted(recordings, key=lambda r: (r.duration_seconds, r.recording_id))
    lowest_rate = min((r.sampling_rate for r in ordered), default=CHECK_RATE)
    high_hz = min(CHECK_BAND[1], 0.45 * lowest_rate)
    wide, narrow = [], []
    for recording in tqdm(ordered, desc="decoding for the duplicate search", disable=None):
        waveform, _ = load_audio(recording.path, CHECK_RATE)
        wide.append(band_limit(waveform, CHECK_RATE, CHECK_BAND[0], high_hz).astype(np.float32))
        low = band_limit(waveform, CHECK_RATE, *SEARCH_BAND)
        narrow.append(resample(low.astype(np.float32), CHECK_RATE, SEARCH_RATE))

    best: dict[tuple[str, str], Duplicate] = {}
    by_hash: dict[str, list[Recording]] = defaultdict(list)
    for recording in ordered:  # equal bytes are copies even where there is nothing to correlate
        for other in by_hash[recording.content_hash]:
            first, second = sorted((recording.recording_id, other.recording_id))
            best[first, second] = Duplicate(first, second, 1.0, 0.0, recording.duration_seconds)
        by_hash[recording.content_hash].append(recording)

    for candidate in _search(narrow):
        stretch = _check(wide[candidate.short], wide[candidate.long], candidate)
        if stretch is None:
            continue
        correlation, lag, shared = stretch
        first, second = (ordered[i].recording_id for i in (candidate.short, candidate.long))
        if second < first:
            first, second, lag = second, first, -lag
        found = Duplicate(first, second, round(correlation, 6), round(lag, 5), round(shared, 3))
        known = best.get((first, second))
        if known is None or found.shared_seconds > known.shared_seconds:
            best[first, second] = found
    return [best[pair] for pair in sorted(best)]


def _search(waveforms: list[np.ndarray]) -> list[_Candidate]:
    """Places where a chunk of one recording resembles a longer one; up to a few lags a pair.

    Args:
        waveforms: ``[T_i]`` each, at ``SEARCH_RATE``, band-passed, shortest first.
    """
    if len(waveforms) < 2:
        return []
    chunk = round(CHUNK_SECONDS * SEARCH_RATE)
    step = round(CHUNK_HOP_SECONDS * SEARCH_RATE)
    lengths = np.array([len(waveform) for waveform in waveforms])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    # All recordings one after another, cut into blocks that overlap by a chunk (overlap-save).
    valid = FFT_SAMPLES - chunk + 1
    num_blocks = -(-int(lengths.sum()) // valid)
    stream = np.zeros((num_blocks - 1) * valid + FFT_SAMPLES, np.float32)
    stream[: lengths.sum()] = np.concatenate(waveforms)
    owner = np.full(num_blocks * valid, len(waveforms) - 1)
    owner[: lengths.sum()] = np.repeat(np.arange(len(waveforms)), lengths)
    blocks = sliding_window_view(stream, FFT_SAMPLES)[::valid][:num_blocks]
    spectra = torch.fft.rfft(torch.from_numpy(blocks.copy()))
    energy = np.concatenate([[0.0], np.cumsum(stream.astype(np.float64) ** 2)])
    ends = np.repeat(starts + lengths, lengths)

    def inverse_norms(length: int) -> torch.Tensor:
        """1 / norm of the ``length`` samples from each position; 0 if silent or not in one piece."""
        power = energy[length:][: len(ends)] - energy[:-length][: len(ends)]
        usable = (np.arange(len(ends)) + length <= ends) & (power > length * SILENCE_RMS**2)
        scale = np.zeros(num_blocks * valid, np.float32)
        scale[: len(ends)][usable] = 1 / np.sqrt(power[usable])
        return torch.from_numpy(scale.reshape(num_blocks, valid))

    norms_by_length: dict[int, torch.Tensor] = {}
    hits: dict[tuple[int, int], list[_Candidate]] = defaultdict(list)
    for index in tqdm(range(len(waveforms) - 1), desc="searching duplicates", disable=None):
        waveform = waveforms[index]
        length = min(chunk, len(waveform))
        if length not in norms_by_length:
            norms_by_length = {length: inverse_norms(length)}  # shortest first: never needed again
        norms = norms_by_length[length]
        after = int(starts[index + 1])
        for start in [*range(0, len(waveform) - length, step), len(waveform) - length]:
            piece = waveform[start : start + length]
            norm = float(np.sqrt(np.sum(piece.astype(np.float64) ** 2)))
            if norm <= SILENCE_RMS * length**0.5:
                continue
            filter_ = torch.fft.rfft(torch.from_numpy(piece / np.float32(norm)), FFT_SAMPLES).conj()
            for low in range(after // valid, num_blocks, FFT_BLOCKS):
                part = slice(low, low + FFT_BLOCKS)
                scores = torch.fft.irfft(spectra[part] * filter_, FFT_SAMPLES)[:, :valid]
                scores = scores * norms[part]
                if float(scores.max()) < SEARCH_CORRELATION:
                    continue
                position = torch.nonzero(scores.flatten() >= SEARCH_CORRELATION)[:, 0].numpy()
                values = scores.flatten().numpy()[position]
                position = position + low * valid
                keep = position >= after
                for other in np.unique(owner[position[keep]]):
                    mine = keep & (owner[position] == other)
                    top = int(np.argmax(np.where(mine, values, -1.0)))
                    lag = int(position[top] - starts[other]) - start
                    hits[index, int(other)].append(
                        _Candidate(
                            float(values[top]),
                            index,
                            int(other),
                            start / SEARCH_RATE,
                            lag / SEARCH_RATE,
                        )
                    )
    return [candidate for pair in sorted(hits) for candidate in _distinct_lags(hits[pair])]


def _distinct_lags(candidates: list[_Candidate]) -> list[_Candidate]:
    """The best candidates whose lags are more than two search samples apart."""
    kept: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c.correlation, c.start_seconds)):
        if all(abs(candidate.lag_seconds - k.lag_seconds) > 2 / SEARCH_RATE for k in kept):
            kept.append(candidate)
        if len(kept) == MAX_LAGS_PER_PAIR:
            break
    return kept


def _check(
    short: np.ndarray, long: np.ndarray, candidate: _Candidate
) -> tuple[float, float, float] | None:
    """Follows one alignment: (correlation, lag in seconds, shared seconds), or ``None``.

    Args:
        short: ``[T]`` at ``CHECK_RATE``, where the chunk comes from.
        long: ``[T']`` at ``CHECK_RATE``.
        candidate: where to look.
    """
    window = round(CHECK_WINDOW_SECONDS * CHECK_RATE)
    lag = _refine_lag(short, long, candidate)
    whole = int(np.floor(lag))
    shifted = _advance(long, lag - whole)
    start, end = max(0, -whole), min(len(short), len(long) - whole)
    if end - start < window:
        return None
    a = short[start:end].astype(np.float64)
    b = shifted[start + whole : end + whole].astype(np.float64)
    step = round(CHECK_HOP_SECONDS * CHECK_RATE)
    run: list[int] = []
    longest: list[int] = []
    for at in [*range(0, len(a) - window, step), len(a) - window]:
        x, y = a[at : at + window], b[at : at + window]
        silent = max(_rms(x), _rms(y)) < SILENCE_RMS
        if silent or _correlation(x, y) >= WINDOW_CORRELATION:
            run.append(at)
            longest = max(longest, run, key=len)
        else:
            run = []
    if not longest:
        return None
    stretch = slice(longest[0], longest[-1] + window)
    correlation = _correlation(a[stretch], b[stretch])
    if correlation < MIN_CORRELATION:
        return None
    return min(correlation, 1.0), lag / CHECK_RATE, (stretch.stop - stretch.start) / CHECK_RATE


def _refine_lag(short: np.ndarray, long: np.ndarray, candidate: _Candidate) -> float:
    """The candidate's lag to a fraction of a sample at ``CHECK_RATE``, from its chunk alone."""
    begin = round(candidate.start_seconds * CHECK_RATE)
    piece = short[begin : begin + round(CHUNK_SECONDS * CHECK_RATE)].astype(np.float64)
    reach = 2 * CHECK_RATE // SEARCH_RATE
    centre = round(candidate.lag_seconds * CHECK_RATE)
    lags = np.arange(centre - reach, centre + reach + 1)
    pad = len(piece) + reach + 2  # zeros where the chunk would stick out
    padded = np.pad(long.astype(np.float64), pad)
    first = pad + begin + int(lags[0])
    near = sliding_window_view(padded[first : first + len(piece) + len(lags) - 1], len(piece))
    norms = np.sqrt(np.maximum((near**2).sum(axis=1), 1e-20))
    scores = near @ piece / norms
    lag = float(lags[int(np.argmax(scores))])
    for _ in range(3):  # a parabola through three points, repeated since the band is wide
        around = []
        whole = int(np.floor(lag))
        for move in (-0.5, 0.0, 0.5):
            at = pad + begin + whole
            view = _advance(padded[at - 2 : at + len(piece) + 2], lag - whole + move)[2:-2]
            around.append(_correlation(piece, view))
        bend = around[0] - 2 * around[1] + around[2]
        if bend >= 0:
            break
        lag += float(np.clip(0.25 * (around[0] - around[2]) / bend, -0.5, 0.5))
    return lag


def _advance(waveform: np.ndarray, samples: float) -> np.ndarray:
    """``waveform(t + samples)`` by a linear phase, zero-padded so that nothing wraps around."""
    if samples == 0:
        return waveform
    size = 2 * len(waveform)
    phase = np.exp(2j * np.pi * np.fft.rfftfreq(size) * samples)
    return np.fft.irfft(np.fft.rfft(waveform, size) * phase, size)[: len(waveform)]


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0


def _cache_path(recordings: list[Recording], cache_dir: str | Path | None) -> Path:
    folder = cache_dir if cache_dir is not None else os.environ.get("HB_SSL_CACHE")
    rows = sorted((r.recording_id, r.content_hash) for r in recordings)
    key = hashlib.sha256(json.dumps([ALGORITHM_VERSION, rows]).encode()).hexdigest()[:24]
    return Path(folder or "~/.cache/hb_ssl").expanduser() / f"duplicates-{key}.json"


def _read_cache(path: Path) -> list[Duplicate] | None:
    try:
        if not path.is_file():
            return None
        rows: list[dict[str, Any]] = read_json(path)
        return [Duplicate(**row) for row in rows]
    except (OSError, UserError, TypeError) as error:
        logger.warning("the duplicate cache can't be used and is made again: %s", error)
        return None
