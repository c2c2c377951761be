"""The answer for a recording: windows, batches, calibration, abstention, long files, pictures."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from matplotlib.image import imread

from hb_ssl import cli
from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.errors import UserError
from hb_ssl.files import write_json_atomic
from hb_ssl.inference import BATCH_SIZE, HeartSoundClassifier, Prediction
from hb_ssl.models.backbones import load_feature_extractor
from hb_ssl.models.classifier import build_classifier, save_classifier
from tests.integration.helpers import LABELS, preprocessing


@pytest.fixture(scope="module")
def model(ast_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes windows of 1 s at 2 kHz, every 0.5 s."""
    folder = tmp_path_factory.mktemp("models") / "model"
    network = build_classifier(str(ast_folder), LABELS, pooling="class_token")
    save_classifier(folder, network, load_feature_extractor(str(ast_folder)), preprocessing())
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(tmp_path_factory.mktemp("data") / "pcg", 20, seed=5)


def with_preprocessing(model: Path, **changes: object) -> HeartSoundClassifier:
    classifier = HeartSoundClassifier.from_pretrained(model)
    classifier.preprocessing.update(changes)
    return classifier


def heartbeat(seconds: float, rate: int = 2000) -> np.ndarray:
    """Two dull thuds a second."""
    time = np.arange(round(seconds * rate)) / rate
    waveform = np.zeros(len(time))
    for offset, level in ((0.1, 1.0), (0.42, 0.7)):
        phase = (time - offset) % 1.0
        waveform += level * np.exp(-phase * 40) * np.sin(2 * np.pi * 60 * phase)
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.4 * waveform + 0.002 * noise).astype(np.float32)


def test_the_answer_is_complete(model: Path) -> None:
    answer = HeartSoundClassifier.from_pretrained(model).predict((heartbeat(6.3), 2000))
    assert isinstance(answer, Prediction)
    assert answer.duration_seconds == pytest.approx(6.3)
    assert answer.window_start_seconds[0] == 0
    assert answer.window_start_seconds[-1] == pytest.approx(5.3)
    assert answer.window_probabilities.shape == (len(answer.window_start_seconds), 4)
    np.testing.assert_allclose(answer.window_probabilities.sum(axis=1), 1)
    assert list(answer.probabilities) == LABELS
    assert answer.label == max(answer.probabilities, key=answer.probabilities.__getitem__)
    assert answer.decision == answer.label  # not calibrated: it never abstains
    assert not answer.calibrated
    assert answer.heart_rate.bpm == pytest.approx(60, abs=3)


def test_batches_never_change_an_answer(model: Path, recordings: Path, tmp_path: Path) -> None:
    classifier = HeartSoundClassifier.from_pretrained(model)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"")
    files = sorted(recordings.rglob("*.wav"))
    mixed = [files[0], bad, *files[1:], (heartbeat(40), 2000), (heartbeat(0.2), 2000)]
    answers = list(classifier.predict_each(mixed))
    assert len(answers) == len(mixed)
    assert isinstance(answers[1], UserError)
    total = sum(len(a.window_probabilities) for a in answers if isinstance(a, Prediction))
    assert total > 2 * BATCH_SIZE
    for item, answer in zip(mixed, answers, strict=True):
        if isinstance(answer, Prediction):
            alone = classifier.predict_one(item)
            np.testing.assert_allclose(
                answer.window_probabilities, alone.window_probabilities, atol=1e-6
            )
    with pytest.raises(UserError, match="0 bytes"):
        classifier.predict(mixed)
    assert classifier.predict([]) == []


def test_calibration_and_abstention(model: Path) -> None:
    audio = (heartbeat(5), 2000)
    plain = HeartSoundClassifier.from_pretrained(model).predict_one(audio)
    bias = [0.0, 0.0, 5.0, 0.0]
    calibration = {"temperature": 2.0, "bias": bias, "abstain_below": 0.5, "risk": 0.1}
    sure = with_preprocessing(model, calibration=calibration).predict_one(audio)
    logits = np.log(list(plain.probabilities.values())) / 2 + bias
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(sure.probabilities.values()), expected, rtol=1e-6)
    assert sure.calibrated
    assert (sure.label, sure.decision) == ("murmur", "murmur")
    np.testing.assert_allclose(sure.window_probabilities.sum(axis=1), 1)
    calibration = {**calibration, "abstain_below": 0.9999}
    unsure = with_preprocessing(model, calibration=calibration).predict_one(audio)
    assert (unsure.label, unsure.decision) == ("murmur", "inconclusive")


def test_silence_and_strange_sounds_are_inconclusive(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = {"temperature": 1.0, "bias": [0.0, 0, 9, 0], "abstain_below": 0.5, "risk": 0.1}
    classifier = with_preprocessing(model, calibration=calibration)
    silence = classifier.predict_one((np.zeros(10_000, np.float32), 2000))
    assert silence.decision == "inconclusive"
    assert "silence" in [note.code for note in silence.signal_notes]
    seen = []

    def gate(waveform: np.ndarray, rate: int, embedding: object, about: dict) -> bool:
        seen.append((len(waveform), rate, about))
        return False

    monkeypatch.setattr("hb_ssl.inference.is_heart_sound", gate)
    classifier.preprocessing["heart_sound_gate"] = {"threshold": 1.0}
    audio = (heartbeat(100, 4000), 4000)
    strange = classifier.predict_one(audio)
    assert (strange.label, strange.decision) == ("murmur", "inconclusive")
    assert seen == [(60 * 4000, 4000, {"threshold": 1.0})]  # the first minute, as recorded
    assert [note.code for note in strange.signal_notes] == ["not_a_heart"]
    classifier.preprocessing["calibration"] = {**calibration, "bias": [9.0, 0, 0, 0]}
    assert classifier.predict_one(audio).decision == "artifact"
    # What is hardly heard may be an artifact or a heart: record again.
    quiet = classifier.predict_one((audio[0] * np.float32(2e-3), 4000))
    assert (quiet.label, quiet.decision) == ("artifact", "inconclusive")
    assert "too_quiet" in [note.code for note in quiet.signal_notes]


def test_integers_kept_as_floats_are_brought_to_full_scale(model: Path, tmp_path: Path) -> None:
    classifier = HeartSoundClassifier.from_pretrained(model)
    waveform = heartbeat(8)
    waveform /= np.abs(waveform).max()
    sf.write(tmp_path / "loud.wav", 32768 * waveform, 2000, subtype="FLOAT")
    usual = classifier.predict_one((waveform, 2000))
    for loud in (tmp_path / "loud.wav", ((32768 * waveform).astype(np.float64), 2000)):
        answer = classifier.predict_one(loud)
        assert answer.probabilities == pytest.approx(usual.probabilities, abs=1e-4)
        assert answer.signal_notes == usual.signal_notes


def test_a_file_name_of_another_encoding_costs_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    sf.write(tmp_path / "heart.wav", heartbeat(3), 2000)
    (tmp_path / "heart.wav").rename(folder / os.fsdecode(b"caf\xe9.wav"))
    arguments = ["predict", str(folder), "--model", str(model), "--plot", str(tmp_path / "plots")]
    assert cli.main([*arguments, "--csv", str(tmp_path / "out.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert row["file"].endswith("caf\\udce9.wav") and not row["error"]
    assert cli.main(arguments) == 0
    assert "caf\\udce9.wav" in capsys.readouterr().out


def test_bad_waveforms_are_explained(model: Path) -> None:
    classifier = HeartSoundClassifier.from_pretrained(model)
    for samples, rate, message in (
        (np.zeros((2, 9)), 2000, "mono samples"),
        (np.zeros(0), 2000, "mono samples"),
        (np.array([0.0, np.nan]), 2000, "NaN"),
        (np.zeros(100), 0, "sampling rate 0"),
        (np.zeros(100), 44100.5, "whole number"),
    ):
        with pytest.raises(UserError, match=message):
            classifier.predict((samples, rate))


def test_other_folders_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        HeartSoundClassifier.from_pretrained(tmp_path / "absent")
    with pytest.raises(UserError, match=r"has no preprocessing\.json"):
        HeartSoundClassifier.from_pretrained(tmp_path)
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json_atomic(tmp_path / "preprocessing.json", {"labels": LABELS})
    with pytest.raises(UserError, match="lacks window_seconds"):
        HeartSoundClassifier.from_pretrained(tmp_path)
    (tmp_path / "preprocessing.json").write_bytes((model / "preprocessing.json").read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="weights can't be loaded"):
        HeartSoundClassifier.from_pretrained(tmp_path)


def test_the_bundled_classifier_is_the_default(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = (heartbeat(4), 2000)
    expected = HeartSoundClassifier.from_pretrained(model).predict_one(audio)
    monkeypatch.setattr("hb_ssl.inference.BUNDLED_CLASSIFIER", model)
    bundled = HeartSoundClassifier.from_pretrained().predict_one(audio)
    assert bundled.probabilities == expected.probabilities
    monkeypatch.setattr("hb_ssl.inference.BUNDLED_CLASSIFIER", tmp_path / "absent")
    with pytest.raises(UserError, match="bundles no classifier"):
        HeartSoundClassifier.from_pretrained()


def test_predict_command_writes_a_table_and_pictures(
    model: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    file = next((recordings / "set_b").glob("*.wav"))
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / file.name  # the same name in another folder
    copy.write_bytes(file.read_bytes())
    sf.write(tmp_path / "long.flac", heartbeat(100, 8000), 8000)
    tables = []
    for name in ("one", "two"):
        code = cli.main(
            ["predict", str(tmp_path / "text.wav"), str(file), str(copy),
             str(tmp_path / "long.flac"), "--model", str(model), "--csv",
             str(tmp_path / f"{name}.csv"), "--plot", str(tmp_path / name)]
        )  # fmt: skip
        assert code == 1
        tables.append((tmp_path / f"{name}.csv").read_text())
    assert tables[0] == tables[1]
    assert "1 of 4 recordings could not be classified" in capsys.readouterr().err
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert [bool(row["error"]) for row in rows] == [True, False, False, False]
    assert rows[0]["decision"] == rows[0]["prob_murmur"] == ""
    assert rows[1] | {"file": ""} == rows[2] | {"file": ""}
    assert rows[3]["duration_seconds"] == "100.0"
    assert float(rows[3]["heart_rate_bpm"]) == pytest.approx(60, abs=3)
    assert sum(float(rows[3][f"prob_{label}"]) for label in LABELS) == pytest.approx(1, abs=1e-5)
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert pictures == sorted([f"{file.stem}.png", f"{file.stem}-2.png", "long.png"])
    assert imread(tmp_path / "one" / "long.png").std() > 0.1


def test_an_interrupted_table_goes_on(
    model: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, table, whole = recordings / "set_b", tmp_path / "x.csv", tmp_path / "whole.csv"
    arguments = ["predict", str(folder), "--model", str(model), "--csv"]
    assert cli.main([*arguments, str(whole)]) == 0
    opened: list[str] = []
    original = HeartSoundClassifier._open

    def watched(self, audio):
        if len(opened) == 7:
            raise KeyboardInterrupt
        opened.append(Path(audio).name)
        return original(self, audio)

    monkeypatch.setattr(HeartSoundClassifier, "_open", watched)
    assert cli.main([*arguments, str(table)]) == 130
    assert not table.exists()
    kept = len((tmp_path / "x.csv.partial").read_text().splitlines()) - 1
    monkeypatch.setattr(HeartSoundClassifier, "_open", original)
    assert cli.main(["predict", str(folder), "--csv", str(table), "--resume"]) == 2
    assert "begun with another model" in capsys.readouterr().err
    pictures = ["--plot", str(tmp_path / "pictures")]
    assert cli.main([*arguments, str(table), "--resume", *pictures]) == 2  # none of the kept rows
    assert "folder of pictures" in capsys.readouterr().err
    assert cli.main([*arguments, str(table), "--resume"]) == 0
    assert table.read_text() == whole.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.csv", "x.csv"]
    assert 0 < kept <= 7
    assert cli.main(["predict", str(folder), "--resume"]) == 2
    assert "--resume goes with --csv" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [20.0, 75.0])
def test_a_file_read_in_blocks_answers_as_when_held_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Below and above the first minute that signal quality is judged on."""
    rate = 11_025
    stereo = np.stack([heartbeat(seconds, rate), 0.5 * heartbeat(seconds, rate)], axis=1)
    sf.write(tmp_path / "long.wav", stereo, rate, "FLOAT")
    classifier = HeartSoundClassifier.from_pretrained(model)
    whole = classifier.predict_one((stereo.mean(axis=1), rate))
    monkeypatch.setattr("hb_ssl.audio.BLOCK_SAMPLES", 100_000)
    answer = classifier.predict_one(tmp_path / "long.wav")
    np.testing.assert_array_equal(answer.window_start_seconds, whole.window_start_seconds)
    np.testing.assert_allclose(answer.window_probabilities, whole.window_probabilities, atol=1e-5)
    np.testing.assert_allclose(
        list(answer.probabilities.values()), list(whole.probabilities.values()), atol=1e-5
    )
    assert answer.heart_rate.bpm == pytest.approx(whole.heart_rate.bpm)
    np.testing.assert_allclose(answer.heart_rate.beat_seconds, whole.heart_rate.beat_seconds)
    assert answer.signal_notes == whole.signal_notes
    assert answer.duration_seconds == whole.duration_seconds == pytest.approx(seconds)


MEMORY = """
import resource, sys
from hb_ssl.inference import HeartSoundClassifier
classifier = HeartSoundClassifier.from_pretrained(sys.argv[1])
classifier.predict_one(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answer = classifier.predict_one(sys.argv[3])
print(len(answer.window_probabilities), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_an_hour_needs_little_more_memory_than_a_minute(model: Path, tmp_path: Path) -> None:
    rate = 44_100
    minute = np.tile(heartbeat(60, rate)[:, None], (1, 2))
    sf.write(tmp_path / "minute.wav", minute, rate)
    with sf.SoundFile(tmp_path / "hour.wav", "w", rate, 2, "PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(model), str(tmp_path / "minute.wav"),
         str(tmp_path / "hour.wav")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    windows, kilobytes = map(int, done.stdout.split())
    assert windows == 7199
    # Decoded at once it is 1270 MB, at the model's rate 29 MB.
    assert kilobytes < 400_000
