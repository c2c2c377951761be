"""The waveform cache, the windows for training and evaluation, and their order."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from hb_ssl.data import dataset as module
from hb_ssl.data.augment import Augmentation
from hb_ssl.data.dataset import (
    EpochSampler,
    EvaluationWindows,
    FeatureMaker,
    TrainingWindows,
    Waveforms,
    waveform_dataset,
)
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError

RATE = 2000


def record(path: Path, samples: np.ndarray, rate: int = 4000) -> Recording:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate, subtype="PCM_16")
    return Recording(
        recording_id=f"a/{path.stem}", path=str(path), set="a", raw_label="normal", noisy=False,
        subject=None, site=None, timestamp=None, sampling_rate=rate, num_samples=len(samples),
        content_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
    )  # fmt: skip


def noise(seed: int, seconds: float, rate: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were decoded, in order; the cache is empty at first."""
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path / "cache"))
    paths: list[str] = []
    load_audio = module.load_audio

    def counted(path: str, rate: int) -> tuple[np.ndarray, int]:
        paths.append(path)
        return load_audio(path, rate)

    monkeypatch.setattr(module, "load_audio", counted)
    return paths


# The cache


def test_waveforms_are_decoded_once(tmp_path: Path, decoded: list[str]) -> None:
    recordings = [record(tmp_path / f"d/{n}.wav", noise(n, 0.5)) for n in range(3)]
    first = Waveforms(waveform_dataset(recordings, RATE))
    assert decoded == [r.path for r in recordings]
    again = Waveforms(waveform_dataset(recordings, RATE))
    assert len(decoded) == 3
    for r in recordings:
        expected, _ = module.load_audio(r.path, RATE)
        np.testing.assert_array_equal(first[r.recording_id], expected)
        np.testing.assert_array_equal(again[r.recording_id], expected)
        assert again[r.recording_id].dtype == np.float32


def test_a_changed_file_is_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    before = record(tmp_path / "d/x.wav", noise(0, 0.5))
    old = Waveforms(waveform_dataset([before], RATE))["a/x"]
    after = record(tmp_path / "d/x.wav", noise(1, 0.5))
    assert after.path == before.path
    new = Waveforms(waveform_dataset([after], RATE))["a/x"]
    assert len(decoded) == 2
    assert not np.array_equal(old, new)


def test_a_moved_folder_uses_the_cache(tmp_path: Path, decoded: list[str]) -> None:
    before = [record(tmp_path / f"old/{n}.wav", noise(n, 0.5)) for n in range(2)]
    waveform_dataset(before, RATE)
    (tmp_path / "old").rename(tmp_path / "new")
    after = [record(tmp_path / f"new/{n}.wav", noise(n, 0.5)) for n in range(2)]
    moved = Waveforms(waveform_dataset(after, RATE))
    assert len(decoded) == 2
    assert len(moved["a/1"]) == 1000


@pytest.mark.parametrize("other", [(1000, None, None), (RATE, 25.0, None), (RATE, None, 195.0)])
def test_other_rate_or_band_is_another_cache(
    other: tuple[int, float | None, float | None], tmp_path: Path, decoded: list[str]
) -> None:
    recording = record(tmp_path / "x.wav", noise(0, 0.5))
    plain = Waveforms(waveform_dataset([recording], RATE))["a/x"]
    changed = Waveforms(waveform_dataset([recording], *other))["a/x"]
    assert len(decoded) == 2
    assert not np.array_equal(plain, changed)


def test_order_and_subset_have_their_own_rows(tmp_path: Path, decoded: list[str]) -> None:
    recordings = [record(tmp_path / f"{n}.wav", noise(n, 0.5)) for n in range(3)]
    forward = Waveforms(waveform_dataset(recordings, RATE))
    backward = Waveforms(waveform_dataset(recordings[::-1], RATE))
    part = Waveforms(waveform_dataset(recordings[1:2], RATE))
    for number in range(3):
        np.testing.assert_array_equal(forward[f"a/{number}"], backward[f"a/{number}"])
    np.testing.assert_array_equal(forward["a/1"], part["a/1"])


def test_damaged_cache_is_made_again(tmp_path: Path, decoded: list[str]) -> None:
    recording = record(tmp_path / "x.wav", noise(0, 0.5))
    good = Waveforms(waveform_dataset([recording], RATE))["a/x"]
    (file,) = (tmp_path / "cache/waveforms").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    again = Waveforms(waveform_dataset([recording], RATE))["a/x"]
    np.testing.assert_array_equal(good, again)
    assert len(decoded) == 2


def test_undecodable_recording_is_one_line(tmp_path: Path, decoded: list[str]) -> None:
    recording = record(tmp_path / "x.wav", noise(0, 0.5))
    Path(recording.path).write_text("no sound")
    with pytest.raises(UserError, match="can't be read as audio"):
        waveform_dataset([recording], RATE)
    assert not list((tmp_path / "cache/waveforms").glob("*.arrow"))


# Windows


class Kept:
    """Waveforms in memory, each sample distinct and none of them zero."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.samples = {
            name: (np.arange(1, round(s * RATE) + 1) / 1e5).astype(np.float32)
            for name, s in seconds.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.samples[name]


class Raw:
    """A stand-in for a feature extractor that changes nothing."""

    sampling_rate = RATE
    model_input_names = ("input_values",)

    def __call__(self, windows: list[np.ndarray], **kwargs: object) -> dict[str, np.ndarray]:
        return {"input_values": np.stack(windows)}


LENGTHS = {"short": 0.3, "exact": 1.0, "long": 3.7}
LABELS = [0, 1, 1]


def training_windows(**options: object) -> TrainingWindows:
    return TrainingWindows(
        Kept(LENGTHS), list(LENGTHS), LABELS, 3, FeatureMaker(Raw(), 1.0), Augmentation(),
        **options,
    )  # fmt: skip


def test_evaluation_windows_cover_every_sample_and_pad_nothing() -> None:
    windows = EvaluationWindows(
        Kept(LENGTHS), list(LENGTHS), LABELS, 3, FeatureMaker(Raw(), 1.0), hop_seconds=0.5
    )
    assert Counter(windows.recording_of) == {"short": 1, "exact": 1, "long": 7}
    assert windows.recording_of == sorted(windows.recording_of, key=list(LENGTHS).index)
    for name, samples in Kept(LENGTHS).samples.items():
        own = [i for i, r in enumerate(windows.recording_of) if r == name]
        made = [windows[i]["input_values"].numpy() for i in own]
        assert all(window.shape == (RATE,) for window in made)
        assert set(np.concatenate(made)) == set(samples)  # all, and nothing else: no zeros
        for index, window in zip(own, made, strict=True):
            start = windows.start_of[index]
            assert window[0] == samples[start]
        labels = windows[own[0]]["labels"]
        assert labels.tolist() == np.eye(3)[LABELS[list(LENGTHS).index(name)]].tolist()


def test_small_evaluation_inputs_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Counting(Raw):
        def __call__(self, windows: list[np.ndarray], **kwargs: object) -> dict[str, np.ndarray]:
            calls.append(len(windows))
            return super().__call__(windows, **kwargs)

    def evaluated_twice() -> list[torch.Tensor]:
        windows = EvaluationWindows(
            Kept(LENGTHS), list(LENGTHS), LABELS, 3, FeatureMaker(Counting(), 1.0), hop_seconds=0.5
        )
        calls.clear()
        first, second = ([item["input_values"] for item in windows] for _ in "ab")
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        return second

    kept = evaluated_twice()
    assert calls == [1] * 9
    monkeypatch.setattr(module, "KEPT_FEATURE_BYTES", 9 * 4 * RATE - 1)  # one byte too few
    torch.testing.assert_close(evaluated_twice(), kept, rtol=0, atol=0)
    assert calls == [1] * 18


def test_training_window_depends_on_its_key_alone() -> None:
    windows = training_windows(seed=4, mixup_alpha=0.5)
    first = windows[2, 5, 1]
    for key in [(0, 0, 0), (2, 5, 2)]:
        windows[key]
    for name, tensor in windows[2, 5, 1].items():
        assert torch.equal(tensor, first[name])
    assert not torch.equal(windows[3, 5, 2]["input_values"], windows[2, 5, 2]["input_values"])
    assert not torch.equal(windows[2, 6, 2]["input_values"], windows[2, 5, 2]["input_values"])
    reseeded = training_windows(seed=5, mixup_alpha=0.5)[2, 5, 1]
    assert not torch.equal(reseeded["input_values"], first["input_values"])


def test_training_windows_hold_only_their_recording() -> None:
    windows = training_windows()
    for index, name in enumerate(LENGTHS):
        for draw in range(10):
            window = windows[0, draw, index]["input_values"].numpy()
            assert window.shape == (RATE,)
            assert set(window) <= set(windows.waveforms[name])
    starts = {float(windows[0, d, 2]["input_values"][0]) for d in range(50)}
    assert len(starts) > 40  # anywhere


def test_without_shift_windows_start_where_evaluation_ones_do() -> None:
    windows = training_windows(hop_seconds=0.5)
    starts = {round(float(windows[0, d, 2]["input_values"][0]) * 1e5) - 1 for d in range(80)}
    assert starts == {0, 1000, 2000, 3000, 4000, 5000, 5400}


def test_labels_are_distributions() -> None:
    plain = training_windows()[0, 0, 2]["labels"]
    assert plain.tolist() == [0, 1, 0]
    smooth = training_windows(label_smoothing=0.3)[0, 0, 2]["labels"]
    np.testing.assert_allclose(smooth, [0.1, 0.8, 0.1], atol=1e-6)
    mixed = training_windows(mixup_alpha=1.0)
    shares = np.stack([mixed[0, d, 0]["labels"] for d in range(100)])
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares[:, 2] == 0).all()
    assert ((shares[:, 0] > 0.05) & (shares[:, 0] < 0.95)).sum() > 30


def test_mixup_weighs_recordings_of_different_loudness_alike() -> None:
    windows = training_windows(mixup_alpha=1.0)
    windows.waveforms.samples["short"] *= 1000
    for draw in range(30):
        item = windows[0, draw, 0]
        rms = float(item["input_values"].square().mean().sqrt())
        assert rms < 1.01  # each part has unit power, and the shares add up to one


# Order


def order(windows: TrainingWindows, balanced: bool, epoch: int) -> list[tuple[int, int, int]]:
    return list(EpochSampler(windows, balanced, lambda: epoch))


def test_an_epoch_draws_every_recording_equally_often() -> None:
    windows = training_windows(windows_per_recording=4)
    keys = order(windows, False, 7)
    assert len(keys) == len(windows) == 12
    assert Counter(index for _, _, index in keys) == {0: 4, 1: 4, 2: 4}
    assert [draw for _, draw, _ in keys] == list(range(12))
    assert {epoch for epoch, _, _ in keys} == {7}


def test_order_depends_on_seed_and_epoch_alone() -> None:
    windows = training_windows(windows_per_recording=9)
    assert order(windows, False, 1) == order(windows, False, 1)
    shuffled = [[index for _, _, index in order(windows, False, e)] for e in range(3)]
    assert shuffled[0] != shuffled[1] != shuffled[2]
    reseeded = training_windows(windows_per_recording=9, seed=1)
    assert [i for _, _, i in order(reseeded, False, 1)] != shuffled[1]


def test_balanced_order_draws_the_classes_equally() -> None:
    windows = training_windows(windows_per_recording=1000)
    counts = Counter(LABELS[index] for _, _, index in order(windows, True, 0))
    assert counts.total() == 3000
    assert abs(counts[0] - counts[1]) < 200
    assert order(windows, True, 0) == order(windows, True, 0)


# Features


def test_a_window_longer_than_the_backbone_takes_is_refused() -> None:
    for extractor, longest in (
        (WhisperFeatureExtractor(chunk_length=10), 10),
        (ASTFeatureExtractor(sampling_rate=16000, max_length=1024), 10.264),
    ):
        FeatureMaker(extractor, longest)
        with pytest.raises(UserError, match=f"takes at most {longest:g} s"):
            FeatureMaker(extractor, longest + 0.01)
    FeatureMaker(Wav2Vec2FeatureExtractor(), 60.0)


@pytest.mark.parametrize(
    "extractor",
    [
        Wav2Vec2FeatureExtractor(sampling_rate=16000),
        WhisperFeatureExtractor(chunk_length=1),
        ASTFeatureExtractor(sampling_rate=16000, max_length=98, num_mel_bins=16),
    ],
    ids=lambda e: type(e).__name__,
)
def test_features_of_a_window_do_not_depend_on_the_batch(extractor: object) -> None:
    make_features = FeatureMaker(extractor, 1.0)
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((3, make_features.window)).astype(np.float32)
    windows[1] *= 100
    together = make_features(windows)
    assert together.dtype == np.float32
    for number in range(3):
        np.testing.assert_array_equal(make_features(windows[number : number + 1])[0],
                                      together[number])  # fmt: skip
    if make_features.time_axis is not None:
        frames = together.shape[1 + make_features.time_axis]
        assert abs(frames - 99) < 3  # 10 ms each
