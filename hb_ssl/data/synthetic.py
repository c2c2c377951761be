"""A phonocardiogram simulator with known truth.

It stands in for real recordings in the quickstart and in tests; it is no substitute for them.
``synthetic_subject`` draws a person, ``synthetic_heart`` builds the heart sounds and
``synthetic_noise`` the rest; here a device model mixes, colours and scales them. All randomness
comes from the ``numpy`` generator that is passed in.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hb_ssl.data.recording import RAW_LABELS
from hb_ssl.data.synthetic_heart import SOURCE_RATE, Heartbeats, simulate_heartbeats
from hb_ssl.data.synthetic_noise import (
    ARTIFACT_RATE,
    DEVICES,
    automatic_gain,
    background_noise,
    change_rate,
    mix_artifacts,
    phone_filter,
    stethoscope_filter,
)
from hb_ssl.data.synthetic_subject import Murmur, Subject, draw_subject
from hb_ssl.errors import UserError

__all__ = [
    "DEVICES",
    "Heartbeats",
    "Murmur",
    "RecordingTruth",
    "Subject",
    "draw_subject",
    "simulate_heartbeats",
    "simulate_recording",
]

MIN_DURATION, MAX_DURATION = 2.0, 300.0  # seconds; two seconds hold a beat at any heart rate
MIN_RATE, MAX_RATE = 1000, 96_000  # Hz


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
    artifact_kinds: tuple[str, ...] = ()

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
        snr_db: heart over noise in dB; by default drawn from 8 to 26, or -2 to 7 if ``noisy``.

    Returns:
        The waveform ``[T]`` (``float32`` within [-1, 1]) and the truth.

    Raises:
        UserError: an argument is out of range.
    """
    _check_arguments(label, duration_seconds, sampling_rate, device, subject, snr_db)
    subject_rng, heart_rng, noise_rng, level_rng = rng.spawn(4)
    num_samples = round(duration_seconds * sampling_rate)
    if label == "artifact":
        mix, kinds = mix_artifacts(duration_seconds, noise_rng)
        mix = change_rate(mix, ARTIFACT_RATE, sampling_rate)[:num_samples]
        floor = 10 ** (-noise_rng.uniform(25, 55) / 20) * noise_rng.standard_normal(num_samples)
        recorded = _device_filter(mix + floor, sampling_rate, device, noise_rng.uniform(30, 50))
        truth = RecordingTruth(label, device, noisy, artifact_kinds=kinds)
        return _set_level(recorded, sampling_rate, device, level_rng, lowest_db=-28), truth

    subject = subject if subject is not None else draw_subject(label, subject_rng)
    heart, beats = simulate_heartbeats(subject, duration_seconds, heart_rng)
    time = np.arange(len(heart)) / SOURCE_RATE
    inspiration = np.sin(2 * np.pi * subject.breathing_rate * time + beats.breathing_phase)
    noise = background_noise(inspiration, SOURCE_RATE, device, noisy, noise_rng)
    high_pass = subject.phone_high_pass_hz
    heart = _device_filter(heart, SOURCE_RATE, device, high_pass)
    noise = _device_filter(noise, SOURCE_RATE, device, high_pass)
    heart = change_rate(heart, SOURCE_RATE, sampling_rate)[:num_samples]
    noise = change_rate(noise, SOURCE_RATE, sampling_rate)[:num_samples]
    # The device's own noise comes after its filter, so it is as wide as the file.
    hiss_db = noise_rng.uniform(3, 20) if device == "phone" else noise_rng.uniform(14, 28)
    noise = noise + 10 ** (-hiss_db / 20) * np.std(noise) * noise_rng.standard_normal(num_samples)
    if snr_db is None:
        snr_db = float(noise_rng.uniform(-2, 7) if noisy else noise_rng.uniform(8, 26))
    noise *= np.sqrt(np.mean(heart**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    truth = RecordingTruth(label, device, noisy, beats, subject.murmur, snr_db)
    return _set_level(heart + noise, sampling_rate, device, level_rng, lowest_db=-22), truth


def _check_arguments(
    label: str,
    duration_seconds: float,
    sampling_rate: int,
    device: str,
    subject: Subject | None,
    snr_db: float | None,
) -> None:
    if label not in RAW_LABELS:
        raise UserError(f"label '{label}': expected one of {', '.join(RAW_LABELS)}")
    if device not in DEVICES:
        raise UserError(f"device '{device}': expected one of {', '.join(DEVICES)}")
    if not MIN_DURATION <= duration_seconds <= MAX_DURATION:
        raise UserError(
            f"duration {duration_seconds} s: expected {MIN_DURATION:g} to {MAX_DURATION:g} s"
        )
    if sampling_rate != int(sampling_rate) or not MIN_RATE <= sampling_rate <= MAX_RATE:
        raise UserError(
            f"sampling rate {sampling_rate} Hz: expected a whole number from {MIN_RATE} to "
            f"{MAX_RATE} Hz"
        )
    if subject is not None and subject.label != label:
        raise UserError(
            f"label '{label}' with a subject labelled '{subject.label}': expected the same; draw "
            "another subject, or pass none for an artifact"
        )
    if snr_db is not None and (label == "artifact" or not math.isfinite(snr_db)):
        raise UserError(
            f"snr_db {snr_db} for label '{label}': expected a finite number, and none for an "
            "artifact, which has no heart to compare the noise with"
        )


def _device_filter(
    waveform: np.ndarray, rate: int, device: str, phone_high_pass_hz: float
) -> np.ndarray:
    if device == "phone":
        return phone_filter(waveform, rate, phone_high_pass_hz)
    return stethoscope_filter(waveform, rate)


def _set_level(
    waveform: np.ndarray, rate: int, device: str, rng: np.random.Generator, lowest_db: float
) -> np.ndarray:
    """Gain control, a random level and clipping: ``[T]`` to ``float32`` within [-1, 1]."""
    if device == "phone":
        waveform = automatic_gain(waveform, rate, strength=rng.uniform(0, 0.4))
        peak_db = rng.uniform(lowest_db, 2)
        waveform = waveform / np.abs(waveform).max() * 10 ** (peak_db / 20)
        waveform = np.tanh(waveform)  # bends only the loudest peaks
    else:
        peak_db = rng.uniform(-9, 3)
        waveform = waveform / np.abs(waveform).max() * 10 ** (peak_db / 20)
    return np.clip(waveform, -1, 1).astype(np.float32)
