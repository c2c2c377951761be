"""Good and bad audio files through ``load_audio``, the classifier and ``hb-ssl predict``."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from peft import PeftConfig

from hb_ssl import cli
from hb_ssl.audio import load_audio
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.inference import HeartSoundClassifier, Prediction
from hb_ssl.space_page import pictures_html, verdict_html
from tests.integration.bad_audio import BAD, GOOD, Payload, make_files, two_hours


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    make_files(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(run: Path) -> HeartSoundClassifier:
    return HeartSoundClassifier.from_pretrained(run)


def test_the_table_is_long_enough() -> None:
    assert len(GOOD) + len(BAD) >= 100


@pytest.mark.parametrize("name", GOOD)
def test_usable_file_is_decoded_and_classified(
    name: str, files: Path, classifier: HeartSoundClassifier
) -> None:
    for rate in (None, 2000, 16_000):
        waveform, got = load_audio(files / name, rate)
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert len(waveform) > 0
        assert np.isfinite(waveform).all()
        assert got == (rate or got)
    answer = classifier.predict_one(files / name)
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert answer.duration_seconds > 0
    assert answer.label in answer.probabilities


@pytest.mark.parametrize("name", BAD)
def test_unusable_file_is_one_clear_line(
    name: str, files: Path, classifier: HeartSoundClassifier
) -> None:
    message = BAD[name][1]
    for use in (load_audio, classifier.predict_one):
        with pytest.raises(UserError) as caught:
            use(files / name)
        said = str(caught.value)
        assert message in said
        assert said.replace(str(files / name), "").count("\n") == 0
        assert ";" in said, "what is expected, and the fix"


def test_predict_answers_every_file_and_stops_at_none(
    files: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(files)
    names = [*GOOD, *BAD]
    names.remove("folder.wav")  # a folder means: the recordings inside
    paths = ["./" + name for name in names]
    assert cli.main(["predict", "--model", str(run), "--json", *paths]) == 1
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["file"] for row in rows] == names
    assert [row["file"] for row in rows if row["error"]] == [n for n in names if n in BAD]
    assert all(bool(row["error"]) != bool(row["prediction"]) for row in rows)
    assert cli.main(["predict", "--model", str(run), "--csv", str(tmp_path / "x.csv"), *paths]) == 1
    with (tmp_path / "x.csv").open(newline="") as file:
        again = list(csv.DictReader(file))
    assert [(r["file"], r["prediction"], r["error"]) for r in again] == [
        (r["file"], r["prediction"], r["error"]) for r in rows
    ]


def test_two_hours_are_answered(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_hours(tmp_path / "two-hours.wav")
    model = copied(run / "model", tmp_path / "m")
    about = read_json(model / "preprocessing.json")  # 240 windows, not 7200: in seconds
    write_json_atomic(model / "preprocessing.json", {**about, "hop_seconds": 30})
    arguments = ["predict", str(tmp_path / "two-hours.wav"), "--model", str(model), "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["duration_seconds"] == 7200


def test_one_bad_file_changes_no_other_answer(
    files: Path, classifier: HeartSoundClassifier
) -> None:
    names = ["wav-PCM_16.wav", "nan.wav", "channels-8.wav", "empty.wav", "rate-44100.wav"]
    together = list(classifier.predict_each([files / name for name in names]))
    for name, answer in zip(names, together, strict=True):
        if name in BAD:
            assert isinstance(answer, UserError)
        else:
            assert isinstance(answer, Prediction)
            alone = classifier.predict_one(files / name)
            for label, probability in alone.probabilities.items():
                assert answer.probabilities[label] == pytest.approx(probability, abs=1e-5)


WAVEFORM = np.sin(np.arange(4000) / 16).astype(np.float32)


@pytest.mark.parametrize(
    "audio",
    [
        (WAVEFORM, 0), (WAVEFORM, -4000), (WAVEFORM, float("nan")), (WAVEFORM, float("inf")),
        (WAVEFORM, 44100.5), (WAVEFORM, "4000 Hz"), (WAVEFORM, None), (WAVEFORM, 50),
        (WAVEFORM, 10**9), (WAVEFORM[:0], 4000), (WAVEFORM[None], 4000), (np.float32(1), 4000),
        (WAVEFORM * np.nan, 4000), (WAVEFORM * 1e30, 4000), (WAVEFORM + 1j, 4000),
        (WAVEFORM.astype(str), 4000), (WAVEFORM.astype(object), 4000), (None, 4000),
        (WAVEFORM > 0, 4000), (WAVEFORM,), (WAVEFORM, 4000, 1), "", None, 5, b"x.wav", WAVEFORM,
        {"path": "x.wav"},
    ],
    ids=lambda audio: repr(audio).replace("\n", "")[:60],
)  # fmt: skip
def test_bad_arguments_of_predict_are_one_line(
    audio: object, classifier: HeartSoundClassifier
) -> None:
    with pytest.raises(UserError) as caught:
        classifier.predict(audio)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "samples",
    [
        (WAVEFORM * 32767).astype(np.int16), (WAVEFORM * 2**30).astype(np.int32),
        WAVEFORM.astype(np.float64), WAVEFORM.astype(np.float16), WAVEFORM.tolist(),
        np.frombuffer((WAVEFORM * 32767).astype(np.int16).tobytes(), np.int16),  # read-only
        WAVEFORM[::2], ((WAVEFORM + 1) * 127).astype(np.uint8),
    ],
    ids=["int16", "int32", "float64", "float16", "list", "readonly", "strided", "uint8"],
)  # fmt: skip
def test_other_sample_types_mean_the_same(
    samples: object, classifier: HeartSoundClassifier
) -> None:
    given = WAVEFORM[::2] if np.shape(samples) == (2000,) else WAVEFORM
    expected = classifier.predict_one((given, 4000)).probabilities
    got = classifier.predict_one((samples, 4000)).probabilities  # type: ignore[arg-type]
    for label, probability in expected.items():
        assert got[label] == pytest.approx(probability, abs=5e-3)


# Model folders


def copied(model: Path, folder: Path) -> Path:
    for file in model.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("removed", "pickled"),
    [
        ("model.safetensors", "pytorch_model.bin"),
        ("model.safetensors", "model.bin"),
        ("", "training_args.bin"),
        ("", "optimizer.pt"),
        ("both", "adapter/adapter_model.bin"),
        ("model.safetensors", "model.safetensors"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("config.json", "config.json"),
        ("preprocessing.json", "preprocessing.json"),
    ],
)
def test_no_pickle_in_a_model_folder_is_ever_run(
    removed: str, pickled: str, run: Path, files: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import pickle

    model, proof = copied(run / "model", tmp_path / "model"), tmp_path / "proof"
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        if removed:
            (model / name).unlink()
    if removed not in ("", "both", "model.safetensors"):
        copied(run / "model", model)
        (model / removed).unlink()
    (model / pickled).write_bytes(pickle.dumps(Payload(proof)))
    code = cli.main(["predict", str(files / "wav-PCM_16.wav"), "--model", str(model)])
    assert code == (2 if removed else 0)
    assert not proof.exists()
    assert "Traceback" not in capsys.readouterr().err


def adapter_folder(run: Path, folder: Path, base: Path) -> Path:
    """What `hb-ssl push --adapter-only` makes, for another base."""
    model = copied(run / "model", folder)
    (model / "model.safetensors").unlink()
    config = PeftConfig.from_pretrained(str(model / "adapter"))
    config.base_model_name_or_path = str(base)
    config.save_pretrained(str(model / "adapter"))
    return model


def test_adapter_on_its_own_base_equals_the_merged_model(
    run: Path, wav2vec2_folder: Path, files: Path, classifier: HeartSoundClassifier, tmp_path: Path
) -> None:
    model = adapter_folder(run, tmp_path / "m", wav2vec2_folder)
    adapted = HeartSoundClassifier.from_pretrained(model)
    for name in ("wav-PCM_16.wav", "noise.wav"):
        expected = classifier.predict_one(files / name).probabilities
        got = adapted.predict_one(files / name).probabilities
        assert got == pytest.approx(expected, abs=1e-5)


def test_adapter_for_another_base_is_refused(
    run: Path, ast_folder: Path, wav2vec2_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    bigger = tmp_path / "bigger"
    shape = Wav2Vec2Config.from_pretrained(wav2vec2_folder)
    shape.hidden_size, shape.num_hidden_layers = 32, 3
    Wav2Vec2Model(shape).save_pretrained(bigger)
    copied(wav2vec2_folder, tmp_path / "other")
    (bigger / "preprocessor_config.json").write_bytes(
        (wav2vec2_folder / "preprocessor_config.json").read_bytes()
    )
    for number, base in enumerate((ast_folder, bigger, tmp_path / "absent")):
        model = adapter_folder(run, tmp_path / str(number), base)
        with pytest.raises(UserError) as caught:
            HeartSoundClassifier.from_pretrained(model)
        assert "\n" not in str(caught.value)
        capsys.readouterr()
        assert cli.main(["predict", "x.wav", "--model", str(model)]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {caught.value}"


def test_labels_of_other_files_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = read_json(run / "model/preprocessing.json")
    for number, labels in enumerate(
        (["a"], [*about["labels"], "flutter"], about["labels"][::-1], "normal", [], None)
    ):
        model = copied(run / "model", tmp_path / str(number))
        write_json_atomic(model / "preprocessing.json", {**about, "labels": labels})
        with pytest.raises(UserError, match="expected the files of one model"):
            HeartSoundClassifier.from_pretrained(model)
        assert cli.main(["predict", "x.wav", "--model", str(model)]) == 2
        assert "expected the files of one model" in capsys.readouterr().err.splitlines()[-1]


def test_labels_nobody_knows_are_names_like_any_other(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of other classes answers with them; its names are escaped wherever they are shown."""
    model = copied(run / "model", tmp_path / "m")
    labels = ["<b>flutter</b>", "=1+1", "new\nline", "normal"]
    about = read_json(model / "preprocessing.json")
    write_json_atomic(model / "preprocessing.json", {**about, "labels": labels})
    config = read_json(model / "config.json")
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    config["label2id"] = {label: number for number, label in enumerate(labels)}
    write_json_atomic(model / "config.json", config)
    classifier = HeartSoundClassifier.from_pretrained(model)
    answer = classifier.predict_one(files / "noise.wav")
    assert list(answer.probabilities) == labels
    html = verdict_html("noise.wav", answer, classifier.preprocessing)
    html += pictures_html(*load_audio(files / "noise.wav"), answer)
    assert "<b>flutter" not in html
    assert "&lt;b&gt;flutter" in html
    assert cli.main(["predict", str(files / "noise.wav"), "--model", str(model)]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines(keepends=True)))
    assert [name for name in table[0] if name.startswith("prob_")] == [f"prob_{n}" for n in labels]
