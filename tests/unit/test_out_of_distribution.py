"""The gate on simulated hearts and on sounds it was not fitted on; the sounds themselves."""

import json

import numpy as np
import pytest

from hb_ssl.data.non_heart_sounds import KINDS, simulate_non_heart
from hb_ssl.data.splits import Item
from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.errors import UserError
from hb_ssl.evaluation.hand_made_features import FEATURE_RATE, recording_features
from hb_ssl.evaluation.out_of_distribution import evaluate_gate, synthetic_features
from hb_ssl.evaluation.verdict import gate_score, is_heart_sound, score_features

LABELS = ("normal", "murmur", "extrahls")


@pytest.mark.parametrize("family", list(KINDS))
def test_every_kind_is_finite_varied_and_repeatable(family):
    for kind in KINDS[family]:
        first, again, other = (
            simulate_non_heart(family, kind, 2.5, 2000, np.random.default_rng(seed))
            for seed in (1, 1, 2)
        )
        assert first.shape == (5000,) and first.dtype == np.float32
        assert np.isfinite(first).all() and np.abs(first).max() <= 1
        assert np.array_equal(first, again), kind
        assert kind == "silence" or not np.array_equal(first, other), kind


def test_families_share_no_sound():
    for kind in set(KINDS["fitting"]) & set(KINDS["testing"]) - {"silence"}:
        one, two = (
            simulate_non_heart(family, kind, 2.0, 2000, np.random.default_rng(3))
            for family in ("fitting", "testing")
        )
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.3, kind


@pytest.fixture(scope="module")
def gate_and_scores():
    rng = np.random.default_rng(0)
    items, features = [], []
    for n in range(90):
        device = ("phone", "stethoscope")[n % 2]
        label = "artifact" if n % 9 == 0 else LABELS[n % 3]
        waveform, _ = simulate_recording(label, 5.0, 2000, rng, device)
        features.append(recording_features(waveform, FEATURE_RATE))
        items.append(Item(f"r{n}", label, "ab"[n % 2], f"g{n // 2}"))
    fitting, _ = synthetic_features("fitting", 6)
    testing, kinds = synthetic_features("testing", 4)
    return evaluate_gate(np.stack(features), items, fitting, testing, kinds)


def test_gate_tells_hearts_from_sounds_of_other_synthesisers(gate_and_scores):
    _, scores = gate_and_scores
    assert scores["auroc"]["value"] > 0.9
    both = scores["true_accept"]["set_a"], scores["true_accept"]["set_b"]
    assert sum(both) / 2 == pytest.approx(0.95, abs=0.02)
    assert scores["false_accept"] < 0.35  # few sounds to learn from here
    assert set(scores["false_accept_by_kind"]) == set(KINDS["testing"])
    assert scores["artifacts"]["n"] == 10 and scores["artifacts"]["auroc"] > 0.8


def test_saved_gate_decides_on_waveforms_at_any_rate_and_gain(gate_and_scores):
    gate = json.loads(json.dumps(gate_and_scores[0]))
    rng = np.random.default_rng(5)
    heart, _ = simulate_recording("normal", 6.0, 4000, rng, "stethoscope", snr_db=25)
    assert is_heart_sound(heart, 4000, None, gate)
    assert gate_score(0.01 * heart, 4000, gate) == pytest.approx(
        gate_score(heart, 4000, gate), abs=0.05
    )
    siren = simulate_non_heart("testing", "tones", 6.0, 16_000, rng)
    assert not is_heart_sound(siren, 16_000, None, gate)
    assert not is_heart_sound(np.zeros(8000, np.float32), 2000, None, gate)
    assert not is_heart_sound(np.full(8000, 0.2, np.float32), 2000, None, gate)


def test_gate_of_other_features_is_refused(gate_and_scores):
    with pytest.raises(UserError, match="make the gate again"):
        score_features(np.zeros((1, 5)), gate_and_scores[0])
