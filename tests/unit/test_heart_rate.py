"""Heart rate and beats against the simulator's known truth."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.heart_rate import MAX_BPM, MIN_BPM, estimate_heart_rate


def beats(
    rate: int, seconds: float, bpm: float, s2_ratio: float = 1.0, systole: float = 0.3
) -> np.ndarray:
    """A metronome heart ``[T]``: two 60 Hz bursts a cycle."""
    time = np.arange(int(rate * seconds)) / rate
    waveform = np.zeros_like(time)
    for start in np.arange(0.1, seconds, 60 / bpm):
        for onset, height in ((start, 1.0), (start + systole, s2_ratio)):
            after = np.maximum(time - onset, 0)
            waveform += height * np.exp(-after / 0.02) * np.sin(2 * np.pi * 60 * after)
    return (0.3 * waveform).astype(np.float32)


@pytest.mark.parametrize("bpm", [45, 60, 75, 100, 130, 150])
def test_metronome_hearts(bpm: int) -> None:
    systole = 0.481 - 0.0021 * bpm
    answer = estimate_heart_rate(beats(4000, 12, bpm, systole=systole), 4000)
    assert answer.bpm == pytest.approx(bpm, abs=1.5)
    assert answer.confidence > 0.8


@pytest.mark.parametrize("s2_ratio", [0.2, 1.0, 2.0])
def test_second_sound_neither_doubles_nor_halves_the_rate(s2_ratio: float) -> None:
    for bpm in (50, 70, 90):
        answer = estimate_heart_rate(beats(2000, 10, bpm, s2_ratio), 2000)
        assert answer.bpm == pytest.approx(bpm, abs=1.5), (s2_ratio, bpm)


def test_beats_are_first_sounds() -> None:
    answer = estimate_heart_rate(beats(4000, 10, 60), 4000)
    expected = np.arange(0.1, 10, 1.0)
    # The envelope peaks a little after the onset.
    inner = [beat for beat in answer.beat_seconds if 0.5 < beat < 9.0]
    assert len(inner) == 8
    for beat in inner:
        assert np.abs(expected + 0.02 - beat).min() < 0.04


@pytest.mark.parametrize("device", ["phone", "stethoscope"])
def test_simulated_hearts_are_within_5_bpm(device: str) -> None:
    rng = np.random.default_rng(11)
    close = 0
    for number in range(20):
        label = ("normal", "murmur")[number % 2]
        waveform, truth = simulate_recording(label, 10.0, 4000, rng, device)
        assert truth.heartbeats is not None
        expected = 60 / np.median(np.diff(truth.heartbeats.s1_seconds))
        bpm = estimate_heart_rate(waveform, 4000).bpm
        close += bpm is not None and abs(bpm - expected) <= 5
    assert close >= 19


def test_rate_of_the_file_does_not_matter() -> None:
    for rate in (500, 1000, 2000, 4001, 8000, 44_100, 96_000):
        assert estimate_heart_rate(beats(rate, 8, 72), rate).bpm == pytest.approx(72, abs=1.5)


def test_no_heart_gives_no_rate() -> None:
    rng = np.random.default_rng(0)
    for waveform in (
        np.zeros(8000), np.ones(8000), rng.normal(0, 0.1, 40_000), np.zeros(0), np.ones(1),
        np.sin(2 * np.pi * 100 * np.arange(8000) / 2000), np.eye(1, 8000, 4000)[0],
    ):  # fmt: skip
        answer = estimate_heart_rate(waveform.astype(np.float32), 2000)
        assert answer.bpm is None
        assert answer.beat_seconds.tolist() == []


def test_silence_in_between_does_not_hide_the_beats() -> None:
    waveform = np.concatenate([beats(4000, 20, 60), np.zeros(5 * 4000), beats(4000, 20, 60)])
    assert estimate_heart_rate(waveform.astype(np.float32), 4000).bpm == pytest.approx(60, abs=2)


def test_two_cycles_are_needed() -> None:
    waveform = beats(4000, 12, 60)
    assert estimate_heart_rate(waveform[: int(1.2 * 4000)], 4000).bpm is None
    assert estimate_heart_rate(waveform[: 4 * 4000], 4000).bpm == pytest.approx(60, abs=2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(100, 3000), st.integers(0, 9), st.sampled_from([1e-7, 1]))
def test_any_length_and_rate(length: int, rate: int, seed: int, scale: float) -> None:
    waveform = scale * np.random.default_rng(seed).normal(size=length)
    answer = estimate_heart_rate(waveform.astype(np.float32), rate)
    assert 0 <= answer.confidence <= 1
    if answer.bpm is not None:
        assert MIN_BPM - 1 <= answer.bpm <= MAX_BPM + 1
        assert (np.diff(answer.beat_seconds) > 0).all()
        assert (answer.beat_seconds >= 0).all()
        assert (answer.beat_seconds <= length / rate).all()


def test_memory_does_not_grow_with_length() -> None:
    waveform = np.tile(beats(8000, 60, 70), 10).astype(np.float32)
    tracemalloc.start()
    answer = estimate_heart_rate(waveform, 8000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.bpm == pytest.approx(70, abs=1)
    assert len(answer.beat_seconds) == pytest.approx(700, rel=0.01)
    assert peak < 15e6  # the recording itself holds 19 MB
