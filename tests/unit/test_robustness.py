"""Every kind of damage does what its name says, and the curves count what changed."""

import numpy as np
import pytest

from hb_ssl.errors import UserError
from hb_ssl.evaluation.robustness import CODECS, DAMAGES, damage, robustness_curves

RATE = 4000


def _beats(seconds=6.0, bpm=75.0):
    time = np.arange(round(seconds * RATE)) / RATE
    phase = time * bpm / 60 % 1
    return (0.3 * np.exp(-phase / 0.05) * np.sin(2 * np.pi * 60 * time)).astype(np.float32)


def _rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("snr", [30, 0])
def test_noise_has_the_asked_ratio(snr):
    clean = _beats()
    noisy, rate = damage("noise", snr, clean, RATE, _rng())
    noise = noisy - clean
    assert rate == RATE
    assert 20 * np.log10(clean.std() / noise.std()) == pytest.approx(snr, abs=0.3)


def test_duration_keeps_the_middle_and_never_stretches():
    clean = _beats()
    cut, _ = damage("duration", 2, clean, RATE, _rng())
    assert np.array_equal(cut, clean[2 * RATE : 4 * RATE])
    assert len(damage("duration", 10, clean, RATE, _rng())[0]) == len(clean)


def test_rate_gain_and_clipping():
    clean = _beats()
    low, rate = damage("rate", 1, clean, RATE, _rng())
    assert rate == 1000 and len(low) == len(clean) // 4
    faint, _ = damage("gain", -60, clean, RATE, _rng())
    assert len(np.unique(faint)) < 30  # 16 bits leave few steps
    assert np.abs(damage("gain", 20, clean, RATE, _rng())[0]).max() == 1
    cut, _ = damage("clipping", 0.2, clean, RATE, _rng())
    assert np.abs(cut).max() == pytest.approx(0.2 * np.abs(clean).max())
    assert np.array_equal(damage("clipping", 1.0, clean, RATE, _rng())[0], clean)


@pytest.mark.parametrize("codec", list(CODECS))
def test_codecs_keep_the_sound_about_the_same(codec):
    clean = _beats()
    try:
        decoded, rate = damage("codec", codec, clean, RATE, _rng())
    except UserError as error:
        pytest.skip(str(error))
    seconds = len(decoded) / rate
    assert seconds == pytest.approx(6.0, abs=0.2)
    assert decoded.std() == pytest.approx(clean.std(), rel=0.25)
    assert not np.array_equal(decoded[: len(clean)], clean)


@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_heart_rate_changes_the_beat_not_the_pitch(factor):
    clean = _beats()
    other, _ = damage("heart_rate", factor, clean, RATE, _rng())
    assert len(other) == round(len(clean) / factor)
    spectrum = np.abs(np.fft.rfft(other))
    assert np.argmax(spectrum) * RATE / len(other) == pytest.approx(60, abs=3)


def test_curves_count_answers_that_change_and_refusals():
    def loudness(waveform, rate):
        if len(waveform) / rate < 1.5:
            raise UserError("too short")
        return np.array([1.0, 0.0]) if np.abs(waveform).max() > 0.05 else np.array([0.0, 1.0])

    recordings = [(_beats(bpm=60 + n), RATE) for n in range(6)]
    recordings += [(0.1 * waveform, rate) for waveform, rate in recordings]
    result = robustness_curves(loudness, recordings, [0] * 6 + [1] * 6, ("gain", "duration"))
    assert result["n"] == 12 and result["clean"] == {"uar": 1.0, "accuracy": 1.0}
    gain = {p["level"]: p for p in result["curves"]["gain"]["points"]}
    assert gain[0]["same"] == 1 and gain[-40]["uar"] == 0.5 and gain[-40]["same"] == 0.5
    duration = {p["level"]: p for p in result["curves"]["duration"]["points"]}
    assert duration[1]["refused"] == 12 and duration[1]["uar"] == 0
    assert duration[10]["refused"] == 0 and duration[10]["uar"] == 1
    assert set(DAMAGES) >= set(result["curves"])
