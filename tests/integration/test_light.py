"""The classifier without transformers: the same answers as with it, and nothing heavy imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.models.backbones import load_feature_extractor
from hb_ssl.models.classifier import build_classifier, load_classifier, save_classifier
from hb_ssl.models.folders import BUNDLED_CLASSIFIER
from hb_ssl.models.light import LightClassifier, load_light_classifier, load_light_features
from tests.integration.helpers import LABELS, preprocessing


def saved(backbone: Path, folder: Path, pooling: str = "mean", layers: bool = False) -> Path:
    network = build_classifier(str(backbone), LABELS, pooling=pooling, layer_weighted_sum=layers)
    save_classifier(folder, network, load_feature_extractor(str(backbone)), preprocessing())
    return folder


@pytest.mark.parametrize("kind", ["bundled", "mean", "attentive", "class_token"])
def test_answers_are_those_of_transformers(kind: str, ast_folder: Path, tmp_path: Path) -> None:
    folder = BUNDLED_CLASSIFIER if kind == "bundled" else saved(ast_folder, tmp_path / "m", kind)
    light = load_light_classifier(folder)
    assert light is not None
    ours, stock = HeartSoundClassifier(*light), HeartSoundClassifier(*load_classifier(folder))
    assert isinstance(ours.model, LightClassifier)
    assert ours.preprocessing == stock.preprocessing
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((5, ours.make_features.window)).astype(np.float32)
    windows *= np.array([1, 0.1, 1e-3, 0, 1e4], dtype=np.float32)[:, None]
    np.testing.assert_array_equal(ours.make_features(windows), stock.make_features(windows))
    np.testing.assert_allclose(
        ours.window_logits(windows), stock.window_logits(windows), rtol=1e-5, atol=1e-5
    )


def test_features_of_other_lengths_are_those_of_transformers(
    ast_folder: Path, tmp_path: Path
) -> None:
    """Shorter than the backbone's frames, and longer."""
    ours, stock = load_light_features(ast_folder), load_feature_extractor(str(ast_folder))
    assert ours is not None
    rng = np.random.default_rng(0)
    for num_samples in (300, 1999, 2000, 5000):
        window = rng.standard_normal(num_samples).astype(np.float32)
        expected = stock([window], sampling_rate=2000, return_tensors="np")["input_values"]
        np.testing.assert_array_equal(ours([window], 2000)["input_values"], expected)


def test_other_kinds_and_broken_folders_are_left_to_transformers(
    ast_folder: Path, wav2vec2_folder: Path, tmp_path: Path
) -> None:
    assert load_light_classifier(saved(wav2vec2_folder, tmp_path / "speech")) is None
    assert load_light_features(wav2vec2_folder) is None
    summed = saved(ast_folder, tmp_path / "summed", layers=True)
    assert load_light_classifier(summed) is None
    assert isinstance(HeartSoundClassifier.from_pretrained(summed).model, torch.nn.Module)
    folder = saved(ast_folder, tmp_path / "model")
    assert load_light_classifier(folder) is not None
    config = read_json(folder / "config.json")
    for change in (
        {"hidden_act": "relu"},
        {"num_hidden_layers": 3},
        {"hidden_size": 32},
        {"id2label": {"0": "a"}},
        {"frequency_stride": 0},
        {"heart_sound_head": None},
    ):
        write_json_atomic(folder / "config.json", config | change)
        assert load_light_classifier(folder) is None, change
    write_json_atomic(folder / "config.json", config)
    (folder / "model.safetensors").write_bytes(b"cut off")
    assert load_light_classifier(folder) is None
    assert load_light_classifier(tmp_path / "absent") is None


HEAVY = ("transformers", "datasets", "evaluate", "peft", "accelerate", "sklearn", "matplotlib",
         "pandas", "pyarrow", "huggingface_hub", "gradio", "torch._dynamo")  # fmt: skip


def test_predict_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each of these costs a cold start a tenth of a second to several seconds."""
    wave, _ = simulate_recording("normal", 4.0, 4000, np.random.default_rng(0), "stethoscope")
    sf.write(tmp_path / "heart.wav", wave, 4000)
    code = (
        "import sys; from hb_ssl.cli import main; assert main(['predict', sys.argv[1]]) == 0; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "heart.wav")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    assert "heart.wav" in done.stdout


def test_help_imports_no_library() -> None:
    code = (
        "import sys; from hb_ssl.cli import main; main(['--help']); "
        "print([name for name in ('torch', 'numpy', 'scipy', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
