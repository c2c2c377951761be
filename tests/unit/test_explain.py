"""The occlusion map finds the seconds that a model looks at."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hb_ssl.explain import MAX_PATCHES, occlusion_map

RATE = 1000


def listener(sign: float = 1.0) -> Any:
    """A stand-in classifier whose ``loud`` logit is the window's energy; hears 2 s windows."""
    return SimpleNamespace(
        preprocessing={"band_low_hz": None, "band_high_hz": None, "hop_seconds": 1.0},
        labels=["loud", "soft"],
        make_features=SimpleNamespace(sampling_rate=RATE, window=2 * RATE),
        window_logits=lambda windows: np.stack(
            [sign * np.square(windows).mean(axis=1) * 100, np.zeros(len(windows))], axis=1
        ),
    )


def noise(seconds: float, burst_at: float | None = None) -> np.ndarray:
    waveform = np.random.default_rng(0).normal(0, 0.01, int(seconds * RATE))
    if burst_at is not None:
        waveform[int(burst_at * RATE) : int((burst_at + 0.3) * RATE)] *= 50
    return waveform.astype(np.float32)


@pytest.mark.parametrize("seconds", [0.9, 2.0, 7.3, 60.0])
def test_the_burst_drives_the_verdict(seconds: float) -> None:
    burst_at = seconds * 0.6
    where, importance = occlusion_map(listener(), noise(seconds, burst_at), RATE)
    assert len(where) == len(importance) <= MAX_PATCHES
    patch = where[1] - where[0] if len(where) > 1 else seconds
    assert abs(where[importance.argmax()] - (burst_at + 0.15)) <= patch
    assert importance.max() > 0


def test_evidence_against_the_class_is_negative() -> None:
    where, importance = occlusion_map(listener(), noise(8, 4.1), RATE, label="soft")
    assert importance.min() < -0.01
    assert where[importance.argmin()] == pytest.approx(4.25, abs=0.26)


def test_resamples_and_takes_one_sample() -> None:
    where, importance = occlusion_map(listener(), np.repeat(noise(4, 2), 3), 3 * RATE)
    assert where[importance.argmax()] == pytest.approx(2.15, abs=0.3)
    where, importance = occlusion_map(listener(), np.zeros(1, np.float32), RATE)
    assert importance.tolist() == [0.0]
