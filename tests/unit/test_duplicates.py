import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from scipy.signal import butter, resample_poly, sosfiltfilt

from hb_ssl.data import duplicates as duplicates_module
from hb_ssl.data.duplicates import Duplicate, contradictory_duplicates, find_duplicates
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError

RATE = 4000  # Hz


def heart(seed: int, seconds: float, noise: float = 0.003, jitter: float = 0.015) -> np.ndarray:
    """The same heart (template and rhythm) each time; jitter and noise depend on the seed."""
    rng = np.random.default_rng(seed)
    waveform = noise * rng.standard_normal(round(seconds * RATE))
    times = np.arange(round(0.12 * RATE)) / RATE
    s1 = np.sin(2 * np.pi * 55 * times) * np.exp(-times / 0.03)
    s2 = 0.7 * np.sin(2 * np.pi * 80 * times) * np.exp(-times / 0.02)
    beat = 0.1
    while beat < seconds - 0.6:
        for sound, delay in ((s1, 0.0), (s2, 0.32)):
            at = round((beat + delay + jitter * rng.standard_normal()) * RATE)
            waveform[max(at, 0) : at + len(sound)] += 0.3 * sound[max(-at, 0) :]
        beat += 0.8 + jitter * rng.standard_normal()
    return waveform


def dithered(waveform: np.ndarray, seed: int = 99) -> np.ndarray:
    return waveform + np.random.default_rng(seed).uniform(-1, 1, len(waveform)) / 2**15


def save(folder: Path, name: str, waveform: np.ndarray, rate: int = RATE) -> Recording:
    path = folder / f"{name}.wav"
    sf.write(path, waveform, rate, subtype="PCM_16")
    return Recording(
        recording_id=f"b/{name}",
        path=str(path),
        set="b",
        raw_label="normal",
        noisy=False,
        subject=name,
        site="A",
        timestamp=None,
        sampling_rate=rate,
        num_samples=len(waveform),
        content_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def only_pair(recordings: list[Recording], cache: Path) -> Duplicate:
    found = find_duplicates(recordings, cache)
    assert [(d.first, d.second) for d in found] == [("b/one", "b/two")], found
    return found[0]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def bystanders(tmp_path: Path) -> list[Recording]:
    """Distinct takes of the same heart, which must stay out of every result."""
    return [save(tmp_path, f"other{seed}", heart(seed, 5 + seed)) for seed in (1, 2)]


def test_dithered_copy(tmp_path, cache, bystanders):
    source = heart(0, 6)
    pair = [save(tmp_path, "one", source), save(tmp_path, "two", dithered(source))]
    assert pair[0].content_hash != pair[1].content_hash
    found = only_pair([*pair, *bystanders], cache)
    assert found.correlation > 0.999
    assert found.offset_seconds == pytest.approx(0, abs=1e-3)
    assert found.shared_seconds == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize("gain", [0.05, 2.5])
def test_gain_changed_copy(tmp_path, cache, bystanders, gain):
    source = heart(0, 6)
    recordings = [save(tmp_path, "one", source), save(tmp_path, "two", dithered(gain * source))]
    assert only_pair([*recordings, *bystanders], cache).correlation > 0.998


def test_shifted_and_cut_copy_tells_its_offset(tmp_path, cache, bystanders):
    source = heart(0, 12)
    one = source[: 8 * RATE]
    two = source[round(3.21075 * RATE) :]
    found = only_pair(
        [save(tmp_path, "one", one), save(tmp_path, "two", dithered(two)), *bystanders], cache
    )
    assert found.offset_seconds == pytest.approx(-3.21075, abs=2e-4)
    assert found.shared_seconds == pytest.approx(8 - 3.21075, abs=0.01)


@pytest.mark.parametrize("seconds", [0.8, 2.2])
def test_contained_excerpt(tmp_path, cache, bystanders, seconds):
    source = heart(0, 9)
    start = round(4.3333 * RATE)
    excerpt = dithered(source[start : start + round(seconds * RATE)])
    found = only_pair(
        [save(tmp_path, "one", source), save(tmp_path, "two", excerpt), *bystanders], cache
    )
    assert found.offset_seconds == pytest.approx(-start / RATE, abs=1e-3)
    assert found.shared_seconds == pytest.approx(seconds, abs=0.01)


def test_stretch_shared_by_otherwise_different_takes(tmp_path, cache, bystanders):
    shared = heart(0, 4)
    one = np.concatenate([heart(5, 3), shared])
    two = np.concatenate([shared, heart(6, 5)])
    found = only_pair([save(tmp_path, "one", one), save(tmp_path, "two", two), *bystanders], cache)
    assert found.offset_seconds == pytest.approx(-3, abs=1e-3)
    assert 3.4 < found.shared_seconds < 4.6


def test_copy_at_another_rate(tmp_path, cache, bystanders):
    rng = np.random.default_rng(3)
    wide = resample_poly(heart(0, 6), 441, 40) + 0.002 * rng.standard_normal(6 * 44100)
    low_passed = sosfiltfilt(butter(8, 1500, fs=44100, output="sos"), wide)
    copy = resample_poly(low_passed, 40, 441)
    recordings = [save(tmp_path, "one", wide, 44100), save(tmp_path, "two", copy)]
    found = only_pair([*recordings, *bystanders], cache)
    assert found.shared_seconds == pytest.approx(6, abs=0.01)


def test_byte_equal_silence_is_a_duplicate_but_silence_correlates_with_nothing(tmp_path, cache):
    silent = np.zeros(3 * RATE)
    constant = np.full(4 * RATE, 0.4)
    faint = dithered(np.zeros(5 * RATE))
    recordings = [
        save(tmp_path, "one", silent),
        save(tmp_path, "two", silent),
        save(tmp_path, "constant", constant),
        save(tmp_path, "constant2", np.full(3 * RATE, 0.4)),
        save(tmp_path, "faint", faint),
    ]
    assert only_pair(recordings, cache) == Duplicate("b/one", "b/two", 1.0, 0.0, 3.0)


def test_distinct_recordings_are_not_duplicates(tmp_path, cache):
    rng = np.random.default_rng(7)
    recordings = [save(tmp_path, f"heart{s}", heart(s, 4 + s)) for s in range(5)]
    recordings += [
        save(tmp_path, f"noise{i}", 0.1 * rng.standard_normal((6 + i) * RATE)) for i in range(2)
    ]
    assert find_duplicates(recordings, cache) == []


def test_two_clean_takes_of_one_regular_heart_are_not_duplicates(tmp_path, cache):
    """Even the rhythm is almost a machine's; only noise and slight jitter tell them apart."""
    recordings = [
        save(tmp_path, f"take{s}", heart(s, 8, noise=0.01, jitter=0.002)) for s in range(4)
    ]
    assert find_duplicates(recordings, cache) == []


def test_result_does_not_depend_on_order(tmp_path):
    source = heart(0, 6)
    recordings = [
        save(tmp_path, "one", source),
        save(tmp_path, "two", dithered(source)[RATE:]),
        save(tmp_path, "three", dithered(source, seed=5)),
        save(tmp_path, "other", heart(9, 6)),
    ]
    forward = find_duplicates(recordings, tmp_path / "x")
    assert [(d.first, d.second) for d in forward] == [
        ("b/one", "b/three"),
        ("b/one", "b/two"),
        ("b/three", "b/two"),
    ]
    assert forward == find_duplicates(recordings[::-1], tmp_path / "y")


def test_empty_and_single_lists(tmp_path, cache):
    assert find_duplicates([], cache) == []
    assert find_duplicates([save(tmp_path, "one", heart(0, 3))], cache) == []


def test_cache_is_used_until_a_file_changes(tmp_path, cache, monkeypatch):
    source = heart(0, 4)
    recordings = [save(tmp_path, "one", source), save(tmp_path, "two", dithered(source))]
    found = find_duplicates(recordings, cache)
    assert len(list(cache.iterdir())) == 1  # and no temporary file is left

    def searched(_):
        raise AssertionError("searched again")

    monkeypatch.setattr(duplicates_module, "_search", searched)
    assert find_duplicates(recordings[::-1], cache) == found
    changed = [recordings[0], replace(recordings[1], content_hash="0" * 64)]
    with pytest.raises(AssertionError, match="searched again"):
        find_duplicates(changed, cache)


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path / "from-environment"))
    find_duplicates([])
    assert len(list((tmp_path / "from-environment").iterdir())) == 1


@pytest.mark.parametrize("content", ["not json", '[{"first": "a"}]', '{"a": 1}', "[1]"])
def test_damaged_cache_is_made_again(tmp_path, cache, caplog, content):
    source = heart(0, 4)
    recordings = [save(tmp_path, "one", source), save(tmp_path, "two", dithered(source))]
    found = find_duplicates(recordings, cache)
    (file,) = cache.iterdir()
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert find_duplicates(recordings, cache) == found
    assert "cache" in caplog.text
    caplog.clear()
    assert find_duplicates(recordings, cache) == found
    assert not caplog.text


def test_unwritable_cache_is_only_a_warning(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    with caplog.at_level(logging.WARNING):
        assert find_duplicates([], blocked / "cache") == []
    assert "not cached" in caplog.text


def test_unreadable_recording_is_named(tmp_path, cache):
    recording = save(tmp_path, "one", heart(0, 3))
    Path(recording.path).write_bytes(b"garbage")
    with pytest.raises(UserError, match="one.wav"):
        find_duplicates([recording], cache)


def test_contradictory_duplicates_are_labelled_pairs_of_two_labels(tmp_path):
    base = save(tmp_path, "one", heart(0, 1))
    labels = {"n": "normal", "m": "murmur", "n2": "normal", "u": None, "x": "murmur"}
    recordings = [replace(base, recording_id=k, raw_label=v) for k, v in labels.items()]
    pairs = [
        Duplicate(a, b, 1.0, 0.0, 2.0)
        for a, b in (("m", "n"), ("n", "n2"), ("n2", "u"), ("u", "x"))
    ]
    assert contradictory_duplicates(recordings, pairs) == {"m", "n"}
    assert contradictory_duplicates(recordings, []) == set()
