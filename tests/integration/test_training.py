"""The main job on a small simulated data set: run folder, resume, processes, errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hb_ssl import cli
from hb_ssl.data.splits import read_split
from hb_ssl.errors import UserError
from hb_ssl.evaluation.metrics import read_predictions
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.inference import HeartSoundClassifier

REPOSITORY = Path(__file__).resolve().parents[2]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_run_folder_is_complete_and_consistent(run: Path) -> None:
    metrics = read_json(run / "metrics.json")
    assert metrics["synthetic"] is True
    lines = (run / "predictions.csv").read_text().splitlines()
    assert metrics["recording"]["overall"]["n"] == len(lines) - 1 > 0
    assert {"config.yaml", "environment.json", "splits.json", "data_card.json", "history.json",
            "report.html", "report.md"} <= {p.name for p in run.iterdir()}  # fmt: skip
    assert not (run / "checkpoints").exists()
    assert [row["epoch"] for row in read_json(run / "history.json")] == [1.0, 2.0, 3.0]
    split = read_json(run / "splits.json")
    assert "SYNTHETIC" in (run / "report.html").read_text()
    assert split


def test_prediction_of_the_saved_model_equals_the_training_run(run: Path, recordings: Path) -> None:
    classifier = HeartSoundClassifier.from_pretrained(run)
    rows = (run / "predictions.csv").read_text().splitlines()
    header = rows[0].split(",")
    for line in rows[1:6]:
        row = dict(zip(header, line.split(","), strict=True))
        set_, stem = row["recording_id"].split("/")
        answer = classifier.predict_one(recordings / f"set_{set_}" / f"{stem}.wav")
        for label, probability in answer.probabilities.items():
            assert probability == pytest.approx(float(row[f"prob_{label}"]), abs=1e-5)


@pytest.mark.parametrize(
    ("extra", "damaged"),
    [([], "optimizer.pt"), (["--adaptation", "full"], "model.safetensors")],
    ids=["lora", "full"],
)
def test_killed_run_resumes_to_the_same_weights(
    options: list[str], extra: list[str], damaged: str, ast_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    extra = [*extra, "--backbone", str(ast_folder), "--save_steps", "3", "--mixup_alpha", "0.3"]
    whole, killed, moved = tmp_path / "whole", tmp_path / "killed", tmp_path / "moved"
    assert cli.main(["train", *options, *extra, "--output_dir", str(whole)]) == 0
    command = [sys.executable, str(REPOSITORY / "scripts/train.py"), *options, *extra,
               "--output_dir", str(killed)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(killed.glob("checkpoints/checkpoint-6/checksums.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "metrics.json").exists()
    shutil.copytree(killed, moved)
    arguments = ["train", *options, *extra, "--output_dir", str(killed)]
    assert cli.main(arguments) == 2  # neither --resume nor --overwrite: nothing is lost
    assert cli.main([*arguments, "--epochs", "9", "--resume"]) == 2  # other settings
    assert cli.main([*arguments, "--resume"]) == 0
    # The same run in another place, with its newest checkpoint damaged.
    arguments[-1] = str(moved)
    sealed = sorted(moved.glob("checkpoints/*/checksums.json"), key=lambda p: p.stat().st_mtime_ns)
    files = [seal.with_name(damaged) for seal in sealed]
    content = files[0].read_bytes()
    for file in files:
        file.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert cli.main([*arguments, "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"{damaged}: damaged since it was written, and there is no earlier" in said
    assert "Traceback" not in said
    files[0].write_bytes(content)
    assert cli.main([*arguments, "--resume"]) == 0
    assert f"going on from {files[0].parent.name}" in capsys.readouterr().err
    expected = weights(whole)
    for run in (killed, moved):
        got = weights(run)
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, got[name]), name
        assert (whole / "predictions.csv").read_text() == (run / "predictions.csv").read_text()
        assert not (run / "checkpoints").exists()


def test_two_processes_score_as_one(run: Path) -> None:
    script = str(REPOSITORY / "scripts/evaluate_run.py")
    assert cli.main(["evaluate", str(run), "--batch_size", "7"]) == 0
    one = read_json(run / "evaluation" / "metrics.json")
    rows = (run / "evaluation" / "window_predictions.csv").read_text().splitlines()
    assert (len(rows) - 1) % 14 != 0, "the last batch must be uneven for this test to tell"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script, str(run),
         "--batch_size", "7"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    two = read_json(run / "evaluation" / "metrics.json")
    assert two["recording"]["overall"]["n"] == one["recording"]["overall"]["n"]
    np.testing.assert_allclose(
        json_numbers(two["recording"]), json_numbers(one["recording"]), atol=1e-6
    )
    trained = read_json(run / "metrics.json")["recording"]
    np.testing.assert_allclose(json_numbers(one["recording"]), json_numbers(trained), atol=1e-6)


def json_numbers(content: object) -> list[float]:
    if isinstance(content, dict):
        return [n for value in content.values() for n in json_numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in json_numbers(value)]
    return [float(content)] if isinstance(content, int | float) else []


def test_cross_validation_resumes_fold_by_fold(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cv"
    arguments = ["cv", "--source", str(recordings), "--method", "logistic_regression",
                 "--num_folds", "3", "--num_repeats", "2", "--output_dir", str(folder)]  # fmt: skip
    assert cli.main(arguments) == 0
    first = (folder / "predictions.csv").read_text()
    assert len(list(folder.glob("seed-*-fold-*"))) == 6
    kept = folder / "seed-0-fold-0" / "predictions.csv"
    stamp = kept.stat().st_mtime_ns
    (folder / "metrics.json").unlink()
    (folder / "seed-1-fold-2" / "predictions.csv").unlink()
    assert cli.main([*arguments, "--resume"]) == 0
    assert kept.stat().st_mtime_ns == stamp
    assert (folder / "predictions.csv").read_text() == first
    metrics = read_json(folder / "metrics.json")
    items = metrics["recording"]["overall"]["n"]
    assert len(first.splitlines()) - 1 == 2 * items


@pytest.mark.parametrize("verb", ["train", "cv"])
def test_a_run_does_not_go_on_with_other_recordings(
    verb: str, recordings: Path, options: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(recordings, source)
    arguments = [verb, *options, "--source", str(source), "--epochs", "1"]
    arguments += ["--output_dir", str(folder)]
    if verb == "cv":
        arguments += ["--method", "majority", "--num_folds", "3", "--num_repeats", "1"]
    assert cli.main(arguments) == 0
    (folder / "metrics.json").unlink()  # as if it had been interrupted
    plan = (folder / ("splits.json" if verb == "train" else "folds.json")).read_text()
    for path in sorted((source / "set_b").glob("murmur*.wav"))[:3]:
        path.unlink()
    assert cli.main([*arguments, "--resume"]) == 2
    assert "the recordings or their groups have changed" in capsys.readouterr().err
    assert plan == (folder / ("splits.json" if verb == "train" else "folds.json")).read_text()


def test_another_source_is_scored_without_what_was_trained_on(
    run: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    assert cli.main(["evaluate", str(mine), "--source", str(recordings)]) == 0
    assert "are left out: the run was trained on them" in capsys.readouterr().err
    tested = {row["recording_id"] for row in read_predictions(mine / "predictions.csv")}
    (scored,) = mine.glob("evaluation-*/predictions.csv")
    assert {row["recording_id"] for row in read_predictions(scored)} == tested
    split = read_json(mine / "splits.json")
    split["parts"]["train"] += split["parts"].pop("test")
    write_json_atomic(mine / "splits.json", split)
    assert cli.main(["evaluate", str(mine), "--source", str(recordings)]) == 2
    assert "trained on every recording there" in capsys.readouterr().err


def test_predict_command_survives_bad_files(
    run: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    good = next((recordings / "set_a").glob("*.wav"))
    code = cli.main(["predict", str(bad), str(good), "--model", str(run), "--json"])
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert code == 1
    assert "can't be read" in rows[0]["error"]
    assert rows[0]["prediction"] == ""
    assert rows[1]["prediction"] in ("artifact", "extrahls", "murmur", "normal")
    assert "SYNTHETIC" in output.err


def test_waveforms_and_files_give_the_same_answer(run: Path, recordings: Path) -> None:
    from hb_ssl.audio import load_audio

    classifier = HeartSoundClassifier.from_pretrained(run / "model")
    file = next((recordings / "set_b").glob("*.wav"))
    from_file, from_array = classifier.predict([file, load_audio(file)])
    assert from_file.probabilities == from_array.probabilities
    assert sum(from_file.probabilities.values()) == pytest.approx(1)
    with pytest.raises(UserError, match="mono samples"):
        classifier.predict((np.zeros((2, 9)), 2000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown command"),
        (["data", "nonsense"], "unknown command"),
        (["data", "inspect", "absent-folder"], "absent-folder"),
        (["train", "--source", "absent-folder"], "absent-folder"),
        (["train", "--epoch", "1"], "did you mean"),
        (["cv", "--method", "magic", "--source", "synthetic"], "method 'magic'"),
        (["evaluate", "absent-run"], "has no model/"),
        (["predict", "x.wav", "--model", "./absent"], "absent"),
        (["report", "absent-run"], "absent-run"),
        (["predict"], "required"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_finished_run_is_not_overwritten(
    run: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *options, "--output_dir", str(run)]) == 2
    assert "finished run" in capsys.readouterr().err
    assert (run / "metrics.json").is_file()


def test_unwritable_output_is_explained(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["train", *options, "--output_dir", str(tmp_path / "file" / "run")]) == 2
    assert "choose another --output_dir" in capsys.readouterr().err


def test_helps_have_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["train"], ["cv"], ["evaluate"], ["predict"], ["report"], ["data", "inspect"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*verb, "--help"])
        assert caught.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_training_on_every_recording_keeps_no_test_and_needs_no_validation(
    options: list[str], ast_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    arguments = [*options, "--backbone", str(ast_folder), "--output_dir", str(folder)]
    fractions = ["--validation_fraction", "0", "--test_fraction", "0"]
    assert cli.main(["train", *arguments, *fractions]) == 0
    split = read_split(folder / "splits.json")
    assert split["validation"] == split["test"] == []
    metrics = read_json(folder / "metrics.json")
    assert "recording" not in metrics and metrics["run"]["steps"] > 0
    assert not (folder / "predictions.csv").exists()
    about = HeartSoundClassifier.from_pretrained(folder).preprocessing["training"]
    assert about["num_recordings"] == len(split["train"])
    assert len(about["data_sha256"]) == 64
    assert cli.main(["report", str(folder)]) == 2  # nothing was tested: one line, no traceback
