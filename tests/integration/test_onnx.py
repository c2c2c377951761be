"""Export to ONNX: the same answers from onnxruntime, any number of windows, 8-bit weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hb_ssl import cli
from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.errors import UserError
from hb_ssl.files import read_json
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.models.backbones import load_feature_extractor
from hb_ssl.models.classifier import build_classifier, save_classifier
from hb_ssl.onnx_export import MAX_DIFFERENCE, export_classifier, measure_export
from tests.integration.helpers import LABELS, preprocessing

pytest.importorskip("onnxruntime")


def saved_model(backbone: Path, folder: Path, pooling: str = "mean", layers: bool = False) -> Path:
    model = build_classifier(str(backbone), LABELS, pooling=pooling, layer_weighted_sum=layers)
    with torch.no_grad():
        model.classifier.load_state_dict(  # type: ignore[union-attr, operator]
            {k: v * 30 for k, v in model.classifier.state_dict().items()}  # type: ignore[union-attr, operator]
        )
    save_classifier(folder, model, load_feature_extractor(str(backbone)), preprocessing())
    return folder


@pytest.mark.parametrize(("pooling", "layers"), [("mean", False), ("attentive", True)])
def test_every_family_answers_the_same(
    backbone: Path, tmp_path: Path, pooling: str, layers: bool
) -> None:
    model = saved_model(backbone, tmp_path / "model", pooling, layers)
    out = export_classifier(model, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "model.onnx", "config.json", "preprocessor_config.json", "preprocessing.json",
        "parity.json",
    }  # fmt: skip
    assert read_json(out / "parity.json")["max_probability_difference"]["torch_to_onnx"] < 1e-4
    ours = HeartSoundClassifier.from_pretrained(model)
    theirs = HeartSoundClassifier.from_pretrained(out, runtime="onnx")
    rng = np.random.default_rng(1)
    for seconds in (0.3, 1.0, 7.3, 50.0):  # 1 to 99 windows
        waveform = rng.standard_normal(round(seconds * 2000)).astype(np.float32)
        expected, got = ours.predict_one((waveform, 2000)), theirs.predict_one((waveform, 2000))
        np.testing.assert_allclose(
            got.window_probabilities, expected.window_probabilities, atol=MAX_DIFFERENCE
        )
        assert got.label == expected.label


def test_eight_bits_are_measured(
    ast_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path / "cache"))
    source = write_synthetic_dataset(tmp_path / "pcg", 30, seed=3)
    model = saved_model(ast_folder, tmp_path / "model", "class_token")
    arguments = ["export", str(model), str(tmp_path / "out"), "--int8", "--measure", str(source)]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "| onnx-int8 |" in output
    assert "SYNTHETIC" in output
    out = tmp_path / "out"
    measured = read_json(out / "measurement.json")
    assert set(measured["runtimes"]) == {"torch", "onnx", "onnx-int8"}
    assert measured["runtimes"]["torch"]["max_probability_difference"] == 0
    assert measured["runtimes"]["onnx"]["max_probability_difference"] < MAX_DIFFERENCE
    assert measured["runtimes"]["onnx"]["same_answer"] == 1
    rounded = measured["runtimes"]["onnx-int8"]
    assert MAX_DIFFERENCE < rounded["max_probability_difference"] < 0.2  # rounded, not broken
    # The same measurement from the same files.
    assert measure_export(model, out, str(source)) == measured
    file = next((source / "set_a").glob("*.wav"))
    command = ["predict", str(file), "--model", str(out), "--runtime", "onnx-int8"]
    assert cli.main(command) == 0


def test_refusals(ast_folder: Path, tmp_path: Path) -> None:
    model = saved_model(ast_folder, tmp_path / "model", "class_token")
    with pytest.raises(UserError, match="hb-ssl export RUN_OR_REPO OUT`"):
        HeartSoundClassifier.from_pretrained(model, runtime="onnx")
    with pytest.raises(UserError, match="not an empty folder"):
        export_classifier(model, model)
    out = export_classifier(model, tmp_path / "out")
    with pytest.raises(UserError, match="--int8"):
        HeartSoundClassifier.from_pretrained(out, runtime="onnx-int8")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        HeartSoundClassifier.from_pretrained(out)
    (out / "model.onnx").write_bytes(b"broken")
    with pytest.raises(UserError, match="export it again"):
        HeartSoundClassifier.from_pretrained(out, runtime="onnx")


def test_a_version_that_answers_differently_is_not_written(
    ast_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved_model(ast_folder, tmp_path / "model", "class_token")
    monkeypatch.setattr("hb_ssl.onnx_export.MAX_DIFFERENCE", -1.0)
    with pytest.raises(UserError, match="answers differently"):
        export_classifier(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
