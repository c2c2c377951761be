"""Sounds that are not a heart, in two families made by different code.

A gate that tells heart sounds from everything else is fitted on the ``fitting`` family and tested
on the ``testing`` family, so that it can't pass by knowing one synthesiser. The fitting family
builds on ``synthetic_noise``; the testing family shares nothing with it but colouring by a device.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.signal import butter, lfilter, sawtooth, sosfilt, square

from hb_ssl.data.synthetic_noise import (
    ARTIFACT_KINDS,
    ARTIFACT_RATE,
    band_noise,
    change_rate,
    mix_artifacts,
    phone_filter,
    simulate_artifact,
    slow_envelope,
    stethoscope_filter,
    unit_rms,
)

Maker = Callable[[int, int, np.random.Generator], np.ndarray]
FAMILIES = ("fitting", "testing")


def simulate_non_heart(
    family: str, kind: str, duration_seconds: float, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """One sound ``[T]`` (float32, peak near 0.5) as a phone, a stethoscope or neither hears it.

    Args:
        family: ``fitting`` or ``testing``.
        kind: one of ``KINDS[family]``.
        duration_seconds: length in seconds.
        rate: Hz.
        rng: source of randomness; an equal generator gives an equal sound.
    """
    num_samples = math.ceil(duration_seconds * ARTIFACT_RATE)
    sound = _MAKERS[family][kind](num_samples, ARTIFACT_RATE, rng)
    if kind != "silence":
        floor = 10 ** (-rng.uniform(20, 60) / 20) * rng.standard_normal(num_samples)
        sound = unit_rms(sound) + floor
        device = rng.choice(["none", "phone", "stethoscope"])
        if device == "phone":
            sound = phone_filter(sound, ARTIFACT_RATE, rng.uniform(30, 50))
        elif device == "stethoscope":
            sound = stethoscope_filter(sound, ARTIFACT_RATE)
        sound = 0.5 * sound / (np.abs(sound).max() + 1e-12)
    sound = change_rate(sound, ARTIFACT_RATE, rate)[: round(duration_seconds * rate)]
    return sound.astype(np.float32)


# ---- Fitting family: the simulator's artifacts, and what they lack -------------------------------


def _artifact(kind: str) -> Maker:
    return lambda num, rate, rng: simulate_artifact(kind, num / rate, rng)[:num]


def _mixture(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    return mix_artifacts(num / rate, rng)[0][:num]


def _faint_noise(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """An open input: converter noise, no signal."""
    return 10 ** rng.uniform(-5, -3) * rng.standard_normal(num)


def _breath(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Lung sounds: noise that swells with a breath every 2 to 6 s."""
    time = np.arange(num) / rate
    flow = np.sin(2 * np.pi * time / rng.uniform(2, 6) + rng.uniform(0, 6))
    loud = np.where(flow > 0, flow, -rng.uniform(0.2, 0.8) * flow) ** rng.uniform(1, 2)
    noise = band_noise(num, rate, rng.uniform(60, 150), rng.uniform(400, 1500), rng, slope_db=-4)
    return loud * noise


def _gurgles(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Bowel sounds: damped tones at random times."""
    sound = 0.02 * rng.standard_normal(num)
    for _ in range(rng.poisson(rng.uniform(1, 6) * num / rate) + 1):
        time = np.arange(int(rate * rng.uniform(0.01, 0.2))) / rate
        tone = np.sin(2 * np.pi * rng.uniform(80, 500) * time * (1 + rng.normal(0, 0.5) * time))
        _place(sound, rng, rng.lognormal(0, 0.7) * np.exp(-time / 0.03) * tone)
    return sound


def _ticks(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A metronome or tapping: one equal click after another, steadier than a heart."""
    sound = 10 ** rng.uniform(-3, -1) * rng.standard_normal(num)
    time = np.arange(int(0.08 * rate)) / rate
    ring = np.sin(2 * np.pi * rng.uniform(60, 900) * time) + 0.5 * rng.standard_normal(len(time))
    click = ring * np.exp(-time / rng.uniform(0.002, 0.02))
    period = rng.uniform(0.15, 1.2)
    for start in np.arange(rng.uniform(0, period), num / rate, period):
        _add(sound, int(start * rate), click * rng.uniform(0.8, 1.2))
    return sound


def _tone(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A steady or gliding pure tone."""
    glide = rng.choice([0.0, rng.normal(0, 60)])
    time = np.arange(num) / rate
    return np.sin(2 * np.pi * (np.exp(rng.uniform(np.log(30), np.log(1500))) + glide * time) * time)


# ---- Testing family ------------------------------------------------------------------------------


def _test_silence(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Digital silence, a constant, or dither of one 16-bit step."""
    kind = rng.integers(3)
    if kind == 0:
        return np.zeros(num)
    if kind == 1:
        return np.full(num, rng.uniform(-0.1, 0.1))
    return rng.integers(-1, 2, num) / 32768


def _test_speech(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Pulses of a voice through resonators that step from sound to sound, and unvoiced noise.

    The cascade form of a formant synthesiser (Klatt 1980, J. Acoust. Soc. Am. 67:971).
    """
    sound, position = np.zeros(num), 0
    pitch = rng.uniform(85, 230)
    while position < num:
        length = int(rate * rng.uniform(0.06, 0.28))
        manner = rng.choice(["voiced", "hiss", "pause"], p=[0.62, 0.2, 0.18])
        if manner == "voiced":
            rise = np.linspace(1, rng.uniform(0.85, 1.15), length)
            source = np.diff(np.floor(np.cumsum(pitch * rise) / rate), prepend=0.0)
            part = lfilter([1], [1, -0.96], source)
            for center, width in zip(
                rng.uniform([250, 800, 2200], [850, 2200, 3000]), (70, 90, 120)
            ):
                radius = np.exp(-np.pi * width / rate)
                part = lfilter(
                    [1], [1, -2 * radius * np.cos(2 * np.pi * center / rate), radius**2], part
                )
            part = unit_rms(part)
        else:
            part = rng.standard_normal(length) * (0.25 if manner == "hiss" else 0.01)
        edge = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.01 * rate))
        _add(sound, position, part * edge * rng.uniform(0.5, 1))
        position += length
    return sound


def _test_music(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of sawtooth waves over a drum pattern."""
    time = np.arange(num) / rate
    beat = 60 / rng.uniform(70, 150)
    root = rng.uniform(80, 200)
    chord_of = rng.choice([0, 5, 7, 9, 2], size=int(num / rate / beat / 2) + 2)
    semitone = chord_of[(time / beat / 2).astype(int)]
    sound = np.zeros(num)
    for interval in (0, 4, 7):
        phase = np.cumsum(root * 2 ** ((semitone + interval) / 12)) / rate
        sound += 0.3 * sawtooth(2 * np.pi * phase)
    sound = sosfilt(butter(2, rng.uniform(800, 3000), fs=rate, output="sos"), sound)
    drum_time = np.arange(int(0.25 * rate)) / rate
    kick = np.sin(2 * np.pi * (110 * drum_time - 150 * drum_time**2)) * np.exp(-drum_time / 0.08)
    snare = rng.standard_normal(len(drum_time)) * np.exp(-drum_time / 0.06)
    for number, start in enumerate(np.arange(0, num / rate, beat / 2)):
        drum = (kick, 0.2 * snare, 0.8 * snare, 0.2 * snare)[number % 4]
        _add(sound, int(start * rate), rng.uniform(0.5, 1.5) * drum)
    return sound


def _test_noise(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """White, brown or crackling noise."""
    kind = rng.integers(3)
    white = rng.standard_normal(num)
    if kind == 1:
        white = lfilter([1], [1, -rng.uniform(0.9, 0.999)], white)
    if kind == 2:
        white = white * (rng.random(num) < rng.uniform(0.0005, 0.02))
        white = lfilter([1], [1, -0.9], white)
    return white


def _test_tones(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Keypad tones, an alarm's beeps, a siren, or a mains-like square wave."""
    time = np.arange(num) / rate
    kind = rng.integers(4)
    if kind == 0:
        step = (time / 0.15).astype(int)
        low = np.array([697, 770, 852, 941])[rng.integers(4, size=step[-1] + 1)][step]
        high = np.array([1209, 1336, 1477])[rng.integers(3, size=step[-1] + 1)][step]
        return (np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time)) * (step % 2)
    if kind == 1:
        on = square(2 * np.pi * rng.uniform(0.5, 3) * time) > 0
        return on * np.sin(2 * np.pi * rng.uniform(300, 950) * time)
    if kind == 2:
        sweep = rng.uniform(250, 700) * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 1) * time))
        return np.sin(2 * np.pi * np.cumsum(sweep) / rate)
    return square(2 * np.pi * rng.uniform(45, 130) * time)


def _test_rub(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Stick and slip of cloth or hair: dense grains in strokes."""
    sound, position = np.zeros(num), 0
    grain_time = np.arange(int(0.006 * rate)) / rate
    while position < num:
        length = int(rate * rng.uniform(0.15, 0.7))
        for start in rng.integers(length, size=rng.poisson(length / rate * rng.uniform(80, 400))):
            grain = rng.standard_normal(len(grain_time)) * np.exp(-grain_time / 0.001)
            _add(sound, position + int(start), rng.exponential() * grain)
        position += length + int(rate * rng.uniform(0, 0.6))
    return sosfilt(butter(1, rng.uniform(300, 4000), fs=rate, output="sos"), sound)


def _test_breathing(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Breaths with a sharp start and a long end, often with a wheeze."""
    sound = np.zeros(num)
    position, wheezes = 0.0, rng.random() < 0.4
    while position < num / rate:
        for length, level in ((rng.uniform(0.6, 1.6), 1.0), (rng.uniform(0.8, 2.2), 0.5)):
            time = np.arange(int(length * rate)) / rate
            shape = (time / length) ** 0.5 * (1 - time / length) ** 1.2
            flow = rng.standard_normal(len(time))
            band = [rng.uniform(70, 200), rng.uniform(350, 1200)]
            flow = sosfilt(butter(2, band, "bandpass", fs=rate, output="sos"), flow)
            part = unit_rms(flow) * shape * level
            if wheezes:
                part += 0.3 * shape * np.sin(2 * np.pi * rng.uniform(150, 600) * time)
            _add(sound, int(position * rate), part)
            position += length + rng.uniform(0, 0.4)
    return sound


def _test_bowel(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Bursts of bubbling: clusters of short chirps with pauses between."""
    sound, position = 0.01 * rng.standard_normal(num), 0.0
    while position < num / rate:
        for _ in range(rng.integers(1, 9)):
            time = np.arange(int(rate * rng.uniform(0.02, 0.08))) / rate
            start, end = rng.uniform(90, 350), rng.uniform(120, 600)
            phase = 2 * np.pi * (start * time + (end - start) / (2 * time[-1]) * time**2)
            _add(sound, int(position * rate), np.hanning(len(time)) * np.sin(phase))
            position += rng.uniform(0.03, 0.12)
        position += rng.exponential(0.9)
    return sound


def _test_cough(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Coughs: an explosion of noise and a voiced end, singly or in fits."""
    sound, position = 0.005 * rng.standard_normal(num), rng.uniform(0, 1)
    while position < num / rate:
        time = np.arange(int(rate * rng.uniform(0.2, 0.45))) / rate
        burst = rng.standard_normal(len(time)) * np.exp(-time / 0.07) * (1 - np.exp(-time / 0.004))
        voice = sawtooth(2 * np.pi * rng.uniform(120, 300) * time) * np.exp(
            -((time - 0.2) ** 2) / 0.006
        )
        _add(sound, int(position * rate), burst + 0.3 * voice)
        position += rng.choice([rng.uniform(0.35, 0.6), rng.uniform(1, 3)])
    return sound


def _test_steps(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Footsteps or knocking: low thuds at a walking pace, each different."""
    sound = 10 ** rng.uniform(-2.5, -1.5) * rng.standard_normal(num)
    pace, position = rng.uniform(0.4, 0.8), rng.uniform(0, 0.4)
    while position < num / rate:
        time = np.arange(int(0.15 * rate)) / rate
        thud = rng.standard_normal(len(time)) * np.exp(-time / rng.uniform(0.01, 0.04))
        thud = sosfilt(butter(2, rng.uniform(100, 600), fs=rate, output="sos"), thud)
        _add(sound, int(position * rate), unit_rms(thud) * rng.uniform(0.4, 1.2))
        position += pace * rng.normal(1, 0.12)
    return sound


def _test_engine(num: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """An engine or a fan: rotating harmonics that drift, over rumble."""
    drift = slow_envelope(num, rate, 0.7, rng, depth_db=1.0)
    phase = 2 * np.pi * np.cumsum(rng.uniform(12, 60) * drift) / rate
    parts = [rng.uniform(0.2, 1) / k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, 12)]
    sound = np.sum(parts, axis=0)
    return unit_rms(sound) + rng.uniform(0.1, 1) * unit_rms(
        lfilter([1], [1, -0.98], rng.standard_normal(num))
    )


def _add(sound: np.ndarray, start: int, part: np.ndarray) -> None:
    """Adds in place; what falls past the end is cut."""
    if start < len(sound):
        part = part[: len(sound) - start]
        sound[start : start + len(part)] += part


def _place(sound: np.ndarray, rng: np.random.Generator, part: np.ndarray) -> None:
    _add(sound, int(rng.integers(len(sound))), part)


_MAKERS: dict[str, dict[str, Maker]] = {
    "fitting": {
        **{kind: _artifact(kind) for kind in ARTIFACT_KINDS},
        "mixture": _mixture,
        "silence": _faint_noise,
        "breath": _breath,
        "gurgles": _gurgles,
        "ticks": _ticks,
        "tone": _tone,
    },
    "testing": {
        "silence": _test_silence,
        "speech": _test_speech,
        "music": _test_music,
        "noise": _test_noise,
        "tones": _test_tones,
        "rub": _test_rub,
        "breathing": _test_breathing,
        "bowel": _test_bowel,
        "cough": _test_cough,
        "steps": _test_steps,
        "engine": _test_engine,
    },
}
KINDS = {family: tuple(makers) for family, makers in _MAKERS.items()}
