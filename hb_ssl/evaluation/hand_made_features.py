"""Hand-made features of heart-sound recordings, for the baselines and the heart-sound gate.

The classical ones of heart-sound analysis: energies in log-spaced bands, and the shape, rhythm and
repetition of the envelope (Schmidt et al. 2010, Physiol. Meas. 31:513, for the autocorrelation of
the envelope; Potes et al. 2016, Computing in Cardiology 43, for statistics of bands over time).
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks
from tqdm import tqdm

from hb_ssl.audio import resample, split_windows
from hb_ssl.errors import UserError

FEATURE_RATE = 2000  # Hz; heart sounds and murmurs lie below 1 kHz
WINDOW_SECONDS = 5.0  # some five beats; shorter recordings are tiled
HOP_SECONDS = 2.5
FRAME_SAMPLES = 128  # 64 ms, about the length of S1
FRAME_HOP = 32  # 16 ms
FFT_SAMPLES = 512
NUM_BANDS = 28
LOW_HZ, HIGH_HZ = 20.0, 1000.0
FLOOR = 1e-7  # -70 dB of the mean power: below 8-bit amplitude resolution
PERCENTILES = (5, 25, 50, 75, 95)
# Envelopes: whole band, S1/S2, low and high murmurs (edges in Hz).
ENVELOPE_BANDS = ((20.0, 1000.0), (25.0, 100.0), (100.0, 250.0), (250.0, 1000.0))
MODULATION_EDGES = (0.4, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # Hz
MIN_BPM, MAX_BPM = 40.0, 200.0
BEAT_BINS = 16


def recording_features(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Fixed-length summary of a recording, the same for every gain and nearly for every duration.

    The recording is cut into 5 s windows (a shorter one is tiled, never padded) and the features of
    the windows are averaged, because in PASCAL the duration names the class.

    Args:
        waveform: ``[T]``, T >= 1.
        sampling_rate: Hz.

    Returns:
        ``[F]`` float32, finite. Silence gives the features of a flat spectrum.

    Raises:
        UserError: the waveform is empty or not a finite 1-d array.
    """
    if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
        raise UserError(
            f"waveform of shape {waveform.shape}: expected [T] with T >= 1 and finite samples"
        )
    # In float64 and at full scale: a very quiet recording does not underflow, at any gain.
    centred = waveform.astype(np.float64)
    centred -= centred.mean() if np.ptp(centred) > 0 else centred[0]  # constant: zero exactly
    centred /= np.abs(centred).max() or 1.0
    # Resampling in float64 would take most of the time here.
    waveform = resample(centred.astype(np.float32), sampling_rate, FEATURE_RATE).astype(np.float64)
    window, hop = round(WINDOW_SECONDS * FEATURE_RATE), round(HOP_SECONDS * FEATURE_RATE)
    windows = split_windows(waveform, window, hop)
    features = np.stack([_window_features(samples) for samples in windows])
    return features.mean(axis=0).astype(np.float32)


def feature_matrix(waveforms: Iterable[np.ndarray], sampling_rate: int) -> np.ndarray:
    """``recording_features`` of every waveform: ``[N, F]`` float32.

    Args:
        waveforms: ``[T]`` each, of any length; a generator keeps one in memory at a time.
        sampling_rate: Hz, of all of them.
    """
    progress = tqdm(waveforms, desc="features", unit="recording", disable=None)
    return np.stack([recording_features(waveform, sampling_rate) for waveform in progress])


def _window_features(samples: np.ndarray) -> np.ndarray:
    """Features ``[F]`` of one window ``[W]`` at ``FEATURE_RATE``."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::FRAME_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME_SAMPLES), FFT_SAMPLES)) ** 2
    mean_power = power.sum(axis=1).mean()
    power = power / mean_power if mean_power > 0 else power
    bands = np.log10(power @ _BAND_WEIGHTS.T + FLOOR)
    spectral = [
        bands.mean(axis=0),
        bands.std(axis=0),
        bands.max(axis=0),
        *np.percentile(bands, PERCENTILES, axis=0),
    ]
    envelopes = np.sqrt(power @ _ENVELOPE_WEIGHTS.T)
    period = _beat_period(envelopes[:, 0])
    rhythmic = [_envelope_features(envelope, period) for envelope in envelopes.T]
    return np.concatenate([*spectral, *rhythmic])


def _triangles() -> np.ndarray:
    """Triangular filters ``[NUM_BANDS, bins]``, equally spaced in log frequency."""
    frequencies = np.fft.rfftfreq(FFT_SAMPLES, 1 / FEATURE_RATE)
    edges = np.geomspace(LOW_HZ, HIGH_HZ, NUM_BANDS + 2)
    bin_hz = frequencies[1]
    # Low triangles are narrower than a bin: at least one bin to each side.
    left = np.minimum(edges[:-2], edges[1:-1] - bin_hz)[:, None]
    right = np.maximum(edges[2:], edges[1:-1] + bin_hz)[:, None]
    centre = edges[1:-1, None]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return np.clip(np.minimum(rising, falling), 0.0, None)


def _rectangles() -> np.ndarray:
    frequencies = np.fft.rfftfreq(FFT_SAMPLES, 1 / FEATURE_RATE)
    return np.array([(frequencies >= low) & (frequencies < high) for low, high in ENVELOPE_BANDS])


_BAND_WEIGHTS = _triangles()
_ENVELOPE_WEIGHTS = _rectangles().astype(float)


def _autocorrelation(envelope: np.ndarray) -> np.ndarray:
    """Unbiased autocorrelation ``[L]`` of lags 0 to half the window; 1 at lag 0, 0 if constant."""
    centred = envelope - envelope.mean()
    n = len(centred)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    correlation = np.fft.irfft(spectrum)[: n // 2] / (n - np.arange(n // 2))
    return correlation / correlation[0] if correlation[0] > 1e-12 else np.zeros(n // 2)


def _beat_period(envelope: np.ndarray) -> int:
    """Lag in frames of the highest autocorrelation between ``MAX_BPM`` and ``MIN_BPM``."""
    frames_per_minute = 60 * FEATURE_RATE / FRAME_HOP
    first, last = int(frames_per_minute / MAX_BPM), int(frames_per_minute / MIN_BPM)
    return first + int(np.argmax(_autocorrelation(envelope)[first : last + 1]))


def _envelope_features(envelope: np.ndarray, period: int) -> np.ndarray:
    """Shape, rhythm and mean beat of one envelope ``[frames]``."""
    frame_rate = FEATURE_RATE / FRAME_HOP
    level = envelope.mean()
    relative = envelope / level if level > 0 else np.ones_like(envelope)
    centred = relative - relative.mean()
    deviation = centred.std() + 1e-6
    moments = [deviation, (centred**3).mean() / deviation**3, (centred**4).mean() / deviation**4]
    quantiles = np.log10(np.percentile(relative, PERCENTILES) + 1e-3)
    correlation = _autocorrelation(relative)
    # An irregular rhythm repeats less well after two beats than after one.
    repetition = [
        correlation[period],
        correlation[min(2 * period, len(correlation) - 1)],
        correlation[period // 4 : 3 * period // 4].max(),  # S1 against S2
        60 * frame_rate / period / 100,
    ]
    spectrum = np.abs(np.fft.rfft(centred * np.hanning(len(centred)))) ** 2
    frequency = np.fft.rfftfreq(len(centred), 1 / frame_rate)
    energy = [
        spectrum[(frequency >= low) & (frequency < high)].sum()
        for low, high in pairwise(MODULATION_EDGES)
    ]
    modulation = np.log10(np.array(energy) / (sum(energy) + 1e-9) + 1e-3)
    beat = _mean_beat(relative, period)
    smooth = uniform_filter1d(relative, 3)
    peaks, _ = find_peaks(smooth, height=smooth.mean(), prominence=0.25 * smooth.std() + 1e-6)
    gaps = np.diff(peaks) / period
    rate = len(peaks) * period / len(relative)  # sounds a beat: 2 is S1 and S2
    irregular = gaps.std() if len(gaps) > 1 else 0.0
    return np.concatenate([moments, quantiles, repetition, modulation, beat, [rate, irregular]])


def _mean_beat(envelope: np.ndarray, period: int) -> np.ndarray:
    """Mean log envelope over one beat ``[BEAT_BINS]``, turned so that its loudest bin is first."""
    phase = (np.arange(len(envelope)) % period) * BEAT_BINS // period
    sums = np.bincount(phase, weights=envelope, minlength=BEAT_BINS)
    counts = np.bincount(phase, minlength=BEAT_BINS)
    beat = np.log10(sums / np.maximum(counts, 1) + 1e-3)
    return np.roll(beat, -int(np.argmax(beat)))
