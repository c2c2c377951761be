"""What is wrong with a recording as a signal, and what to do about it; no model involved.

The limits were set on the simulator, PASCAL's labelled files, CirCor and PhysioNet 2016; how often
each note comes up there: benchmarks/results/heart_rate.md.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import butter, firwin, sosfiltfilt

from hb_ssl.heart_rate import HeartRate, estimate_heart_rate

MIN_SECONDS = 3.0
SILENT_PEAK = 5e-4  # of full scale, -66 dB
QUIET_RMS = 3e-3  # of full scale, -50 dB
CLIPPED_SHARE = 1e-3  # of all samples in flat tops of at least three
VOICED_SHARE = 0.3  # of the energy in frames with a pitch; heart sounds stay under 0.1
VOICE_RATE = 4000  # Hz at least, after decimation
VOICE_HIGH_PASS_HZ = 200.0  # S1 and S2 ring below it, voices and instruments above
PITCH_HZ = (80.0, 400.0)
FRAME_SECONDS = 0.05
BLOCK_SECONDS = 30.0


@dataclass(frozen=True)
class SignalNote:
    """One problem of a recording.

    Attributes:
        code: ``too_short``, ``silence``, ``too_quiet``, ``clipped``, ``speech_or_music`` or
            ``no_heartbeat``; a classifier with a heart-sound gate adds ``not_a_heart``.
        message: what is wrong, in one plain sentence.
        advice: what to do about it, in one plain sentence.
    """

    code: str
    message: str
    advice: str


def check_signal(
    waveform: np.ndarray, rate: int, heart_rate: HeartRate | None = None
) -> list[SignalNote]:
    """Problems of a recording, worst first; an empty list when there are none.

    Args:
        waveform: mono ``[T]``, T >= 1, in [-1, 1], as recorded: clipping and speech can't be seen
            after filtering or resampling.
        rate: Hz.
        heart_rate: from ``estimate_heart_rate``; estimated here when not given.
    """
    duration = len(waveform) / rate
    peak = float(np.abs(waveform).max(initial=0))
    notes = []
    if peak < SILENT_PEAK:
        notes.append(
            SignalNote(
                "silence",
                "The recording is silent.",
                "Check that the right microphone is chosen and not muted, then record again.",
            )
        )
    if duration < MIN_SECONDS:
        notes.append(
            SignalNote(
                "too_short",
                f"The recording lasts only {duration:.1f} s, so there is little to hear.",
                "Record 10 seconds or more.",
            )
        )
    if peak < SILENT_PEAK:
        return notes
    if heart_rate is None:
        heart_rate = estimate_heart_rate(waveform, rate)
    if heart_rate.bpm is None:
        notes.append(
            SignalNote(
                "no_heartbeat",
                "No regular heartbeat was found.",
                "Press the stethoscope or phone flat against bare skin left of the breastbone, "
                "hold still, and record 10 seconds or more.",
            )
        )
    if _voiced_share(waveform, rate) > VOICED_SHARE:
        notes.append(
            SignalNote(
                "speech_or_music",
                "Much of the sound has a pitch, like speech, music or an alarm.",
                "Record in a quiet room and don't talk meanwhile.",
            )
        )
    if np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) < QUIET_RMS:
        notes.append(
            SignalNote(
                "too_quiet",
                "The recording is very quiet.",
                "Raise the recording level, or press a little more firmly.",
            )
        )
    if _clipped_share(waveform, peak) > CLIPPED_SHARE:
        notes.append(
            SignalNote(
                "clipped",
                "The recording is overdriven: its loudest parts are cut off.",
                "Lower the recording level and record again.",
            )
        )
    return notes


def _clipped_share(waveform: np.ndarray, peak: float) -> float:
    """Share of samples inside flat tops: three or more in a row at the peak."""
    at_peak = np.abs(waveform) >= 0.999 * peak
    return float((at_peak[:-2] & at_peak[1:-1] & at_peak[2:]).mean()) if len(waveform) > 2 else 0.0


def _voiced_share(waveform: np.ndarray, rate: int) -> float:
    """Share of the energy, 0 to 1, that lies above 200 Hz in frames with a clear pitch.

    A frame is voiced when its normalised autocorrelation, corrected for the window, passes 0.7 at
    a pitch lag: Boersma, "Accurate short-term analysis of the fundamental frequency and the
    harmonics-to-noise ratio of a sampled sound" (IFA Proceedings 17, 1993).
    """
    step = max(int(rate // VOICE_RATE), 1)
    low_rate = rate / step
    length = int(FRAME_SECONDS * low_rate)
    longest, shortest = int(low_rate / PITCH_HZ[0]), int(low_rate / PITCH_HZ[1])
    if low_rate < 4 * VOICE_HIGH_PASS_HZ or len(waveform) < length * step:
        return 0.0
    high_pass = _high_pass(low_rate)
    window = np.hanning(length)
    expected = _autocorrelation(window[None])[0, : longest + 1]
    voiced = total = 0.0
    block = int(BLOCK_SECONDS * low_rate) * step
    for start in range(0, len(waveform), block):
        samples = waveform[start : start + block].astype(np.float64)
        if len(samples) < length * step:
            break
        samples = _decimate(samples, step)
        samples = samples - samples.mean()
        high = sosfiltfilt(high_pass, samples, padlen=min(len(samples) - 1, 100))
        frames = np.lib.stride_tricks.sliding_window_view(high, length)[:: length // 2]
        centred = frames - frames.mean(axis=1, keepdims=True)
        periodic = _autocorrelation(centred * window)[:, : longest + 1] / expected
        has_pitch = periodic[:, shortest:].max(axis=1) > 0.7
        everything = np.lib.stride_tricks.sliding_window_view(samples, length)[:: length // 2]
        voiced += float(np.square(frames[has_pitch]).sum())
        total += float(np.square(everything).sum())
    return voiced / total if total > 0 else 0.0


def _decimate(samples: np.ndarray, step: int) -> np.ndarray:
    """``scipy.signal.resample_poly(samples, 1, step)`` of ``[T]`` as a matrix product: faster."""
    if step == 1:
        return samples
    taps = _decimation_taps(step)
    num = -(-len(samples) // step)
    padded = np.zeros((num + len(taps) - 1) * step, samples.dtype)
    first = 10 * step  # half the filter
    padded[first : first + len(samples)] = samples
    parts = taps @ padded.reshape(-1, step).T
    return sum(row[shift : shift + num] for shift, row in enumerate(parts))


@lru_cache(maxsize=16)
def _decimation_taps(step: int) -> np.ndarray:
    """The filter of ``resample_poly``, in rows ``[21, step]``."""
    taps = firwin(20 * step + 1, 1 / step, window=("kaiser", 5.0))
    return np.pad(taps, (0, step - 1)).reshape(-1, step)


@lru_cache(maxsize=16)
def _high_pass(rate: float) -> np.ndarray:
    return butter(4, VOICE_HIGH_PASS_HZ, "highpass", fs=rate, output="sos")


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """Autocorrelation ``[N, L]`` of frames ``[N, L]``, 1 at lag 0; all 0 for a silent frame."""
    length = frames.shape[1]
    product = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * length)) ** 2, 2 * length)[:, :length]
    return product / np.maximum(product[:, :1], 1e-20)
