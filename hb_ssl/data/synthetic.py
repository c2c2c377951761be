"""A phonocardiogram simulator with known truth.

It stands in for real recordings in the quickstart and in tests; it is no substitute for them.
Sounds are built at 4 kHz in relative units (the peak of S1 is about 1), then a device model
resamples, colours and scales them. All randomness comes from the ``numpy`` generator passed in.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.signal import butter, sosfilt

from hb_ssl.data.recording import RAW_LABELS
from hb_ssl.data.synthetic_noise import (
    ARTIFACT_RATE,
    DEVICES,
    automatic_gain,
    background_noise,
    band_noise,
    change_rate,
    mix_artifacts,
    phone_filter,
    stethoscope_filter,
)
from hb_ssl.errors import UserError

SOURCE_RATE = 4000  # Hz at which heart sounds are built
MIN_DURATION, MAX_DURATION = 1.0, 300.0  # seconds
MIN_RATE, MAX_RATE = 1000, 96_000  # Hz
# Murmur shapes of auscultation teaching and their bands in Hz: regurgitation jets are
# high-pitched, flow through a narrow mitral valve rumbles.
MURMUR_BANDS = {
    "ejection": (80, 300),
    "holosystolic": (120, 400),
    "late_systolic": (150, 450),
    "early_diastolic": (150, 500),
    "mid_diastolic": (40, 150),
}
_MURMUR_SHARES = (0.4, 0.25, 0.1, 0.15, 0.1)


@dataclass(frozen=True)
class Murmur:
    """A murmur: ``shape`` is a key of ``MURMUR_BANDS``, ``grade`` is 1 to 6 on Levine's scale."""

    shape: str
    grade: int
    low_hz: float
    high_hz: float

    @property
    def timing(self) -> str:
        return "diastolic" if self.shape.endswith("diastolic") else "systolic"


@dataclass(frozen=True)
class Subject:
    """What stays the same over the recordings of one subject.

    Attributes:
        label: one of ``RAW_LABELS`` but ``artifact``.
        heart_rate: mean in beats per minute.
        breathing_rate: breaths per second.
        rsa: relative RR change with breathing (respiratory sinus arrhythmia).
        slow_variability: relative RR change of the 0.1 Hz rhythm.
        jitter: standard deviation of the remaining relative RR change.
        systole_offset: seconds added to the mean S1-S2 interval at this heart rate.
        s1_hz, s2_hz: main frequencies in Hz.
        s1_decay, s2_decay: time constants in seconds.
        s2_ratio: amplitude of S2 relative to S1.
        brightness: amplitude of the high-frequency part of S1 and S2.
        split: A2-P2 interval in seconds at the end of expiration.
        split_inspiration: seconds that inspiration adds to it.
        chest_hz: first-order low-pass edge of the chest wall in Hz.
        phone_high_pass_hz: phone's edge in Hz; a phone that seals the skin badly loses more bass.
        murmur: or ``None``.
        extra_sounds: of ``s3``, ``s4`` and ``click``.
        premature_rate: chance that a beat is premature.
    """

    label: str
    heart_rate: float
    breathing_rate: float
    rsa: float
    slow_variability: float
    jitter: float
    systole_offset: float
    s1_hz: float
    s2_hz: float
    s1_decay: float
    s2_decay: float
    s2_ratio: float
    brightness: float
    split: float
    split_inspiration: float
    chest_hz: float
    phone_high_pass_hz: float
    murmur: Murmur | None = None
    extra_sounds: tuple[str, ...] = ()
    premature_rate: float = 0.0


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


@dataclass(frozen=True)
class RecordingTruth:
    """What is in a simulated recording; ``heartbeats`` is ``None`` for an artifact.

    ``snr_db`` is the power of the heart over that of everything else, after the device's filter
    and before its gain control; ``None`` for an artifact.
    """

    label: str
    device: str
    noisy: bool
    heartbeats: Heartbeats | None = None
    murmur: Murmur | None = None
    snr_db: float | None = None
    artifact_kinds: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The truth as JSON types, with times rounded to 0.1 ms."""
        content = dataclasses.asdict(self)
        if self.heartbeats is not None:
            beats = content["heartbeats"]
            for name in ("s1_seconds", "s2_seconds"):
                beats[name] = [round(float(t), 4) for t in beats[name]]
            beats["extra_sounds"] = [[round(t, 4), kind] for t, kind in beats["extra_sounds"]]
            beats["premature_beats"] = list(beats["premature_beats"])
        if self.murmur is not None:
            content["murmur"]["timing"] = self.murmur.timing
        content["artifact_kinds"] = list(self.artifact_kinds)
        return content


def draw_subject(label: str, rng: np.random.Generator) -> Subject:
    """Draws a subject: one in four is a child, with a heart rate up to 140 per minute.

    Args:
        label: ``normal``, ``murmur``, ``extrahls`` or ``extrastole``.
        rng: source of randomness.

    Raises:
        UserError: the label is unknown or is ``artifact``, which has no heart.
    """
    if label not in RAW_LABELS or label == "artifact":
        raise UserError(
            f"label '{label}' has no heartbeat to draw; expected one of "
            f"{', '.join(name for name in RAW_LABELS if name != 'artifact')}"
        )
    # Child or adult, then the same number of draws for every label: labels differ in their
    # finding only, not in rate or timbre.
    if rng.random() < 0.25:
        heart_rate = rng.uniform(85, 140)
    else:
        heart_rate = np.clip(rng.normal(74, 14), 50, 110)
    s1_hz = rng.uniform(38, 62)
    leaky_phone = rng.random() < 0.65
    subject = Subject(
        label=label,
        heart_rate=float(heart_rate),
        breathing_rate=rng.uniform(0.18, 0.38),
        rsa=rng.uniform(0.01, 0.06),
        slow_variability=rng.uniform(0.005, 0.03),
        jitter=rng.uniform(0.004, 0.015),
        systole_offset=float(np.clip(rng.normal(0, 0.015), -0.03, 0.03)),
        s1_hz=s1_hz,
        s2_hz=s1_hz * rng.uniform(1.15, 1.5),
        s1_decay=rng.uniform(0.020, 0.032),
        s2_decay=rng.uniform(0.012, 0.020),
        s2_ratio=float(np.clip(rng.lognormal(-0.25, 0.4), 0.3, 2.0)),
        brightness=rng.uniform(0.15, 0.6),
        split=rng.uniform(0.0, 0.018),
        split_inspiration=rng.uniform(0.01, 0.03),
        chest_hz=rng.uniform(150, 400),
        phone_high_pass_hz=rng.uniform(80, 150) if leaky_phone else rng.uniform(30, 50),
    )
    if label == "murmur":
        return dataclasses.replace(subject, murmur=_draw_murmur(rng))
    if label == "extrahls":
        sets: list[tuple[str, ...]] = [("s3",), ("s4",), ("click",), ("s3", "s4")]
        choice = sets[rng.choice(len(sets), p=(0.35, 0.25, 0.25, 0.15))]
        return dataclasses.replace(subject, extra_sounds=choice)
    if label == "extrastole":
        return dataclasses.replace(subject, premature_rate=rng.uniform(0.08, 0.25))
    return subject


def _draw_murmur(rng: np.random.Generator) -> Murmur:
    shape = str(rng.choice(list(MURMUR_BANDS), p=_MURMUR_SHARES))
    grade = int(rng.choice([1, 2, 3, 4, 5], p=[0.08, 0.27, 0.35, 0.2, 0.1]))
    low, high = MURMUR_BANDS[shape]
    scale = rng.uniform(0.8, 1.25)
    return Murmur(shape, grade, low * scale, high * scale)


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
    num_samples = round(duration_seconds * SOURCE_RATE)
    waveform = np.zeros(num_samples)
    for beat, start in enumerate(times):
        tune = sound_rng.normal(1, 0.03)
        _add(waveform, start, s1_gain[beat] * _first_sound(subject, tune))
        sound = _second_sound(subject, tune, split[beat])
        _add(waveform, start + systole[beat], s2_gain[beat] * subject.s2_ratio * sound)
    level = dict.fromkeys(("s3", "s4", "click"), 0.0)
    for kind in level:
        level[kind] = finding_rng.uniform(0.3, 0.65)
    for start, kind in extras:
        sound = level[kind] * finding_rng.lognormal(0, 0.15) * _extra_sound(subject, kind)
        _add(waveform, start, sound)
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
    middle = int(np.argmin(np.abs(onsets - finding_rng.uniform(0.35, 0.65) * duration)))
    chosen = [middle]
    for beat in range(2, len(onsets) - 1):
        is_free = all(abs(beat - other) >= 3 for other in chosen)
        if finding_rng.random() < subject.premature_rate and is_free:
            chosen.append(beat)
    premature = np.array(sorted(chosen))
    # Only the premature beat moves, so the pause after it is fully compensatory.
    onsets[premature] -= intervals[premature - 1] * finding_rng.uniform(0.28, 0.42, len(premature))
    return onsets, intervals, premature


def _systole_seconds(subject: Subject, rr: np.ndarray) -> np.ndarray:
    """S1-S2 intervals ``[K]`` for RR intervals ``[K]``.

    Weissler, Harris and Schoenfeld, "Systolic time intervals in heart failure in man" (Circulation
    37, 1968) give Q to S2 as 0.546 - 0.0021 * rate seconds; S1 comes about 65 ms after Q. A single
    longer beat changes its systole less than a lasting change of rate does.
    """
    rate = subject.heart_rate + 0.3 * (60 / rr - subject.heart_rate)
    return np.maximum(0.546 - 0.0021 * rate - 0.065 + subject.systole_offset, 0.18)


def _damped_tone(hz: float, attack: float, decay: float, phase: float = 0.0) -> np.ndarray:
    """A sinusoid at ``SOURCE_RATE`` that rises in ``attack`` and dies with ``decay`` seconds."""
    time = np.arange(int((attack + 6 * decay) * SOURCE_RATE)) / SOURCE_RATE
    envelope = (1 - np.exp(-time / attack)) ** 2 * np.exp(-time / decay)
    return envelope / envelope.max() * np.sin(2 * np.pi * hz * time + phase)


def _add(waveform: np.ndarray, start_seconds: float, sound: np.ndarray) -> None:
    """Adds ``sound`` at a time, cutting what falls outside."""
    start = round(start_seconds * SOURCE_RATE)
    begin, end = max(start, 0), min(start + len(sound), len(waveform))
    if begin < end:
        waveform[begin:end] += sound[begin - start : end - start]


def _first_sound(subject: Subject, tune: float) -> np.ndarray:
    """S1: mitral and tricuspid closure 25 ms apart, and a brighter, shorter onset."""
    hz, decay = subject.s1_hz * tune, subject.s1_decay
    sound = np.zeros(int(0.3 * SOURCE_RATE))
    _add(sound, 0, 0.9 * _damped_tone(hz, 0.008, decay))
    _add(sound, 0.025, 0.45 * _damped_tone(1.25 * hz, 0.006, 0.8 * decay, phase=1.0))
    _add(sound, 0.004, subject.brightness * _damped_tone(2.7 * hz, 0.005, 0.5 * decay))
    return sound


def _second_sound(subject: Subject, tune: float, split: float) -> np.ndarray:
    """S2: aortic, then weaker pulmonary closure; the split widens on inspiration (Leatham)."""
    hz, decay = subject.s2_hz * tune, subject.s2_decay
    sound = np.zeros(int(0.25 * SOURCE_RATE))
    _add(sound, 0, 0.8 * _damped_tone(hz, 0.004, decay))
    _add(sound, split, 0.4 * _damped_tone(0.9 * hz, 0.005, decay))
    _add(sound, 0.002, subject.brightness * _damped_tone(2.5 * hz, 0.003, 0.5 * decay))
    return sound


def _extra_sound(subject: Subject, kind: str) -> np.ndarray:
    """S3 and S4 are dull, a click is short and high."""
    if kind == "click":
        return _damped_tone(3.2 * subject.s1_hz, 0.002, 0.007)
    hz = (0.9 if kind == "s3" else 1.0) * subject.s1_hz
    return _damped_tone(hz, 0.010, 0.018) + subject.brightness * _damped_tone(2.3 * hz, 0.006, 0.01)


def _place_extra_sounds(
    subject: Subject, times: np.ndarray, systole: np.ndarray, rng: np.random.Generator
) -> list[tuple[float, str]]:
    """Onsets of the extra sounds: S3 0.13-0.17 s after S2, S4 0.09-0.13 s before S1."""
    s3_delay, s4_lead = rng.uniform(0.13, 0.17), rng.uniform(0.09, 0.13)
    click_share = rng.uniform(0.4, 0.65)
    kinds = list(subject.extra_sounds)
    if subject.murmur is not None and subject.murmur.shape == "late_systolic":
        kinds.append("click")  # the prolapsing valve that leaks late also clicks
        click_share = _LATE_START
    placed = []
    for start, length in zip(times, systole):
        if "s3" in kinds:
            placed.append((float(start + length + s3_delay), "s3"))
        if "s4" in kinds:
            placed.append((float(start - s4_lead), "s4"))
        if "click" in kinds:
            placed.append((float(start + click_share * length), "click"))
    return sorted(placed)


_LATE_START = 0.5  # share of systole at which a late systolic murmur starts


def _murmur_level(grade: int) -> float:
    """RMS of a murmur at its loudest relative to the peak of S1, 5 dB a grade."""
    return 10 ** ((5 * grade - 32) / 20)


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
            start, end = s1 + _LATE_START * (s2 - s1), s2 + 0.01
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


def simulate_recording(
    label: str,
    duration_seconds: float,
    sampling_rate: int,
    rng: np.random.Generator,
    device: str,
    subject: Subject | None = None,
    noisy: bool = False,
    snr_db: float | None = None,
) -> tuple[np.ndarray, RecordingTruth]:
    """A recording as a device would write it.

    Args:
        label: one of ``RAW_LABELS``.
        duration_seconds: length in seconds.
        sampling_rate: Hz.
        rng: source of randomness; an equal generator gives an equal recording.
        device: ``phone`` (wide-band noise, automatic gain, mild clipping) or ``stethoscope``
            (low-passed near 195 Hz).
        subject: whose heart; drawn anew by default. Must carry ``label``; none for an artifact.
        noisy: low signal-to-noise ratio and bursts of handling, cloth or speech.
        snr_db: heart over noise in dB; by default drawn from 6 to 24, or -4 to 5 if ``noisy``.

    Returns:
        The waveform ``[T]`` (``float32`` within [-1, 1]) and the truth.

    Raises:
        UserError: an argument is out of range.
    """
    _check_arguments(label, duration_seconds, sampling_rate, device, subject, snr_db)
    subject_rng, heart_rng, noise_rng, level_rng = rng.spawn(4)
    num_samples = round(duration_seconds * sampling_rate)
    if label == "artifact":
        mix, kinds = mix_artifacts(duration_seconds + 0.01, noise_rng)
        mix = change_rate(mix, ARTIFACT_RATE, sampling_rate)[:num_samples]
        floor = 10 ** (-noise_rng.uniform(25, 55) / 20) * noise_rng.standard_normal(num_samples)
        recorded = _device_filter(mix + floor, sampling_rate, device, noise_rng.uniform(30, 50))
        truth = RecordingTruth(label, device, noisy, artifact_kinds=kinds)
        return _set_level(recorded, sampling_rate, device, level_rng, wide=True), truth

    subject = subject if subject is not None else draw_subject(label, subject_rng)
    heart, beats = simulate_heartbeats(subject, duration_seconds + 0.01, heart_rng)
    time = np.arange(len(heart)) / SOURCE_RATE
    inspiration = np.sin(2 * np.pi * subject.breathing_rate * time + beats.breathing_phase)
    noise = background_noise(inspiration, SOURCE_RATE, device, noisy, noise_rng)
    high_pass = subject.phone_high_pass_hz
    heart = _device_filter(heart, SOURCE_RATE, device, high_pass)
    noise = _device_filter(noise, SOURCE_RATE, device, high_pass)
    heart = change_rate(heart, SOURCE_RATE, sampling_rate)[:num_samples]
    noise = change_rate(noise, SOURCE_RATE, sampling_rate)[:num_samples]
    if device == "phone":  # the microphone's own noise is as wide as the file
        hiss = 10 ** (-noise_rng.uniform(3, 20) / 20) * np.std(noise)
        noise = noise + hiss * noise_rng.standard_normal(num_samples)
    if snr_db is None:
        snr_db = float(noise_rng.uniform(-4, 5) if noisy else noise_rng.uniform(6, 24))
    noise *= np.sqrt(np.mean(heart**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    beats = _clip_beats(beats, duration_seconds)
    truth = RecordingTruth(label, device, noisy, beats, subject.murmur, snr_db)
    return _set_level(heart + noise, sampling_rate, device, level_rng, wide=False), truth
