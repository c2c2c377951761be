"""Baselines: features that only describe the sound, and classifiers on known data."""

import numpy as np
import pytest

from hb_ssl.audio import resample
from hb_ssl.errors import UserError
from hb_ssl.evaluation.baselines import BASELINES, FEATURE_BASELINES, fit_predict_baseline
from hb_ssl.evaluation.hand_made_features import feature_matrix, recording_features

LABELS = ["artifact", "extrahls", "murmur", "normal"]
RATE = 4000


def heart(seconds=10.0, bpm=72.0, murmur=0.0, seed=0, rate=RATE):
    """Bursts at 50 Hz for S1 and S2, noise from S1 to S2 for a murmur, and a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    phase = (time * bpm / 60) % 1.0
    s1 = np.exp(-(((phase - 0.1) / 0.03) ** 2))
    s2 = 0.7 * np.exp(-(((phase - 0.45) / 0.03) ** 2))
    systole = (phase > 0.15) & (phase < 0.4)
    noise = rng.normal(size=len(time))
    wave = (s1 + s2) * np.sin(2 * np.pi * 50 * time) + (0.01 + murmur * systole) * noise
    return (0.3 * wave).astype(np.float32)


def test_features_have_one_length_and_are_finite():
    waveforms = [heart(seconds) for seconds in (0.5, 3.0, 5.0, 17.3)]
    features = feature_matrix(waveforms, RATE)
    assert features.dtype == np.float32
    assert len(features) == 4 and features.shape[1] > 100
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[1], recording_features(waveforms[1], RATE))


@pytest.mark.parametrize("gain", [1e-30, 1e-4, 0.03, 7.0, 1e4])
def test_gain_and_offset_do_not_matter(gain):
    wave = heart(6.0, murmur=0.1)
    expected = recording_features(wave, RATE)
    np.testing.assert_allclose(recording_features(gain * wave, RATE), expected, atol=1e-3)
    np.testing.assert_allclose(recording_features(-wave, RATE), expected, atol=1e-3)
    np.testing.assert_allclose(recording_features(wave + 0.5, RATE), expected, atol=1e-2)


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(20_000, dtype=np.float32),
        np.full(20_000, 0.7, dtype=np.float32),
        np.array([0.3], dtype=np.float32),
        np.array([0.0], dtype=np.float32),
        np.eye(1, 9000, 4000, dtype=np.float32)[0],
        np.tile(np.array([1.0, -1.0], dtype=np.float32), 9000),
    ],
    ids=["silence", "constant", "one_sample", "one_zero", "click", "nyquist"],
)
@pytest.mark.parametrize("rate", [1000, 4000, 44_100])
def test_degenerate_input_gives_finite_features(wave, rate):
    features = recording_features(wave, rate)
    assert features.shape == recording_features(heart(), RATE).shape
    assert np.isfinite(features).all()


def test_silence_and_constant_are_the_same():
    silence = recording_features(np.zeros(9000, dtype=np.float32), RATE)
    for level, length in ((0.7, 500), (0.1, 7777), (-0.3, 1)):
        constant = recording_features(np.full(length, level, dtype=np.float32), RATE)
        np.testing.assert_array_equal(silence, constant)


def test_duration_is_no_feature():
    # Whole windows of the same periodic sound: tiled 2.5 s, 5 s and 12.5 s.
    beats = heart(2.5, bpm=72)
    features = [recording_features(np.tile(beats, n), RATE) for n in (1, 2, 5)]
    # The resampler treats the outer edges apart, hence not exactly equal.
    np.testing.assert_allclose(features[0], features[1], atol=0.3)
    np.testing.assert_allclose(features[2], features[1], atol=0.3)


def test_rate_hardly_matters():
    wave = heart(10)
    low = recording_features(wave, RATE)
    high = recording_features(resample(wave, RATE, 44_100), 44_100)
    assert np.median(np.abs(low - high)) < 0.01


def test_murmur_raises_the_murmur_bands():
    clean, murmur = (recording_features(heart(10, murmur=m), RATE) for m in (0.0, 0.2))
    mean_band_energy = slice(0, 28)
    assert (murmur - clean)[mean_band_energy][16:].min() > 0.5  # above 180 Hz: 5 dB and more


@pytest.mark.parametrize(
    "wave", [np.zeros(0), np.zeros((2, 100)), np.array([0.0, np.nan]), np.array([np.inf, 0.0])]
)
def test_bad_waveforms_are_refused(wave):
    with pytest.raises(UserError, match="expected \\[T\\]"):
        recording_features(wave.astype(np.float32), RATE)


def predict(name, features, labels, sets, test_features=None, test_sets=None, seed=0):
    test_features = features if test_features is None else test_features
    test_sets = sets if test_sets is None else test_sets
    return fit_predict_baseline(
        name, features, labels, sets, test_features, test_sets, LABELS, seed
    )


@pytest.fixture(scope="module")
def sounds():
    rng = np.random.default_rng(1)
    waves, labels = [], []
    for i in range(36):
        label = LABELS[(0, 2, 3)[i % 3]]
        bpm = rng.uniform(60, 100)
        murmur = rng.uniform(0.1, 0.3) if label == "murmur" else 0.0
        wave = rng.normal(size=24_000) if label == "artifact" else heart(6, bpm, murmur, i)
        waves.append(wave.astype(np.float32))
        labels.append(label)
    return feature_matrix(waves, RATE), labels


@pytest.mark.parametrize("name", FEATURE_BASELINES)
def test_feature_baselines_learn_murmurs_and_noise(sounds, name):
    features, labels = sounds
    sets = ["a"] * 24
    probabilities = predict(name, features[:24], labels[:24], sets, features[24:], ["a"] * 12)
    assert probabilities.shape == (12, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities[:, 1] == 0).all()  # extrahls is not in training
    assert [LABELS[i] for i in probabilities.argmax(axis=1)] == labels[24:]


@pytest.mark.parametrize("name", FEATURE_BASELINES)
def test_feature_baselines_are_deterministic_and_ignore_the_set(sounds, name):
    features, labels = sounds
    first = predict(name, features, labels, ["a"] * 36)
    np.testing.assert_array_equal(first, predict(name, features, labels, ["a", "b"] * 18))


@pytest.mark.parametrize("name", FEATURE_BASELINES)
def test_feature_baselines_weigh_classes_equally(name):
    # Ten times as many normals, the same distance from the middle: the middle stays undecided.
    rng = np.random.default_rng(0)
    normal, murmur = rng.normal(-1, 1, (500, 3)), rng.normal(1, 1, (50, 3))
    test = rng.normal([[-1]] * 300 + [[1]] * 300, 1, (600, 3))
    labels = ["normal"] * 500 + ["murmur"] * 50
    probabilities = predict(
        name, np.vstack([normal, murmur]), labels, ["a"] * 550, test, ["a"] * 600
    )
    found = probabilities.argmax(axis=1) == 2
    recalls = (~found[:300]).mean(), found[300:].mean()
    assert min(recalls) > 0.8


@pytest.mark.parametrize("name", FEATURE_BASELINES)
def test_one_training_class_is_predicted_surely(name):
    probabilities = predict(name, np.zeros((3, 2)), ["murmur"] * 3, ["a"] * 3)
    np.testing.assert_array_equal(probabilities, [[0, 0, 1, 0]] * 3)


@pytest.mark.parametrize("name", FEATURE_BASELINES)
def test_feature_baselines_need_features(name):
    with pytest.raises(UserError, match="no features"):
        fit_predict_baseline(name, None, ["normal"], ["a"], None, ["a"], LABELS, 0)


def test_majority_is_constant():
    labels = ["normal", "normal", "normal", "murmur"]
    probabilities = fit_predict_baseline(
        "majority", None, labels, list("aabb"), None, ["a", "b", "b"], LABELS, 0
    )
    np.testing.assert_allclose(probabilities, [[0, 0, 0.25, 0.75]] * 3)


def test_device_only_uses_the_set_and_no_audio():
    labels = ["artifact", "artifact", "murmur", "normal", "normal", "normal", "murmur"]
    sets = list("aaabbbb")
    blind = fit_predict_baseline("device_only", None, labels, sets, None, list("ab"), LABELS, 0)
    np.testing.assert_allclose(blind, [[2 / 3, 0, 1 / 3, 0], [0, 0, 1 / 4, 3 / 4]])
    noise = np.random.default_rng(0).normal(size=(9, 5))
    seen = fit_predict_baseline(
        "device_only", noise[:7], labels, sets, noise[7:], list("ab"), LABELS, 0
    )
    np.testing.assert_array_equal(seen, blind)


def test_device_only_refuses_an_unseen_device():
    with pytest.raises(UserError, match="set\\(s\\) b not in training"):
        fit_predict_baseline("device_only", None, ["normal"], ["a"], None, ["b"], LABELS, 0)


def test_names():
    assert set(FEATURE_BASELINES) < set(BASELINES)
    with pytest.raises(UserError, match="'svm'"):
        fit_predict_baseline("svm", None, ["normal"], ["a"], None, ["a"], LABELS, 0)
    with pytest.raises(UserError, match="no training recordings"):
        fit_predict_baseline("majority", None, [], [], None, ["a"], LABELS, 0)
