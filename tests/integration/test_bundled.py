"""The weights that ship in the package: complete, small, stock, and usable at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForAudioClassification, pipeline

from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.files import read_json
from hb_ssl.hub import make_bundle
from hb_ssl.inference import BUNDLED_CLASSIFIER, HeartSoundClassifier
from hb_ssl.models.classifier import build_classifier
from hb_ssl.models.folders import ASSETS, BUNDLED_BACKBONE

LABELS = ["artifact", "extrahls", "murmur", "normal"]
RATE = 2000


@pytest.fixture(scope="module")
def classifier() -> HeartSoundClassifier:
    return HeartSoundClassifier.from_pretrained()


def window(label: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return simulate_recording(label, 5.0, RATE, rng, "stethoscope")[0]


def test_assets_are_small_half_precision_and_nothing_but_safetensors() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    kinds = {path.suffix for path in files}
    assert kinds <= {".json", ".safetensors", ".md", ".png"}
    weights = [path for path in files if path.name == "model.safetensors"]
    assert len(weights) == 2
    for path in weights:
        with safe_open(path, "pt") as stored:
            assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.parametrize("folder", [BUNDLED_BACKBONE, BUNDLED_CLASSIFIER], ids=lambda f: f.name)
def test_cards_name_no_machine(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "diagnosis" in card
    assert "sha-256" in card.lower()
    for path in folder.rglob("*.json"):
        text = path.read_text()
        assert "/tmp/" not in text and "/work/" not in text and "/home/" not in text


def test_backbone_loads_with_stock_transformers_and_is_not_random() -> None:
    model, loading = AutoModel.from_pretrained(BUNDLED_BACKBONE, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) < 8e6
    ours = build_classifier("bundled", LABELS).audio_spectrogram_transformer
    other = build_classifier("bundled", LABELS, random_weights=True).audio_spectrogram_transformer
    states = [m.state_dict() for m in (model, ours, other)]
    (key,) = [k for k in states[0] if k.startswith("layers.0.") and k.endswith("q_proj.weight")]
    torch.testing.assert_close(states[0][key], states[1][key])
    assert not torch.allclose(states[0][key], states[2][key])


def test_backbone_hears_a_murmur_in_simulated_hearts() -> None:
    """Not a claim about people: random weights fail this, weights lost in loading would too."""
    model = AutoModel.from_pretrained(BUNDLED_BACKBONE).eval()
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(BUNDLED_BACKBONE)

    def embed(waveforms: list[np.ndarray]) -> torch.Tensor:
        inputs = extractor(waveforms, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            return model(**inputs).pooler_output

    loud = [embed([window("murmur", seed) for seed in range(s, s + 12)]) for s in (0, 100)]
    none = [embed([window("normal", seed) for seed in range(s, s + 12)]) for s in (0, 100)]
    axis = loud[0].mean(0) - none[0].mean(0)
    middle = ((loud[0].mean(0) + none[0].mean(0)) / 2) @ axis
    right = torch.cat([loud[1] @ axis > middle, none[1] @ axis < middle])
    assert right.float().mean() > 0.75


def test_classifier_answers_calibrated_and_knows_its_data(classifier) -> None:
    about = classifier.preprocessing
    assert classifier.labels == LABELS
    assert not about["synthetic"] and not about["random_weights"]
    assert 0 < about["calibration"]["abstain_below"] < 1
    assert about["training"]["num_recordings"] > 500
    answer = classifier.predict((window("normal", 3), RATE))
    assert answer.calibrated
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)
    assert answer.decision in (*LABELS, "inconclusive")
    silence = classifier.predict((np.zeros(5 * RATE, np.float32), RATE))
    assert silence.decision == "inconclusive"


def test_stock_pipeline_gives_the_same_label(classifier) -> None:
    stock = pipeline("audio-classification", model=str(BUNDLED_CLASSIFIER))
    model = AutoModelForAudioClassification.from_pretrained(BUNDLED_CLASSIFIER)
    assert model.config.id2label == dict(enumerate(LABELS))
    for seed, label in enumerate(("normal", "murmur", "artifact", "extrahls")):
        samples = window(label, seed)
        inputs = torch.from_numpy(classifier.make_features(samples[None]))
        with torch.no_grad():
            ours = classifier.model(input_values=inputs).logits.softmax(-1)[0].tolist()
        theirs = stock({"raw": samples, "sampling_rate": RATE})
        scores = {entry["label"]: entry["score"] for entry in theirs}
        assert scores == pytest.approx(dict(zip(LABELS, ours, strict=True)), abs=1e-4)


def test_metrics_beside_the_classifier_are_cross_validated() -> None:
    metrics = read_json(BUNDLED_CLASSIFIER / "metrics.json")
    assert metrics["num_folds"] == 5 and metrics["num_repeats"] == 3
    uar = metrics["intervals"]["overall"]["recording_uar"]
    card = (BUNDLED_CLASSIFIER / "README.md").read_text()
    assert f"{uar['value']:.3f}" in card


def test_the_adapter_alone_answers_the_same(classifier, tmp_path: Path) -> None:
    pushed = make_bundle(BUNDLED_CLASSIFIER, tmp_path / "pushed", "org/name", adapter_only=True)
    assert not (pushed / "model.safetensors").exists()
    adapted = HeartSoundClassifier.from_pretrained(pushed)
    for seed, label in enumerate(LABELS):
        audio = (window(label, seed), RATE)
        ours, theirs = classifier.predict(audio), adapted.predict(audio)
        # The merged weights are stored in half precision, the adapter is not.
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=0.01)
        assert theirs.decision == ours.decision
