"""Simulated heart sounds: rhythm, S1 and S2, murmurs and extra sounds.

Sounds are built at 4 kHz in relative units: the peak of S1 is about 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfilt

from hb_ssl.data.synthetic_noise import band_noise
from hb_ssl.data.synthetic_subject import Subject, Tone

SOURCE_RATE = 4000  # Hz at which heart sounds are built
LATE_START = 0.5  # share of systole at which a late systolic murmur starts


@dataclass(frozen=True)
class Heartbeats:
    """True times of ``simulate_heartbeats``, in seconds from the start.

    Attributes:
        heart_rate: mean in beats per minute.
        s1_seconds, s2_seconds: onsets ``[N]`` and ``[M]`` inside the recording, increasing.
        extra_sounds: (onset in seconds, kind) of every S3, S4 and click.
        premature_beats: indices into ``s1_seconds``.
        breathing_phase: radians at time 0; the subject breathes in while its sine is positive.
    """

    heart_rate: float
    s1_seconds: np.ndarray
    s2_seconds: np.ndarray
    extra_sounds: tuple[tuple[float, str], ...]
    premature_beats: tuple[int, ...]
    breathing_phase: float


def simulate_heartbeats(
    subject: Subject, duration_seconds: float, rng: np.random.Generator
) -> tuple[np.ndarray, Heartbeats]:
    """Heart sounds alone, as they reach the skin.

    The finding draws from its own random streams, so the same subject without it gives the same
    beats from an equal generator.

    Args:
        subject: whose heart.
        duration_seconds: length in seconds.
        rng: source of randomness.

    Returns:
        The waveform ``[T]`` at ``SOURCE_RATE`` (``float64``) and the true times.
    """
    rhythm_rng, sound_rng, finding_rng, noise_rng = rng.spawn(4)
    phase = float(rhythm_rng.uniform(0, 2 * np.pi))
    times, rr, premature = _draw_rhythm(subject, duration_seconds, phase, rhythm_rng, finding_rng)
    inspiration = np.sin(2 * np.pi * subject.breathing_rate * times + phase)
    systole = _systole_seconds(subject, rr)
    systole[premature] *= 0.88  # less filling, shorter ejection
    s1_gain = (1 + 0.12 * inspiration) * sound_rng.lognormal(0, 0.08, len(times))
    s2_gain = (1 - 0.08 * inspiration) * sound_rng.lognormal(0, 0.08, len(times))
    s1_gain[premature] *= finding_rng.uniform(0.6, 1.1)
    s2_gain[premature] *= finding_rng.uniform(0.2, 0.6)
    s1_gain[premature + 1] *= 1.15  # the pause fills the ventricle
    split = subject.split + subject.split_inspiration * np.maximum(inspiration, 0)

    extras = _place_extra_sounds(subject, times, systole, finding_rng)
    num_samples = math.ceil(duration_seconds * SOURCE_RATE)
    waveform = np.zeros(num_samples)
    for beat, start in enumerate(times):
        tune = sound_rng.normal(1, 0.03)
        _add(waveform, start, s1_gain[beat] * _sound(subject.s1, tune))
        sound = _second_sound(subject, tune, split[beat])
        _add(waveform, start + systole[beat], s2_gain[beat] * subject.s2_ratio * sound)
    for start, kind in extras:
        sound = _sound(subject.click if kind == "click" else subject.low_extra)
        _add(waveform, start, subject.extra_ratio * finding_rng.lognormal(0, 0.15) * sound)
    if subject.murmur is not None:
        envelope = _murmur_envelope(subject.murmur.shape, times, systole, num_samples)
        noise = band_noise(
            num_samples, SOURCE_RATE, subject.murmur.low_hz, subject.murmur.high_hz, noise_rng
        )
        waveform += _murmur_level(subject.murmur.grade) * envelope * noise
    waveform = sosfilt(butter(1, subject.chest_hz, fs=SOURCE_RATE, output="sos"), waveform)

    s2_times = times + systole
    inside = (times >= 0) & (times < duration_seconds)
    first = int(np.argmax(inside))
    beats = Heartbeats(
        heart_rate=float(60 / rr[inside].mean()),
        s1_seconds=times[inside],
        s2_seconds=s2_times[(s2_times >= 0) & (s2_times < duration_seconds)],
        extra_sounds=tuple((t, kind) for t, kind in extras if 0 <= t < duration_seconds),
        premature_beats=tuple(int(i) - first for i in premature if inside[i]),
        breathing_phase=phase,
    )
    return waveform, beats


def _draw_rhythm(
    subject: Subject,
    duration: float,
    phase: float,
    rng: np.random.Generator,
    finding_rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S1 onsets ``[K]``, RR intervals ``[K]`` without prematurity, and premature indices.

    RR intervals have the two rhythms of McSharry et al., "A dynamical model for generating
    synthetic electrocardiogram signals" (IEEE Trans. Biomed. Eng. 50, 2003): breathing and 0.1 Hz.
    """
    mean = 60 / subject.heart_rate
    slow_phase = rng.uniform(0, 2 * np.pi)
    time = -2 * mean - rng.uniform(0, mean)
    times, rr = [], []
    while time < duration + 2 * mean:
        change = (
            # The heart speeds up on inspiration.
            -subject.rsa * math.sin(2 * math.pi * subject.breathing_rate * time + phase)
            + subject.slow_variability * math.sin(2 * math.pi * 0.1 * time + slow_phase)
            + subject.jitter * float(np.clip(rng.normal(), -3, 3))
        )
        times.append(time)
        rr.append(mean * (1 + change))
        time += rr[-1]
    onsets, intervals = np.array(times), np.array(rr)
    if subject.premature_rate == 0:
        return onsets, intervals, np.array([], dtype=int)
    # One premature beat near the middle for sure, so that the label is true; others by chance.
    middle = int(np.searchsorted(onsets, finding_rng.uniform(0.3, 0.55) * duration))
    chosen = [middle]
    for beat in range(2, len(onsets) - 1):
        is_free = all(abs(beat - other) >= 3 for other in chosen)
        if finding_rng.random() < subject.premature_rate and is_free:
            chosen.append(beat)
    premature = np.array(sorted(chosen))
    # Only the premature beat moves, so the pause after it is fully compensatory.
    before = intervals[premature - 1]
    advance = before * finding_rng.uniform(0.32, 0.48, len(premature))
    onsets[premature] -= np.minimum(advance, before - 0.28)  # after S2 of the beat before
    return onsets, intervals, premature


def _systole_seconds(subject: Subject, rr: np.ndarray) -> np.ndarray:
    """S1-S2 intervals ``[K]`` for RR intervals ``[K]``.

    Weissler, Harris and Schoenfeld, "Systolic time intervals in heart failure in man" (Circulation
    37, 1968) give Q to S2 as 0.546 - 0.0021 * rate seconds; S1 comes about 65 ms after Q. A single
    longer beat changes its systole less than a lasting change of rate does.
    """
    rate = subject.heart_rate + 0.3 * (60 / rr - subject.heart_rate)
    return np.maximum(0.546 - 0.0021 * rate - 0.065 + subject.systole_offset, 0.18)


def _sound(tones: Sequence[Tone], tune: float = 1.0) -> np.ndarray:
    """The sum of damped oscillations ``[T]`` at ``SOURCE_RATE`` with a peak of 1.

    Args:
        tones: what to add up.
        tune: factor on every frequency; a beat differs a little from the next.
    """
    length = max(tone.delay + 8 * tone.decay for tone in tones)
    sound = np.zeros(int(length * SOURCE_RATE))
    for tone in tones:
        time = np.arange(len(sound)) / SOURCE_RATE - tone.delay
        time = np.maximum(time, 0)  # the rise below is 0 there
        rise = 1 - np.exp(-time * tone.hz * 3)
        wave = np.sin(2 * np.pi * tone.hz * tune * time + tone.phase)
        sound += tone.amplitude * rise * np.exp(-time / tone.decay) * wave
    return sound / np.abs(sound).max()


def _second_sound(subject: Subject, tune: float, split: float) -> np.ndarray:
    """S2: aortic, then weaker pulmonary closure ``split`` seconds later (Leatham)."""
    closure = _sound(subject.s2, tune)
    sound = np.concatenate([closure, np.zeros(round(split * SOURCE_RATE))])
    _add(sound, split, 0.5 * closure)
    return sound


def _add(waveform: np.ndarray, start_seconds: float, sound: np.ndarray) -> None:
    """Adds ``sound`` at a time, cutting what falls outside."""
    start = round(start_seconds * SOURCE_RATE)
    begin, end = max(start, 0), min(start + len(sound), len(waveform))
    if begin < end:
        waveform[begin:end] += sound[begin - start : end - start]


def _place_extra_sounds(
    subject: Subject, times: np.ndarray, systole: np.ndarray, rng: np.random.Generator
) -> list[tuple[float, str]]:
    """Onsets of the extra sounds: S3 0.13-0.17 s after S2, S4 0.09-0.13 s before S1."""
    s3_delay, s4_lead = rng.uniform(0.13, 0.17), rng.uniform(0.09, 0.13)
    click_share = rng.uniform(0.4, 0.65)
    kinds = list(subject.extra_sounds)
    if subject.murmur is not None and subject.murmur.shape == "late_systolic":
        kinds.append("click")  # the prolapsing valve that leaks late also clicks
        click_share = LATE_START
    placed = []
    for start, length in zip(times, systole):
        if "s3" in kinds:
            placed.append((float(start + length + s3_delay), "s3"))
        if "s4" in kinds:
            placed.append((float(start - s4_lead), "s4"))
        if "click" in kinds:
            placed.append((float(start + click_share * length), "click"))
    return sorted(placed)


def _murmur_level(grade: int) -> float:
    """RMS of a murmur at its loudest relative to the peak of S1, 5 dB a grade."""
    return 10 ** ((5 * grade - 30) / 20)


def _murmur_envelope(
    shape: str, times: np.ndarray, systole: np.ndarray, num_samples: int
) -> np.ndarray:
    """Loudness ``[T]`` of a murmur over all beats, 0 to 1.

    Shapes as taught since Leatham (Auscultation of the Heart, 1970): ejection murmurs rise and
    fall and end before S2; regurgitation fills systole to S2; aortic leaks fade from S2.
    """
    envelope = np.zeros(num_samples)
    for beat in range(len(times) - 1):
        s1, s2, following = times[beat], times[beat] + systole[beat], times[beat + 1]
        if shape == "ejection":
            start, end = s1 + 0.05, s2 - 0.02
        elif shape == "holosystolic":
            start, end = s1 + 0.015, s2 + 0.015
        elif shape == "late_systolic":
            start, end = s1 + LATE_START * (s2 - s1), s2 + 0.01
        elif shape == "early_diastolic":
            start, end = s2 + 0.015, following - 0.03
        else:
            start, end = s2 + 0.10, following
        if end - start < 0.03:  # a premature beat left no room
            continue
        time = np.arange(round((end - start) * SOURCE_RATE)) / SOURCE_RATE
        position = time / (end - start)
        if shape == "ejection":
            loudness = np.sin(np.pi * position**0.85) ** 1.3
        elif shape == "early_diastolic":
            loudness = np.minimum(time / 0.015, 1) * np.exp(-2.5 * position)
        elif shape == "mid_diastolic":
            presystolic = 0.8 * np.exp(-(((position - 0.92) / 0.1) ** 2))
            loudness = np.minimum(time / 0.03, 1) * (np.exp(-3 * position) + presystolic)
        else:
            loudness = np.minimum(np.minimum(time, end - start - time) / 0.02, 1)
        _add(envelope, start, np.clip(loudness, 0, 1))
    return envelope
