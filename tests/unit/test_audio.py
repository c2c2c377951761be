"""Decoding, resampling, filtering and windowing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from hb_ssl import audio
from hb_ssl.audio import (
    band_limit,
    find_audio_files,
    load_audio,
    random_window,
    read_audio_info,
    resample,
    resampling_ratio,
    split_windows,
    tile_to_length,
    window_starts,
)
from hb_ssl.errors import UserError


def tone(hz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_16"), ("wav", "PCM_U8"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"),
     ("aiff", "PCM_16"), ("ogg", "VORBIS"), ("wav", "ALAW"), ("wav", "IMA_ADPCM")],
)  # fmt: skip
def test_formats_decode_to_the_same_tone(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"t.{suffix}"
    sf.write(path, tone(100, 8000), 8000, subtype=subtype)
    waveform, rate = load_audio(path, 2000)
    assert rate == 2000
    assert waveform.dtype == np.float32
    expected = tone(100, 2000)
    inner = slice(100, 1900)
    assert np.corrcoef(waveform[inner], expected[inner])[0, 1] > 0.99


def test_channels_are_averaged(tmp_path: Path) -> None:
    sf.write(
        tmp_path / "s.wav", np.stack([tone(50, 4000), np.zeros(4000)], 1), 4000, subtype="FLOAT"
    )
    waveform, rate = load_audio(tmp_path / "s.wav")
    np.testing.assert_allclose(waveform, tone(50, 4000) / 2, atol=1e-6)
    info = read_audio_info(tmp_path / "s.wav")
    assert (rate, info.num_channels, info.duration_seconds) == (4000, 2, 1.0)


def test_unusable_files_are_explained(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no sound")
    sf.write(tmp_path / "none.wav", np.zeros(0), 4000)
    sf.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 4000, subtype="FLOAT")
    sf.write(tmp_path / "slow.wav", np.zeros(9), 50)
    for name, message in [
        ("empty.wav", "0 bytes"), ("text.wav", "can't be read as audio"), ("none.wav", "no audio"),
        ("nan.wav", "NaN"), ("slow.wav", "sampling rate 50 Hz"), ("absent.wav", "no such file"),
        (".", "not a regular file"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            load_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_band_limit_keeps_the_band_and_its_phase() -> None:
    low, high = tone(60, 4000, 2.0), tone(800, 4000, 2.0)
    kept = band_limit(low + high, 4000, 25, 195)
    inner = slice(1000, -1000)
    np.testing.assert_allclose(kept[inner], low[inner], atol=0.02)
    assert band_limit(low, 4000, None, None) is low
    assert band_limit(low, 4000, None, 2000) is low
    with pytest.raises(UserError, match="keep nothing"):
        band_limit(low, 4000, 300, 200)


def test_resample_keeps_a_tone() -> None:
    inner = slice(200, -200)
    got = resample(tone(90, 44100), 44100, 2000)
    np.testing.assert_allclose(got[inner], tone(90, 2000)[inner], atol=0.01)


@pytest.mark.parametrize("rate", [191_999, 44_101, 44_099, 7_919, 4001, 101, 383_987, 383_999])
@pytest.mark.parametrize("target", [2000, 16_000])
def test_odd_rates_need_little_memory_and_keep_the_tone(rate: int, target: int) -> None:
    made, step = resampling_ratio(rate, target)
    assert made * step <= 2_000_000
    assert made / step == pytest.approx(target / rate, rel=4e-4)
    inner = slice(target // 5, target - target // 5)
    got = resample(tone(20, rate), rate, target)
    assert abs(len(got) - target) <= 1
    np.testing.assert_allclose(got[inner], tone(20, target)[inner], atol=0.02)


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_ratios_of_real_devices_are_exact(rate: int) -> None:
    for target in (2000, 4000, 16_000):
        made, step = resampling_ratio(rate, target)
        assert made * rate == step * target


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 90), st.integers(1, 90))
def test_windows_cover_every_sample(length: int, window: int, hop: int) -> None:
    hop = min(hop, window)
    waveform = np.arange(1, length + 1, dtype=np.float32)
    windows = split_windows(waveform, window, hop)
    assert windows.shape == (len(window_starts(length, window, hop)), window)
    assert set(waveform) == set(windows.ravel())  # all of it, and nothing else: no zero padding


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_random_windows_hold_only_the_recording(length: int, window: int, seed: int) -> None:
    waveform = np.arange(1, length + 1, dtype=np.float32)
    got = random_window(waveform, window, np.random.default_rng(seed))
    assert len(got) == window
    assert set(got) <= set(waveform)
    steps = np.diff(got)
    assert set(steps) <= {1.0, float(1 - length)}  # in order, wrapped around at the end


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 900), st.integers(1, 900))
def test_window_starts_step_by_the_hop_and_end_at_the_end(
    length: int, window: int, hop: int
) -> None:
    starts = window_starts(length, window, hop)
    assert starts[0] == 0
    assert starts[-1] == max(length - window, 0)
    steps = np.diff(starts)
    assert (steps[:-1] == hop).all()
    assert (steps[-1:] <= hop).all()
    assert (steps > 0).all()  # no window twice


@pytest.mark.parametrize(("window", "hop"), [(0, 1), (1, 0), (-5, 1)])
def test_windows_of_nothing_are_refused(window: int, hop: int) -> None:
    with pytest.raises(ValueError, match="at least 1 sample"):
        window_starts(10, window, hop)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 2000))
def test_tiling_is_periodic(length: int, wanted: int) -> None:
    waveform = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    tiled = tile_to_length(waveform, wanted)
    assert len(tiled) == max(length, wanted)
    np.testing.assert_array_equal(tiled, waveform[np.arange(len(tiled)) % length])


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 3000), channels=st.integers(1, 8), seed=st.integers(0, 9),
    rate=st.sampled_from([100, 997, 4000, 44_100, 191_999]),
)  # fmt: skip
def test_a_written_file_reads_back_as_its_mean_channel(
    tmp_path_factory: pytest.TempPathFactory, samples: int, channels: int, seed: int, rate: int
) -> None:
    path = tmp_path_factory.mktemp("audio") / "x.wav"
    noise = np.random.default_rng(seed).uniform(-1, 1, (samples, channels)).astype(np.float32)
    sf.write(path, noise, rate, subtype="FLOAT")
    waveform, got = load_audio(path)
    assert got == rate
    np.testing.assert_allclose(waveform, noise.mean(axis=1), atol=1e-6)
    seconds = max(samples // 2, 1) / rate
    head, _ = load_audio(path, max_seconds=seconds)
    np.testing.assert_array_equal(head, waveform[: max(samples // 2, 1)])


LOSSLESS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAVEX", "PCM_16"),
    ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16"),
    ("W64", "PCM_16"), ("RF64", "PCM_16"), ("CAF", "PCM_16"),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(LOSSLESS), seed=st.integers(0, 99), length=st.integers(1, 3000),
    rate=st.sampled_from([2000, 4000, 44_100]),
)  # fmt: skip
def test_lossless_formats_hold_the_same_samples(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[str, str], seed: int, length: int,
    rate: int,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("audio") / "x"
    samples = np.random.default_rng(seed).integers(-(2**15), 2**15, length, dtype=np.int16)
    sf.write(path, samples, rate, format=kind[0], subtype=kind[1])
    waveform, got = load_audio(path)
    assert got == rate
    np.testing.assert_array_equal(waveform, samples.astype(np.float32) / 2**15)
    assert read_audio_info(path).num_samples == length


RATES = st.sampled_from([100, 997, 2000, 4000, 8000, 11_025, 16_000, 44_100, 48_000])


@settings(max_examples=80, deadline=None)
@given(length=st.integers(1, 4000), rate=RATES, target=RATES, gain=st.floats(-8, 8))
def test_resampling_keeps_the_duration_and_is_linear(
    length: int, rate: int, target: int, gain: float
) -> None:
    waveform = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    resampled = resample(waveform, rate, target)
    assert len(resampled) == -(-length * target // rate)
    assert resampled.dtype == np.float32
    scaled = resample((gain * waveform).astype(np.float32), rate, target)
    np.testing.assert_allclose(scaled, gain * resampled, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    # From three quarters of the Nyquist frequency on the filter falls off: 3 % at 750 of 1000 Hz.
    hz=st.floats(15, 700), rate=st.sampled_from([4000, 8000, 44_100]),
    target=st.sampled_from([2000, 4000, 16_000]), phase=st.floats(0, 6.3),
)  # fmt: skip
def test_resampling_keeps_the_power_of_a_heart_sound(
    hz: float, rate: int, target: int, phase: float
) -> None:
    times = np.arange(rate) / rate
    waveform = np.sin(2 * np.pi * hz * times + phase).astype(np.float32)
    inner = slice(target // 10, -target // 10)  # one second; its ends ring
    expected = np.sin(2 * np.pi * hz * np.arange(target) / target + phase)[inner]
    got = resample(waveform, rate, target)[inner]
    assert np.mean(got**2) == pytest.approx(np.mean(expected**2), rel=0.03)
    np.testing.assert_allclose(got, expected, atol=0.02)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 900), st.integers(1, 200), st.integers(1, 200))
def test_each_window_is_the_recording_from_its_start(length: int, window: int, hop: int) -> None:
    waveform = np.arange(length, dtype=np.float32)
    windows = split_windows(waveform, window, hop)
    tiled = tile_to_length(waveform, window)
    for start, row in zip(window_starts(length, window, hop), windows, strict=True):
        np.testing.assert_array_equal(row, tiled[start : start + window])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 3999), st.integers(1, 3999), st.integers(0, 9))
def test_band_limit_keeps_length_and_type(length: int, low: int, high: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    if low >= min(high, 2000):
        return
    limited = band_limit(waveform, 4000, low, high)
    assert limited.shape == waveform.shape
    assert limited.dtype == np.float32
    assert np.isfinite(limited).all()


def test_tiling_repeats() -> None:
    assert tile_to_length(np.array([1, 2, 3]), 7).tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_find_audio_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("b.WAV", "a.flac", "notes.txt"):
        (tmp_path / "d" / name).write_bytes(b"x")
    found = find_audio_files([str(tmp_path / "d"), str(tmp_path / "z.wav")])
    assert [p.name for p in found] == ["a.flac", "b.WAV", "z.wav"]
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="holds no audio file"):
        find_audio_files([str(tmp_path / "e")])


@pytest.mark.parametrize("target", [None, 2000, 4000, 7919, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("block", [50, 4000, 30_001])
def test_long_files_are_decoded_in_blocks_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: int | None, block: int
) -> None:
    stereo = 0.1 * np.random.default_rng(0).standard_normal((30_001, 2))
    sf.write(tmp_path / "x.wav", stereo, 44_100, subtype="FLOAT")
    whole, rate = audio.load_audio(tmp_path / "x.wav", target)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 2 * block)
    parts, parts_rate = audio.load_audio(tmp_path / "x.wav", target)
    assert rate == parts_rate == (target or 44_100)
    assert len(parts) == len(whole)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_a_bad_sample_in_a_late_block_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 100)
    samples = np.zeros(1000, dtype=np.float32)
    samples[-1] = np.nan
    sf.write(tmp_path / "x.wav", samples, 4000, subtype="FLOAT")
    with pytest.raises(UserError, match="NaN"):
        audio.load_audio(tmp_path / "x.wav", 2000)


def test_only_the_first_seconds_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1000)
    samples = np.linspace(-0.5, 0.5, 9000).astype(np.float32)
    sf.write(tmp_path / "x.wav", samples, 4000, subtype="FLOAT")
    for seconds, count in ((0.1, 400), (1.0, 4000), (2.0, 8000), (60.0, 9000)):
        head, rate = audio.load_audio(tmp_path / "x.wav", max_seconds=seconds)
        np.testing.assert_array_equal(head, samples[:count])
        assert rate == 4000
