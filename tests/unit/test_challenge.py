"""Answers for the unlabelled recordings: rows, refusals, and that the scorer reads them."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from hb_ssl.cli import main
from hb_ssl.data.recording import LABEL_MODES
from hb_ssl.errors import UserError
from hb_ssl.evaluation.workbook import read_challenge_predictions
from hb_ssl.inference import HeartSoundClassifier

FILES = (
    "set_a/Aunlabelledtest__201101091156.wav",
    "set_a/normal__201101091158.wav",
    "set_b/Bunlabelledtest__181_1308052613891_A.wav",
    "set_b/Bunlabelledtest__181_1308052613891_B1.wav",
    "set_b/murmur__182_1308052613891_A.wav",
)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sf.write(tmp_path / name, 0.1 * rng.standard_normal(4000), 4000)
    return tmp_path


class FixedClassifier:
    """Answers the first class of its task; refuses one recording."""

    def __init__(self, mode):
        self.labels = list(LABEL_MODES[mode])
        self.preprocessing = {"synthetic": False}

    def predict_one(self, audio):
        if "_B1" in str(audio):
            raise UserError("too odd to classify; record it again")
        probabilities = {name: 1 / len(self.labels) for name in self.labels}
        return SimpleNamespace(label=self.labels[0], probabilities=probabilities)


@pytest.fixture(autouse=True)
def fixed_classifiers(monkeypatch):
    monkeypatch.setattr(
        HeartSoundClassifier, "from_pretrained", lambda model, *_, **__: FixedClassifier(model)
    )


def test_one_command_answers_the_unlabelled_recordings_of_both_sets(folder, tmp_path, capsys):
    out = tmp_path / "answers.csv"
    arguments = ["predict-pascal", str(folder), "--csv", str(out)]
    assert main([*arguments, "--model-a", "set_a", "--model-b", "set_b"]) == 1
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [
        "Aunlabelledtest__201101091156.wav",
        "Bunlabelledtest__181_1308052613891_A.wav",
        "Bunlabelledtest__181_1308052613891_B1.wav",
    ]
    assert [row["prediction"] for row in rows] == ["artifact", "extrastole", ""]
    assert rows[0]["prob_extrastole"] == "" and rows[1]["prob_artifact"] == ""
    assert rows[2]["error"].startswith("too odd")
    with pytest.raises(UserError, match="too odd to classify"):
        read_challenge_predictions(out)
    assert len(read_challenge_predictions(out, ("a",))) == 1


def test_wrong_models_and_sources_are_refused(folder, tmp_path, capsys):
    arguments = ["predict-pascal", str(folder), "--csv", str(tmp_path / "answers.csv")]
    assert main(arguments) == 2
    assert "expected --model-a, --model-b or both" in capsys.readouterr().err
    assert main([*arguments, "--model-b", "set_a"]) == 2
    assert "train with --label_mode set_b" in capsys.readouterr().err
    for name in FILES[2:4]:
        (folder / name).unlink()
    assert main([*arguments, "--model-b", "set_b"]) == 2
    assert "no unlabelled recording of set B" in capsys.readouterr().err
