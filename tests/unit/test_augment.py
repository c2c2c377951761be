"""Augmentations: within their bounds, of the right shape, and fixed by the random generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hb_ssl.data.augment import (
    Augmentation,
    add_noise,
    augmented_window,
    mask_spectrogram,
    time_stretch,
)

RATE = 2000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(hz: float, seconds: float = 2.0) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    return np.sin(2 * np.pi * hz * times).astype(np.float32)


def power(waveform: np.ndarray) -> float:
    return float(np.mean(waveform.astype(np.float64) ** 2))


def share_above(waveform: np.ndarray, hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    return float(spectrum[np.fft.rfftfreq(len(waveform), 1 / RATE) > hz].sum() / spectrum.sum())


EVERYTHING = Augmentation(
    probability=0.9, gain_db=6, noise_snr_db=10, time_stretch=0.2, low_pass_hz=200
)


def test_default_changes_nothing() -> None:
    waveform = rng().standard_normal(5000).astype(np.float32)
    window = augmented_window(waveform, 1000, RATE, Augmentation(), rng(3))
    starts = np.lib.stride_tricks.sliding_window_view(waveform, 1000)
    assert (starts == window).all(axis=1).sum() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(600, 4000), st.integers(0, 2**20))
def test_every_length_gives_one_finite_window(length: int, window: int, seed: int) -> None:
    waveform = rng(seed).standard_normal(length).astype(np.float32)
    made = augmented_window(waveform, window, RATE, EVERYTHING, rng(seed))
    assert made.shape == (window,)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()


def test_one_generator_state_one_result() -> None:
    waveform = rng().standard_normal(9000).astype(np.float32)
    first = augmented_window(waveform, 2000, RATE, EVERYTHING, rng(5))
    again = augmented_window(waveform, 2000, RATE, EVERYTHING, rng(5))
    other = augmented_window(waveform, 2000, RATE, EVERYTHING, rng(6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_recording_itself_is_never_changed() -> None:
    waveform = rng().standard_normal(9000).astype(np.float32)
    kept = waveform.copy()
    for seed in range(20):
        augmented_window(waveform, 9000, RATE, EVERYTHING, rng(seed))
    np.testing.assert_array_equal(waveform, kept)


def test_gain_stays_in_its_range_and_reaches_both_ends() -> None:
    augmentation = Augmentation(probability=0.999999, gain_db=6)
    waveform = tone(50)
    gains = [
        20 * np.log10(np.abs(augmented_window(waveform, 4000, RATE, augmentation, rng(s))).max())
        for s in range(200)
    ]
    assert -6.01 < min(gains) < -5
    assert 5 < max(gains) < 6.01


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 15.0, 40.0])
def test_noise_has_the_asked_ratio(snr_db: float) -> None:
    waveform = tone(50)
    noisy = add_noise(waveform, snr_db, rng())
    got = 10 * np.log10(power(waveform) / power(noisy - waveform))
    assert got == pytest.approx(snr_db, abs=0.05)


def test_noise_of_silence_is_silence() -> None:
    assert not add_noise(np.zeros(1000, np.float32), 10.0, rng()).any()


@pytest.mark.parametrize("num_samples", [3200, 4000, 4800])
def test_stretch_changes_tempo_and_keeps_pitch(num_samples: int) -> None:
    # a 100 Hz tone that beats four times a second
    waveform = (tone(100) * (1 + np.sign(tone(4))) / 2).astype(np.float32)
    stretched = time_stretch(waveform, RATE, num_samples)
    assert stretched.shape == (num_samples,)
    frequencies = np.fft.rfftfreq(num_samples, 1 / RATE)
    spectrum = np.abs(np.fft.rfft(stretched * np.hanning(num_samples)))
    assert abs(frequencies[spectrum.argmax()] - 100) < 5
    envelope = np.convolve(np.abs(stretched), np.ones(100) / 100, "same")
    beats = np.abs(np.fft.rfft(envelope - envelope.mean()))
    assert abs(frequencies[beats.argmax()] - 4 * 4000 / num_samples) < 0.7


def test_low_pass_removes_what_is_above_its_highest_edge_only_sometimes() -> None:
    augmentation = Augmentation(probability=0.999999, low_pass_hz=200)
    noise = rng().standard_normal(8000).astype(np.float32)
    shares = [
        share_above(augmented_window(noise, 8000, RATE, augmentation, rng(s)), 250)
        for s in range(60)
    ]
    assert min(shares) < 0.1  # an edge near 200 Hz
    assert max(shares) > 0.7  # an edge near half the rate
    low = tone(60, 4.0)
    kept = augmented_window(low, 8000, RATE, augmentation, rng(1))
    np.testing.assert_allclose(kept[500:-500], low[500:-500], atol=0.02)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 60), st.floats(0, 0.99), st.floats(0, 0.99),
    st.sampled_from([0, 1]), st.integers(0, 2**20),
)  # fmt: skip
def test_masks_are_one_stretch_of_frames_and_one_of_bands(
    frames: int, bands: int, time_share: float, band_share: float, time_axis: int, seed: int
) -> None:
    features = rng(seed).standard_normal((frames, bands)).astype(np.float32)
    given_features = features if time_axis == 0 else features.T
    kept = given_features.copy()
    masked = mask_spectrogram(given_features, time_axis, time_share, band_share, rng(seed))
    np.testing.assert_array_equal(given_features, kept)
    changed = (masked != given_features) if time_axis == 0 else (masked != given_features).T
    columns, rows = np.flatnonzero(changed.all(axis=1)), np.flatnonzero(changed.all(axis=0))
    if not changed.all():
        assert len(columns) <= frames * time_share
        assert len(rows) <= bands * band_share
        expected = np.zeros_like(changed)
        expected[columns] = True
        expected[:, rows] = True
        np.testing.assert_array_equal(changed, expected)
        for stretch in (columns, rows):
            assert not len(stretch) or np.ptp(stretch) == len(stretch) - 1
    assert set(masked[masked != given_features]) <= {given_features.mean()}
