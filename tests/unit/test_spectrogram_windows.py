"""Training windows on cached log-mel frames are what the stock extractor makes of the audio."""

import numpy as np
import pytest
import torch

from hb_ssl.data import spectrogram_windows
from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.data.spectrogram_windows import SpectrogramTrainingWindows
from hb_ssl.errors import UserError
from hb_ssl.models.backbones import load_feature_extractor, locate_backbone

RATE = 2000


@pytest.fixture
def make_features() -> FeatureMaker:
    return FeatureMaker(load_feature_extractor(locate_backbone("bundled")), 5.0)


@pytest.fixture
def waveforms() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (0.1 * rng.standard_normal(length)).astype(np.float32)
        for name, length in (("exact", 5 * RATE), ("long", 9 * RATE), ("tiny", 300))
    }


def windows_of(waveforms, make_features, **changes) -> SpectrogramTrainingWindows:
    settings = {"probability": 0.5, "max_tempo_change": 0.05, "windows_per_recording": 2}
    return SpectrogramTrainingWindows(
        waveforms, list(waveforms), [0, 1, 2], 4, make_features, **{**settings, **changes}
    )


def test_without_augmentation_a_window_equals_the_stock_features(
    waveforms, make_features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrogram_windows, "augment", lambda windows, *_: windows)
    windows = windows_of(waveforms, make_features, max_tempo_change=0.0)
    window = waveforms["exact"]
    scaled = window * np.float32(0.1 / np.sqrt(np.mean(window[: 498 * 20] ** 2)))
    item = windows[(0, 0, 0)]["input_values"]  # as long as a window: wraps around at most
    stock = torch.from_numpy(make_features(scaled[None])[0])
    shift = int(torch.stack([(item.roll(s, 0) - stock).abs().sum() for s in range(498)]).argmin())
    torch.testing.assert_close(item.roll(shift, 0), stock, atol=1e-3, rtol=0)


def test_items_depend_on_their_key_only(waveforms, make_features) -> None:
    windows = windows_of(waveforms, make_features, label_smoothing=0.2)
    assert len(windows) == 6
    first, again, other = windows[(1, 2, 1)], windows[(1, 2, 1)], windows[(2, 2, 1)]
    torch.testing.assert_close(first["input_values"], again["input_values"], rtol=0, atol=0)
    assert not torch.equal(first["input_values"], other["input_values"])
    torch.testing.assert_close(first["labels"], torch.tensor([0.05, 0.85, 0.05, 0.05]))


def test_a_batch_depends_on_its_keys_only(waveforms, make_features) -> None:
    keys = [(1, 0, 1), (1, 1, 0), (1, 2, 2)]
    first, again = (windows_of(waveforms, make_features).__getitems__(keys) for _ in "ab")
    assert [len(first), first[0]["input_values"].shape] == [3, (498, 20)]
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert [int(item["labels"].argmax()) for item in first] == [1, 0, 2]
    reordered = windows_of(waveforms, make_features).__getitems__(keys[::-1])
    assert not torch.equal(reordered[2]["input_values"], first[0]["input_values"])


def test_short_recordings_are_repeated_not_padded(waveforms, make_features) -> None:
    windows = windows_of(waveforms, make_features)
    for draw in range(5):
        item = windows[(0, draw, 2)]["input_values"]
        assert item.shape == (498, 20)
        assert item.isfinite().all()
        assert item.std(dim=0).min() > 0.01  # no stretch of the window is flat


def test_other_backbones_are_refused(waveforms) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    with pytest.raises(UserError, match="audio-spectrogram-transformer"):
        windows_of(waveforms, FeatureMaker(Wav2Vec2FeatureExtractor(), 5.0))
