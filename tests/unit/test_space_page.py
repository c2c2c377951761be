"""What the Space's page says, from known predictions."""

import base64
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hb_ssl.batch import prediction_row
from hb_ssl.errors import UserError
from hb_ssl.heart_rate import NO_HEART_RATE, HeartRate
from hb_ssl.inference import INCONCLUSIVE, Prediction
from hb_ssl.signal_quality import SignalNote
from hb_ssl.space_figures import MAX_COLUMNS, average_columns, occlusion_figure
from hb_ssl.space_page import (
    answer_row,
    batch_html,
    model_card,
    model_facts,
    occlusion_caption,
    pictures_html,
    verdict_html,
)

LABELS = ["artifact", "murmur"]


def prediction(**changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "label": "murmur", "probabilities": {"artifact": 0.2, "murmur": 0.8}, "decision": "murmur",
        "calibrated": False, "heart_rate": HeartRate(71.6, np.array([0.2, 1.0]), 0.8),
        "signal_notes": [], "window_start_seconds": np.array([0.0, 1.0]),
        "window_probabilities": np.array([[0.1, 0.9], [0.3, 0.7]]), "duration_seconds": 2.0,
    }  # fmt: skip
    return Prediction(**{**fields, **changes})


def test_a_verdict_names_class_chances_and_rate() -> None:
    page = verdict_html("a.wav", prediction(), {})
    assert "Sounds most like a heart murmur" in page
    assert page.index("80%") < page.index("20%")  # the most probable first
    assert "not calibrated" in page
    assert ">72</span> beats per minute" in page
    assert "SYNTHETIC" not in page
    assert "SYNTHETIC" in verdict_html("a.wav", prediction(), {"synthetic": True})


def test_inconclusive_asks_for_another_recording() -> None:
    note = SignalNote("silence", "The recording is silent.", "Check the <mic>.")
    unsure = prediction(decision=INCONCLUSIVE, heart_rate=NO_HEART_RATE, signal_notes=[note])
    page = verdict_html("a.wav", unsure, {})
    assert "Inconclusive, please re-record" in page
    assert "Sounds most like" not in page
    assert "there is no heart rate" in page
    assert "Check the &lt;mic&gt;." in page


def test_calibration_is_described_by_what_it_was_fitted_on() -> None:
    about = {"calibration": {"fitted_on": "held-out folds", "abstain_below": 0.55}}
    page = verdict_html("a.wav", prediction(calibrated=True), about)
    assert "calibrated on held-out folds" in page
    assert "Below 55%" in page


def test_names_from_outside_are_escaped() -> None:
    name = "<script>x.wav"
    assert "<script>" not in verdict_html(name, prediction(), {})
    rows = [prediction_row(name, prediction(), LABELS)]
    rows.append(prediction_row("=2*3.wav", UserError("<i>bad"), LABELS))
    page = batch_html(rows, LABELS)
    assert "<script>" not in page
    assert "<i>" not in page
    found = re.search(r"base64,([^\"]+)", page)
    assert found is not None
    content = base64.b64decode(found[1]).decode()
    assert content.splitlines()[2].startswith("'=2*3.wav,")


def test_api_answer_is_plain_json_types() -> None:
    answer = answer_row("a.wav", prediction(heart_rate=NO_HEART_RATE))
    assert answer["heart_rate_bpm"] is None
    assert answer["probabilities"] == {"artifact": 0.2, "murmur": 0.8}
    assert answer["signal_notes"] == []


@pytest.mark.parametrize("length", [1, 50, 4000, 4000 * 40])
def test_pictures_of_any_length(length: int) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    page = pictures_html(waveform, 4000, prediction(duration_seconds=length / 4000))
    assert page.count("<svg") == 3
    assert ("The first 30 seconds" in page) == (length > 4000 * 30)
    svg = occlusion_figure(waveform, 4000, np.array([length / 8000]), np.array([0.0]))
    assert "currentColor" in svg  # follows the page's text colour


def test_long_timelines_are_averaged() -> None:
    starts, values = np.arange(1000.0), np.random.default_rng(0).dirichlet([1, 1], 1000)
    shorter, columns = average_columns(starts, values)
    assert len(shorter) == len(columns) == MAX_COLUMNS
    np.testing.assert_allclose(columns.sum(axis=1), 1)
    np.testing.assert_allclose(columns.mean(axis=0), values.mean(axis=0), atol=0.01)
    same, columns = average_columns(starts[:3], values[:3])
    np.testing.assert_allclose(columns, values[:3])
    assert same.tolist() == [0, 1, 2]


def test_caption_names_the_strongest_stretch() -> None:
    seconds = np.array([1.0, 2.0, 3.0])
    assert "around 2.0 s" in occlusion_caption(seconds, np.array([0.1, 0.5, -0.9]), "murmur")
    assert "No stretch" in occlusion_caption(seconds, np.array([0, -0.5, -0.9]), "murmur")


def test_card_comes_without_metadata_and_below_the_page_title(tmp_path: Path) -> None:
    assert model_card(tmp_path) is None
    text = "---\nlicense: mit\n---\n# Title\n\n## Scores\n\n```\n#x\n```\n"
    (tmp_path / "README.md").write_text(text)
    card = model_card(tmp_path)
    assert card is not None
    assert card.startswith("### Title\n\n#### Scores")
    assert "license" not in card


def test_facts_keep_the_owners_folders_private() -> None:
    about: dict[str, Any] = {
        "window_seconds": 5.0,
        "hop_seconds": 2.5,
        "trained_on": "/home/ana/pascal",
    }
    features = SimpleNamespace(sampling_rate=2000)
    classifier: Any = SimpleNamespace(preprocessing=about, labels=LABELS, make_features=features)
    assert "Trained on: pascal\n" in model_facts(classifier)
    about["synthetic"] = True
    assert "SYNTHETIC" in model_facts(classifier)
