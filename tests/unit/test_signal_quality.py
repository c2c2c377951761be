"""Signal notes: each problem is named, and sound recordings get none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.data.synthetic_noise import simulate_artifact
from hb_ssl.signal_quality import _decimate, check_signal


def heart(seconds: float = 8.0, device: str = "stethoscope") -> np.ndarray:
    rng = np.random.default_rng(3)
    waveform, _ = simulate_recording("normal", seconds, 4000, rng, device, snr_db=20.0)
    return waveform / np.abs(waveform).max() * 0.5


def codes(waveform: np.ndarray, rate: int = 4000) -> list[str]:
    notes = check_signal(waveform.astype(np.float32), rate)
    assert all(note.message.endswith(".") and note.advice.endswith(".") for note in notes)
    return [note.code for note in notes]


@pytest.mark.parametrize("device", ["phone", "stethoscope"])
def test_a_sound_recording_has_no_notes(device: str) -> None:
    assert codes(heart(device=device)) == []


def test_silence_is_named_and_nothing_else_guessed() -> None:
    assert codes(np.zeros(5 * 4000)) == ["silence"]
    assert codes(np.zeros(1)) == ["silence", "too_short"]
    assert codes(1e-4 * heart()) == ["silence"]


def test_short() -> None:
    assert "too_short" in codes(heart()[: 4000 * 2])
    assert "too_short" not in codes(heart()[: 4000 * 4])


def test_quiet() -> None:
    assert codes(0.01 * heart()) == ["too_quiet"]


def test_clipped_at_any_level() -> None:
    overdriven = np.clip(6 * heart(), -0.5, 0.5)
    assert codes(overdriven) == ["clipped"]
    assert codes(0.5 * overdriven) == ["clipped"]


def test_eight_bit_quiet_peaks_are_not_clipping() -> None:
    assert "clipped" not in codes(np.round(heart() * 64) / 64)


@pytest.mark.parametrize("kind", ["speech", "music", "howl"])
def test_pitched_sound(kind: str) -> None:
    sound = simulate_artifact(kind, 8, np.random.default_rng(1))
    assert "speech_or_music" in codes(0.2 * sound / np.abs(sound).max(), 16_000)


@pytest.mark.parametrize("kind", ["hum", "wind", "friction"])
def test_noise_is_no_speech_and_no_heart(kind: str) -> None:
    sound = simulate_artifact(kind, 8, np.random.default_rng(1))
    assert codes(0.5 * sound / np.abs(sound).max(), 16_000) == ["no_heartbeat"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(100, 8000), st.integers(0, 9), st.sampled_from([1e-9, 1]))
def test_any_length_and_rate(length: int, rate: int, seed: int, scale: float) -> None:
    codes(scale * np.random.default_rng(seed).normal(size=length), rate)


def test_half_an_hour() -> None:
    assert codes(np.tile(heart(60), 30)) == []


@pytest.mark.parametrize("step", [1, 2, 11, 24])
def test_decimation_is_that_of_scipy(step: int) -> None:
    rng = np.random.default_rng(0)
    for num_samples in (1, step, 4411, 5000):
        samples = rng.standard_normal(num_samples)
        expected = resample_poly(samples, 1, step)
        np.testing.assert_allclose(_decimate(samples, step), expected, atol=1e-12)
