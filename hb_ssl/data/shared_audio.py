"""Finds the stretches of sound that two waveforms share.

Two steps. A search at a low rate slides chunks of every waveform over all longer ones (normalised
cross-correlation by FFT, overlap-save). A check at a higher rate and in a wider band then follows
each candidate alignment along the whole overlap and keeps the stretch that really agrees.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import next_fast_len
from tqdm import tqdm

from hb_ssl.audio import band_limit, resample

SEARCH_RATE = 400  # Hz
SEARCH_BAND = (25.0, 80.0)  # Hz; far below SEARCH_RATE / 2, so half a sample of shift costs little
CHUNK_SECONDS = 1.5
CHUNK_HOP_SECONDS = 1.0  # a shared stretch of CHUNK + HOP = 2.5 s always holds a whole chunk
# True copies whose shift falls between two search samples reach only 0.91; the check decides.
SEARCH_CORRELATION = 0.80
MAX_LAGS_PER_PAIR = 4  # a periodic signal fits at many lags
FFT_SAMPLES = 4096
FFT_BLOCKS = 32  # stream blocks per transform: stays in the processor's cache

CHECK_RATE = 2000  # Hz; waveforms come at this rate
CHECK_BAND = (25.0, 900.0)  # Hz; wide, since beats of one heart differ most above 80 Hz
CHECK_WINDOW_SECONDS = 1.0  # also the shortest shared stretch, unless a file is shorter still
CHECK_HOP_SECONDS = 0.25
EDGE_SECONDS = 0.1  # left out at both ends of an overlap, where one recording's filter rings
# Measured on all 832 PASCAL recordings: the shared stretches of the 13 true pairs correlate at
# 0.9982 to 1.0000. Distinct recordings reach at most 0.932 in their best window (two takes of
# subject 300). Only the simulator block (periodic by machine, one group anyway) comes closer:
# 0.9953 in its best window.
WINDOW_CORRELATION = 0.99
MIN_CORRELATION = 0.997
HOPELESS_CORRELATION = 0.5  # of the chunk itself in the wide band: no need to look further
SILENCE_RMS = 1e-4  # 3 steps of 16-bit audio: what is left of digital silence is dither


@dataclass(frozen=True)
class SharedStretch:
    """A stretch of sound in two waveforms.

    Attributes:
        first: index of a waveform.
        second: index of a waveform that is at least as long.
        correlation: normalised correlation of the stretch, 25 to 900 Hz.
        lag_seconds: what sounds at t in ``first`` sounds at t + lag in ``second``.
        shared_seconds: length.
    """

    first: int
    second: int
    correlation: float
    lag_seconds: float
    shared_seconds: float


@dataclass(frozen=True)
class _Candidate:
    """A chunk of recording ``short`` that resembles recording ``long`` (indices)."""

    correlation: float
    short: int
    long: int
    start_seconds: float  # where the chunk starts in ``short``
    lag_seconds: float  # time in ``long`` minus time in ``short``


def find_shared_stretches(waveforms: list[np.ndarray], high_hz: float) -> list[SharedStretch]:
    """The longest shared stretch of every pair of waveforms that has one.

    Args:
        waveforms: ``[T_i]`` each, float32 at ``CHECK_RATE``, shortest first: chunks come from the
            shorter one of a pair, since a longer one's need not fit.
        high_hz: upper end of what every waveform can hold; up to ``CHECK_BAND`` is compared.

    Returns:
        Stretches sorted by (first, second).
    """
    wide, narrow = [], []
    for waveform in tqdm(waveforms, desc="Filtering recordings", unit="file", disable=None):
        band = band_limit(waveform, CHECK_RATE, CHECK_BAND[0], min(CHECK_BAND[1], high_hz))
        wide.append(band.astype(np.float32))
        band = band_limit(waveform, CHECK_RATE, *SEARCH_BAND)
        narrow.append(resample(band.astype(np.float32), CHECK_RATE, SEARCH_RATE))
    best: dict[tuple[int, int], SharedStretch] = {}
    for candidate in tqdm(_search(narrow), desc="Checking candidates", disable=None):
        found = _check(wide[candidate.short], wide[candidate.long], candidate)
        pair = candidate.short, candidate.long
        if found and (pair not in best or found.shared_seconds > best[pair].shared_seconds):
            best[pair] = found
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
        """1 / norm of the ``length`` samples from each position; 0 if silent or cut in two."""
        power = energy[length:][: len(ends)] - energy[:-length][: len(ends)]
        usable = (np.arange(len(ends)) + length <= ends) & (power > length * SILENCE_RMS**2)
        scale = np.zeros(num_blocks * valid, np.float32)
        scale[: len(ends)][usable] = 1 / np.sqrt(power[usable])
        return torch.from_numpy(scale.reshape(num_blocks, valid))

    norms_by_length: dict[int, torch.Tensor] = {}
    hits: dict[tuple[int, int], list[_Candidate]] = defaultdict(list)
    for index in tqdm(range(len(waveforms) - 1), desc="Searching shared sound", disable=None):
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
                flat = scores.flatten().numpy()
                near = np.flatnonzero(flat >= SEARCH_CORRELATION)
                higher = np.maximum(flat[near - 1], flat[np.minimum(near + 1, len(flat) - 1)])
                for at in near[(flat[near] >= higher) & (near + low * valid >= after)]:
                    other = int(owner[at + low * valid])
                    lag = int(at) + low * valid - int(starts[other]) - start
                    hits[index, other].append(
                        _Candidate(
                            float(flat[at]), index, other, start / SEARCH_RATE, lag / SEARCH_RATE
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


def _check(short: np.ndarray, long: np.ndarray, candidate: _Candidate) -> SharedStretch | None:
    """Follows one alignment to the stretch that agrees, if any does.

    The stretch is the longest run of windows that all agree, so a take that is only partly shared
    (a phone's buffer that still holds the end of the last take) is found too.

    Args:
        short: ``[T]`` at ``CHECK_RATE``, where the chunk comes from.
        long: ``[T']`` at ``CHECK_RATE``.
        candidate: where to look.
    """
    edge = round(EDGE_SECONDS * CHECK_RATE)
    window = min(round(CHECK_WINDOW_SECONDS * CHECK_RATE), len(short) - 2 * edge)
    lag = _refine_lag(short, long, candidate)
    if lag is None:
        return None
    whole = int(np.floor(lag))
    shifted = _advance(long, lag - whole)
    start, end = max(0, -whole) + edge, min(len(short), len(long) - whole) - edge
    if end - start < window or window <= 0:
        return None
    a = short[start:end].astype(np.float64)
    b = shifted[start + whole : end + whole].astype(np.float64)
    step = round(CHECK_HOP_SECONDS * CHECK_RATE)
    run: list[int] = []
    longest: list[int] = []
    for at in [*range(0, len(a) - window, step), len(a) - window]:
        x, y = a[at : at + window], b[at : at + window]
        silent = max(_rms(x), _rms(y)) < SILENCE_RMS
        run = [*run, at] if silent or _correlation(x, y) >= WINDOW_CORRELATION else []
        longest = max(longest, run, key=len)
    if not longest:
        return None
    stretch = slice(longest[0], longest[-1] + window)
    correlation = _correlation(a[stretch], b[stretch])
    if correlation < MIN_CORRELATION:
        return None
    shared = stretch.stop - stretch.start + edge * ((stretch.start == 0) + (stretch.stop == len(a)))
    return SharedStretch(
        candidate.short,
        candidate.long,
        min(correlation, 1.0),
        lag / CHECK_RATE,
        shared / CHECK_RATE,
    )


def _refine_lag(short: np.ndarray, long: np.ndarray, candidate: _Candidate) -> float | None:
    """The candidate's lag to a fraction of a sample at ``CHECK_RATE``, from its chunk alone.

    ``None`` if the chunk does not fit in the wide band.
    """
    edge = round(EDGE_SECONDS * CHECK_RATE)
    begin = round(candidate.start_seconds * CHECK_RATE)
    end = min(begin + round(CHUNK_SECONDS * CHECK_RATE), len(short)) - edge
    begin += edge
    piece = short[begin:end].astype(np.float64)
    if not len(piece):
        return None
    reach = 2 * CHECK_RATE // SEARCH_RATE
    centre = round(candidate.lag_seconds * CHECK_RATE)
    lags = np.arange(centre - reach, centre + reach + 1)
    pad = len(piece) + reach + 2  # zeros where the chunk would stick out
    padded = np.pad(long.astype(np.float64), pad)
    first = pad + begin + int(lags[0])
    near = sliding_window_view(padded[first : first + len(piece) + len(lags) - 1], len(piece))
    norms = np.sqrt(np.maximum((near**2).sum(axis=1), 1e-20))
    scores = near @ piece / (norms * np.sqrt(max(float(piece @ piece), 1e-20)))
    if scores.max() < HOPELESS_CORRELATION:
        return None
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
    size = next_fast_len(2 * len(waveform), real=True)
    phase = np.exp(2j * np.pi * np.fft.rfftfreq(size) * samples)
    return np.fft.irfft(np.fft.rfft(waveform, size) * phase, size)[: len(waveform)]


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else 0.0
