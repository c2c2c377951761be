"""Everything in a simulated recording that is not the heart: noise, artifacts and devices.

Waveforms are ``float64`` arrays ``[T]`` here; ``synthetic.py`` turns the sum into ``float32``.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import butter, lfilter, resample_poly, sosfilt

DEVICES = ("phone", "stethoscope")
ARTIFACT_RATE = 16_000  # Hz; artifacts are made at this rate, then resampled
# First three formants (Hz) of the vowels i, e, a, o, u; typical adult values.
VOWELS = np.array(
    [[280, 2250, 2900], [450, 1900, 2550], [730, 1150, 2450], [500, 900, 2500], [320, 850, 2300]]
)


def unit_rms(waveform: np.ndarray) -> np.ndarray:
    """Scales ``[T]`` to a root mean square of 1; silence stays silence."""
    rms = np.sqrt(np.mean(waveform**2))
    return waveform / rms if rms > 0 else waveform


def change_rate(waveform: np.ndarray, orig_rate: int, target_rate: int) -> np.ndarray:
    """Resamples ``[T]`` with a polyphase filter, in ``float64``."""
    if orig_rate == target_rate:
        return waveform
    divisor = int(np.gcd(orig_rate, target_rate))
    return resample_poly(waveform, target_rate // divisor, orig_rate // divisor)


def band_noise(
    num_samples: int,
    rate: int,
    low_hz: float,
    high_hz: float,
    rng: np.random.Generator,
    slope_db: float = 0.0,
) -> np.ndarray:
    """Gaussian noise ``[T]`` of unit RMS from ``low_hz`` to ``high_hz`` (24 dB/octave skirts).

    Args:
        num_samples: T.
        rate: Hz.
        low_hz: lower edge in Hz.
        high_hz: upper edge in Hz.
        rng: source of randomness.
        slope_db: tilt in dB per octave; -3 is pink noise, -6 Brownian.
    """
    size = next_fast_len(num_samples, real=True)
    frequency = rfftfreq(size, 1 / rate)
    frequency[0] = frequency[1]
    gain = (frequency / low_hz) ** (slope_db / 6.02)
    gain /= np.sqrt((1 + (low_hz / frequency) ** 8) * (1 + (frequency / high_hz) ** 8))
    return unit_rms(irfft(rfft(rng.standard_normal(size)) * gain, size)[:num_samples])


def slow_envelope(
    num_samples: int, rate: int, knots_per_second: float, rng: np.random.Generator, depth_db: float
) -> np.ndarray:
    """A smooth random gain ``[T]`` that wanders about ``depth_db`` dB up and down."""
    num_knots = max(int(num_samples / rate * knots_per_second), 1) + 2
    level = np.interp(
        np.linspace(0, num_knots - 1, num_samples), np.arange(num_knots), rng.normal(size=num_knots)
    )
    return 10 ** (depth_db * level / 20)


def mains_hum(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Power-line hum ``[T]``: 50 or 60 Hz and harmonics."""
    base = rng.choice([50.0, 60.0]) * (1 + rng.normal(0, 0.0005))
    time = np.arange(num_samples) / rate
    hum = np.zeros(num_samples)
    for harmonic in range(1, 6):
        amplitude = rng.uniform(0.2, 1) / harmonic
        hum += amplitude * np.sin(2 * np.pi * (base * harmonic * time + rng.uniform()))
    return unit_rms(hum)


def background_noise(
    inspiration: np.ndarray, rate: int, device: str, noisy: bool, rng: np.random.Generator
) -> np.ndarray:
    """Noise ``[T]`` of unit RMS around the heart: breath, room, body, hum, and bursts if noisy.

    Args:
        inspiration: ``[T]`` in [-1, 1], positive while the subject breathes in.
        rate: Hz.
        device: ``phone`` or ``stethoscope``.
        noisy: add bursts of handling, cloth or speech, as in set B's noisy recordings.
        rng: source of randomness.
    """
    num_samples = len(inspiration)
    # Vesicular breath sounds: louder on inspiration than on expiration.
    airflow = np.where(inspiration > 0, inspiration, -0.4 * inspiration) ** 1.5
    breath = airflow * band_noise(num_samples, rate, 120, 500, rng, slope_db=-4)
    room = band_noise(num_samples, rate, 30, 0.45 * rate, rng, slope_db=-4)
    body = band_noise(num_samples, rate, 15, 60, rng)
    noise = rng.uniform(0.1, 1) * unit_rms(breath) + rng.uniform(0.3, 1) * room
    noise += rng.uniform(0.2, 0.8) * (body if device == "stethoscope" else 0.4 * body)
    if rng.random() < 0.3:
        noise += rng.uniform(0.05, 0.4) * mains_hum(num_samples, rate, rng)
    noise = unit_rms(noise)
    if noisy:
        kind = str(rng.choice(["handling", "friction", "speech"]))
        bursts = simulate_artifact(kind, num_samples / rate, rng)
        bursts = change_rate(bursts, ARTIFACT_RATE, rate)[:num_samples]
        noise += rng.uniform(0.5, 2) * unit_rms(bursts)
    return unit_rms(noise)


def _handling(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Bumps and clicks: short decaying bursts at random times."""
    waveform = np.zeros(num_samples)
    for _ in range(rng.poisson(1.5 * num_samples / rate) + 1):
        length = int(rate * rng.uniform(0.02, 0.25))
        start = int(rng.integers(max(num_samples - length, 1)))
        time = np.arange(min(length, num_samples - start)) / rate
        decay = np.exp(-time / rng.uniform(0.003, 0.06)) * (1 - np.exp(-time / 0.001))
        thud = np.sin(2 * np.pi * rng.uniform(30, 250) * time)
        scrape = rng.standard_normal(len(time)) * rng.uniform(0.02, 0.8)
        waveform[start : start + len(time)] += rng.lognormal(0, 0.9) * decay * (thud + scrape)
    return waveform


def _speech(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Speech-like: a gliding voice pitch through moving vowel formants, with syllables and hisses.

    Additive form of a source-filter synthesiser (Fant, Acoustic Theory of Speech Production, 1960):
    each harmonic of a glottal source that falls 12 dB/octave is weighted by three resonances.
    """
    time = np.arange(num_samples) / rate
    num_syllables = max(int(num_samples / rate * rng.uniform(2.5, 5.5)), 1) + 2
    where = np.linspace(0, num_syllables - 1, num_samples)
    knots = np.arange(num_syllables)
    formants = VOWELS[rng.integers(len(VOWELS), size=num_syllables)] * rng.uniform(0.9, 1.35)
    base = rng.uniform(95, 260)
    pitch = base * (1 + 0.12 * np.interp(where, knots, rng.normal(size=num_syllables)))
    voiced = (rng.random(num_syllables) < 0.75) * rng.uniform(0.3, 1, num_syllables)
    rhythm = np.abs(np.sin(np.pi * where)) ** 0.7 * voiced[where.astype(int)]
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    # Formant gains change slowly: compute them on a coarse grid and interpolate.
    grid = np.linspace(0, num_samples - 1, max(num_samples // 160, 2))
    coarse = np.interp(grid, np.arange(num_samples), where)
    centers = np.stack([np.interp(coarse, knots, formants[:, i]) for i in range(3)])
    voice = np.zeros(num_samples)
    for harmonic in range(1, int(4500 / base) + 1):
        frequency = harmonic * np.interp(grid, np.arange(num_samples), pitch)
        gain = (1 / (1 + ((frequency - centers) / 70) ** 2) + 0.02).sum(axis=0) / harmonic
        voice += np.interp(np.arange(num_samples), grid, gain) * np.sin(harmonic * phase)
    hiss_on = (rng.random(num_syllables) < 0.25)[where.astype(int)] & (where % 1 < 0.35)
    hiss = hiss_on * band_noise(num_samples, rate, 3000, 7000, rng)
    pauses = np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * time + rng.uniform(0, 6)) > -0.6
    return unit_rms(rhythm * voice) * pauses + 0.3 * hiss * pauses


def _music(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Music-like: plucked notes of a pentatonic scale with harmonics."""
    waveform = np.zeros(num_samples)
    beat = int(rate * 60 / rng.uniform(80, 180) / 2)
    tonic = rng.uniform(110, 330)
    decay = rng.uniform(0.1, 0.6)
    for start in range(0, num_samples, beat):
        if rng.random() < 0.2:
            continue
        note = tonic * 2 ** ((rng.choice([0, 2, 4, 7, 9]) + 12 * rng.integers(2)) / 12)
        time = np.arange(min(4 * beat, num_samples - start)) / rate
        tone = sum(np.sin(2 * np.pi * note * k * time) / k**1.3 for k in range(1, 7))
        envelope = np.exp(-time / decay) * (1 - np.exp(-time / 0.004))
        waveform[start : start + len(time)] += rng.uniform(0.4, 1) * envelope * tone
    return waveform


def _hum(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Near silence: hum over faint hiss."""
    hiss = band_noise(num_samples, rate, 60, 7000, rng, slope_db=-2)
    return rng.uniform(0.1, 1.5) * mains_hum(num_samples, rate, rng) + hiss


def _friction(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Cloth or skin rubbing on the microphone: strokes of wide-band noise."""
    noise = band_noise(num_samples, rate, rng.uniform(80, 400), 5000, rng, slope_db=-3)
    strokes = slow_envelope(num_samples, rate, rng.uniform(2, 6), rng, depth_db=14)
    return unit_rms(noise * strokes)


def _wind(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Wind or breath on the microphone: gusts of low noise."""
    noise = band_noise(num_samples, rate, 20, rng.uniform(200, 900), rng, slope_db=-5)
    return unit_rms(noise * slow_envelope(num_samples, rate, rng.uniform(0.5, 2), rng, depth_db=9))


def _hiss(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Steady wide-band noise of a room or an open jack, in long stretches."""
    noise = band_noise(num_samples, rate, 100, 7500, rng, slope_db=rng.uniform(-4, 0))
    return noise * slow_envelope(num_samples, rate, 0.5, rng, depth_db=8)


def _howl(num_samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Acoustic feedback or a whistle: one wavering tone with harmonics."""
    time = np.arange(num_samples) / rate
    pitch = rng.uniform(200, 1500) * (
        1 + 0.01 * np.sin(2 * np.pi * rng.uniform(2, 6) * time) + 0.03 * np.sin(0.7 * time)
    )
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(rng.uniform(0, 0.4) ** (k - 1) * np.sin(k * phase) for k in range(1, 5))
    return unit_rms(tone * slow_envelope(num_samples, rate, 0.7, rng, depth_db=5))


_ARTIFACTS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "handling": _handling,
    "speech": _speech,
    "music": _music,
    "hum": _hum,
    "friction": _friction,
    "wind": _wind,
    "hiss": _hiss,
    "howl": _howl,
}
ARTIFACT_KINDS = tuple(_ARTIFACTS)
# PASCAL's artifacts are mostly handling, voices and room noise.
_ARTIFACT_SHARES = (0.22, 0.16, 0.07, 0.10, 0.16, 0.13, 0.10, 0.06)


def simulate_artifact(kind: str, duration_seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One sort of non-heart sound ``[T]`` of unit RMS at ``ARTIFACT_RATE``.

    Args:
        kind: one of ``ARTIFACT_KINDS``.
        duration_seconds: length in seconds.
        rng: source of randomness.
    """
    num_samples = math.ceil(duration_seconds * ARTIFACT_RATE)
    return unit_rms(_ARTIFACTS[kind](num_samples, ARTIFACT_RATE, rng))


def mix_artifacts(
    duration_seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, ...]]:
    """An artifact recording ``[T]`` at ``ARTIFACT_RATE``: one to three kinds, some gated off.

    Returns:
        The waveform (unit RMS) and the kinds in it, loudest first.
    """
    count = rng.integers(1, 4)
    kinds = tuple(
        str(k) for k in rng.choice(ARTIFACT_KINDS, count, replace=False, p=_ARTIFACT_SHARES)
    )
    mix = np.zeros(math.ceil(duration_seconds * ARTIFACT_RATE))
    for rank, kind in enumerate(kinds):
        sound = simulate_artifact(kind, duration_seconds, rng)
        if rng.random() < 0.35:  # the sound starts late, or a noise gate cuts it off
            edge = rng.uniform(0.15, 0.85)
            on = np.arange(len(sound)) < edge * len(sound)
            sound = sound * (on if rng.random() < 0.5 else ~on)
        mix += 10 ** (-rng.uniform(0, 14) * rank / 20) * sound
    return unit_rms(mix), kinds


def stethoscope_filter(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Filters ``[T]`` like set B's digital stethoscope: 20 Hz high-pass, low-pass near 195 Hz.

    The low-pass is gentle (first-order, then second-order at 700 Hz): set B's spectra fall to
    about -17 dB at 200 Hz, -25 dB at 400 Hz and -41 dB at 1 kHz.
    """
    sos = np.vstack(
        [
            butter(2, 20, "highpass", fs=rate, output="sos"),
            butter(1, 195, "lowpass", fs=rate, output="sos"),
            butter(2, min(700, 0.45 * rate), "lowpass", fs=rate, output="sos"),
        ]
    )
    return sosfilt(sos, waveform)


def phone_filter(waveform: np.ndarray, rate: int, high_pass_hz: float) -> np.ndarray:
    """Filters ``[T]`` like a phone's microphone: second-order high-pass at ``high_pass_hz`` Hz."""
    return sosfilt(butter(2, high_pass_hz, "highpass", fs=rate, output="sos"), waveform)


def automatic_gain(waveform: np.ndarray, rate: int, strength: float) -> np.ndarray:
    """Slow automatic gain control of ``[T]``: divides by the running level to a power.

    Args:
        waveform: ``[T]``.
        rate: Hz.
        strength: 0 (off) to 1 (constant loudness).
    """
    release = np.exp(-1 / (0.4 * rate))  # 0.4 s time constant
    start = np.mean(waveform**2)
    power, _ = lfilter([1 - release], [1, -release], waveform**2, zi=[release * start])
    level = np.sqrt(power) + 0.1 * np.sqrt(start) + 1e-9
    return waveform / level**strength
