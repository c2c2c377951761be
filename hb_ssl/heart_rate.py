"""Heart rate and beats from a recording of heart sounds, without a model.

The envelope of a heart sound recording repeats every heart cycle, so its autocorrelation peaks at
the cycle's length: Schmidt et al., "Segmentation of heart sound recordings by a duration-dependent
hidden Markov model" (Physiological Measurement 31, 2010), also the first step of Springer et al.,
"Logistic regression-HSMM-based heart sound segmentation" (IEEE Trans. Biomed. Eng. 63, 2016). S2
sits inside the cycle and tempts the method to half or double periods; the length of systole known
from physiology decides between them. S1 is then followed from beat to beat by dynamic programming:
Ellis, "Beat tracking by dynamic programming" (Journal of New Music Research 36, 2007).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import butter, resample_poly, sosfiltfilt

from hb_ssl.audio import window_starts

WORKING_RATE = 1000  # Hz at least, after decimation; heart sounds end near 400 Hz
ENVELOPE_RATE = 100  # Hz
BANDS_HZ = ((25, 60), (45, 110), (90, 220))  # S1 and S2 differ between these
BLOCK_SECONDS, MARGIN_SECONDS = 30.0, 0.5  # the envelope is made block by block: bounded memory
LEVEL_SECONDS = 4.0  # loudness is evened out over this long
SEGMENT_SECONDS, SEGMENT_HOP_SECONDS = 8.0, 4.0
MIN_BPM, USUAL_BPM, MAX_BPM = 40.0, 90.0, 200.0  # set on the simulator
MIN_SECONDS = 2.0  # two cycles at 60 beats per minute
MIN_CONFIDENCE = 0.30  # below it there is no heart rate; see benchmarks/results/heart_rate.md


@dataclass(frozen=True)
class HeartRate:
    """What ``estimate_heart_rate`` found.

    Attributes:
        bpm: beats per minute, or ``None`` when no regular heartbeat was found.
        beat_seconds: times of S1 ``[N]``, increasing; empty without a heart rate.
        confidence: how well one cycle matches the next, 0 (not at all) to 1 (exactly).
    """

    bpm: float | None
    beat_seconds: np.ndarray
    confidence: float


NO_HEART_RATE = HeartRate(None, np.zeros(0), 0.0)


def estimate_heart_rate(waveform: np.ndarray, rate: int) -> HeartRate:
    """Heart rate and times of S1 of a recording of any length.

    Args:
        waveform: mono ``[T]``, T >= 0.
        rate: Hz.

    Returns:
        A heart rate of ``None`` when the recording is silent, shorter than ``MIN_SECONDS``
        or has no regular beat between ``MIN_BPM`` and ``MAX_BPM``.
    """
    if len(waveform) < MIN_SECONDS * rate:
        return NO_HEART_RATE
    envelope = band_envelopes(waveform, rate)
    if not envelope.any():
        return NO_HEART_RATE
    flat = _flatten(envelope)
    correlation = _autocorrelation(flat)
    lag = _cycle_lag(correlation)
    if lag is None:
        return NO_HEART_RATE
    confidence = float(np.clip(correlation[round(lag)], 0, 1))
    if confidence < MIN_CONFIDENCE:
        return HeartRate(None, np.zeros(0), confidence)
    beats = (_follow_beats(flat, correlation, lag) + 0.5) / ENVELOPE_RATE
    return HeartRate(60 * ENVELOPE_RATE / lag, beats, confidence)


def band_envelopes(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Amplitude of every band of ``BANDS_HZ`` that the rate can hold.

    Args:
        waveform: mono ``[T]``.
        rate: Hz.

    Returns:
        ``[B, F]`` (float32) at ``ENVELOPE_RATE``: root mean squares over 50 ms.
    """
    step = max(int(rate // WORKING_RATE), 1)
    low_rate = rate / step
    filters = _band_filters(low_rate)
    num_frames = int(len(waveform) / rate * ENVELOPE_RATE)
    envelope = np.zeros((len(filters), num_frames), np.float32)
    block = int(BLOCK_SECONDS * ENVELOPE_RATE)
    for first in range(0, num_frames, block):
        last = min(first + block, num_frames)
        # Whole steps, so that the decimated grid goes on from block to block.
        begin = max(int((first / ENVELOPE_RATE - MARGIN_SECONDS) * low_rate), 0)
        end = int((last / ENVELOPE_RATE + MARGIN_SECONDS) * low_rate)
        samples = waveform[begin * step : end * step].astype(np.float64)
        if step > 1:
            samples = resample_poly(samples, 1, step)
        samples = samples - samples.mean()
        seconds = (np.arange(first, last) + 0.5) / ENVELOPE_RATE - begin / low_rate
        for row, sos in enumerate(filters):
            power = sosfiltfilt(sos, samples, padlen=min(len(samples) - 1, 100)) ** 2
            total = np.concatenate([[0.0], np.cumsum(power)])
            edges = np.stack([seconds - 0.025, seconds + 0.025]) * low_rate
            start, stop = np.interp(edges, np.arange(len(total)), total)
            mean = np.maximum(stop - start, 0) / (0.05 * low_rate)
            envelope[row, first:last] = np.sqrt(mean)
    return envelope


@lru_cache(maxsize=16)  # designing them costs as much as using them on ten seconds
def _band_filters(rate: float) -> list[np.ndarray]:
    bands = [(low, min(high, 0.45 * rate)) for low, high in BANDS_HZ if low < 0.4 * rate]
    return [butter(2, band, "bandpass", fs=rate, output="sos") for band in bands]


def _flatten(envelope: np.ndarray) -> np.ndarray:
    """Compresses ``[B, F]`` and takes slow changes out, so that no bump outweighs the beats."""
    size = round(LEVEL_SECONDS * ENVELOPE_RATE)
    power = uniform_filter1d(envelope**2, size, axis=-1, mode="nearest")
    level = np.sqrt(np.maximum(power, 0))  # in silence the running sum rounds to below 0
    even = np.sqrt(np.minimum(envelope / np.maximum(level, 1e-9), 3.0))
    return even - uniform_filter1d(even, size, axis=-1, mode="nearest")


def _autocorrelation(flat: np.ndarray) -> np.ndarray:
    """Mean normalised autocorrelation ``[L]`` of ``[B, F]`` over bands and segments.

    Every segment counts the same, however loud it is. L covers two of the longest cycles, and at
    most half a segment: beyond that too little overlaps.
    """
    length = min(round(SEGMENT_SECONDS * ENVELOPE_RATE), flat.shape[1])
    starts = window_starts(flat.shape[1], length, round(SEGMENT_HOP_SECONDS * ENVELOPE_RATE))
    num_lags = min(round(120 / MIN_BPM * ENVELOPE_RATE), length // 2) + 2
    size = next_fast_len(length + num_lags, real=True)
    overlap = length - np.arange(num_lags)
    total = np.zeros(num_lags)
    for start in starts:
        segment = flat[:, start : start + length]
        segment = segment - segment.mean(axis=1, keepdims=True)
        product = irfft(np.abs(rfft(segment, size)) ** 2, size)[:, :num_lags] / overlap
        total += (product / np.maximum(product[:, :1], 1e-12)).mean(axis=0)
    return total / len(starts)


def _systole_seconds(cycle_seconds: np.ndarray) -> np.ndarray:
    """Usual S1-S2 intervals at cycle lengths in seconds (Weissler et al., Circulation 37, 1968).

    Q to S2 lasts 0.546 - 0.0021 * rate seconds, and S1 comes about 65 ms after Q.
    """
    return 0.481 - 0.0021 * 60 / cycle_seconds


def _cycle_lag(correlation: np.ndarray) -> float | None:
    """Length of the heart cycle in frames, or ``None`` when nothing repeats.

    The highest peak wins after two deductions. A period whose half also correlates is two cycles,
    unless systole fills half of the cycle (near 100 beats per minute). And rates far from
    ``USUAL_BPM`` are less likely (log-normal, as in Ellis 2007).
    """
    lags = np.arange(
        int(np.ceil(60 / MAX_BPM * ENVELOPE_RATE)),
        min(round(60 / MIN_BPM * ENVELOPE_RATE), len(correlation) - 2) + 1,
    )
    if not len(lags):
        return None
    cycle = lags / ENVELOPE_RATE
    # Two frames of slack: the half need not be a whole frame.
    half = np.maximum(maximum_filter1d(correlation, 5)[np.round(lags / 2).astype(int)], 0)
    systole_is_half = np.exp(-(((cycle / 2 - _systole_seconds(cycle)) / 0.05) ** 2))
    score = correlation[lags] - 0.3 * half * (1 - systole_is_half)
    score -= 0.2 * np.log2(60 / cycle / USUAL_BPM) ** 2
    before, here, after = correlation[lags - 1], correlation[lags], correlation[lags + 1]
    peaks = (here >= before) & (here >= after)
    if not peaks.any():
        return None
    best = int(np.argmax(np.where(peaks, score, -np.inf)))
    curvature = before[best] - 2 * here[best] + after[best]
    shift = 0.5 * (before[best] - after[best]) / curvature if curvature < 0 else 0.0
    return float(lags[best] + shift)


def _follow_beats(flat: np.ndarray, correlation: np.ndarray, lag: float) -> np.ndarray:
    """Frames of S1 ``[N]``: dynamic programming over an onset strength (Ellis 2007).

    A frame is as strong as S1 there and S2 one systole later, which tells S1 from S2 wherever
    systole is shorter than diastole.
    """
    usual = float(_systole_seconds(np.array(lag / ENVELOPE_RATE))) * ENVELOPE_RATE
    near = np.arange(max(int(usual - 8), 1), min(int(usual + 8), int(0.55 * lag)) + 1)
    systole = int(near[np.argmax(correlation[near])]) if len(near) else int(lag / 2)
    sound = np.maximum(flat.mean(axis=0), 0)
    strength = sound + np.concatenate([sound[systole:], np.zeros(systole)])
    strength = strength / max(float(strength.std()), 1e-9)
    steps = np.arange(round(lag / 2), round(2 * lag) + 1)
    cost = 60 * np.log(steps / lag) ** 2
    # Zeros ahead of the first frame: a chain of beats may start anywhere.
    reach = int(steps[-1])
    total = np.zeros(len(strength) + reach)
    previous = np.full(len(strength), -1)
    for frame, gain in enumerate(strength):
        candidates = total[frame + reach - steps] - cost
        best = int(candidates.argmax())
        is_start = candidates[best] <= 0 or steps[best] > frame
        total[frame + reach] = gain + (0.0 if is_start else candidates[best])
        previous[frame] = -1 if is_start else frame - steps[best]
    tail = min(reach, len(strength))
    frame = len(strength) - tail + int(np.argmax(total[-tail:]))
    beats = []
    while frame >= 0:
        beats.append(frame)
        frame = int(previous[frame])
    return np.array(beats[::-1])
