"""Every command with bad input: exit code 2, one clear line, no traceback, nothing half written."""

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from transformers import WavLMConfig

from hb_ssl import cli
from hb_ssl.config import parse_config
from hb_ssl.data import sources
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import pretrain
from hb_ssl.processes import on_cpu
from tests.integration.bad_audio import make_unreadable

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = "--backbone BACKBONE --window_seconds 1 --hop_seconds 1 --max_steps 1 --output_dir out"
GOOD = f"--source RECORDINGS {TRAIN}"


def wav(path: Path, seed: int = 0, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(4000 * seconds))
    sf.write(path, noise, 4000, subtype="PCM_16")


def text(path: Path, content: str | bytes = "no sound") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def make_bad_sources(folder: Path) -> None:
    (folder / "empty").mkdir()
    text(folder / "file.txt")
    text(folder / "notes/readme.txt")
    text(folder / "text/set_a/normal__201101070538.wav")
    wav(folder / "other-names/heart1.wav")
    wav(folder / "unknown-label/set_a/cough__201101070538.wav")
    wav(folder / "unknown-class/Atraining_cough/201101070538.wav")
    wav(folder / "two-classes/Atraining_normal/murmur__201101070538.wav")
    wav(folder / "two-files/Atraining_normal/201101070538.wav")
    wav(folder / "two-files/set_a/normal__201101070538.wav", seconds=2.0)
    for name, table in {
        "columns": "file,class\nx,y\n",
        "no-columns": "",
        "latin-1": b"dataset,fname,label,sublabel\na,caf\xe9.wav,normal,\n",
        "binary": bytes(range(256)) * 8,
    }.items():
        wav(folder / f"csv-{name}/set_a/normal__201101070538.wav")
        text(folder / f"csv-{name}/set_a.csv", table)
    wav(folder / "one-class/set_a/normal__201101070538.wav")
    wav(folder / "one-class/set_a/normal__201101080538.wav", 1)
    wav(folder / "few/set_a/normal__201101070538.wav")
    wav(folder / "few/set_a/murmur__201101080538.wav", 1)
    wav(folder / "good.wav")
    shutil.make_archive(str(folder / "whole"), "zip", folder / "few")
    whole = (folder / "whole.zip").read_bytes()
    text(folder / "half.zip", whole[: len(whole) // 2])
    text(folder / "half-zips/Atraining_normal.zip", whole[: len(whole) // 2])
    text(folder / "half-beside/Atraining_normal.zip", whole[: len(whole) // 2])
    wav(folder / "half-beside/set_a/normal__201101070538.wav")
    text(folder / "text.zip")
    text(folder / "half-parquet/data/train.parquet", b"PAR1" + bytes(50))
    make_bad_zips(folder)
    for name, make in (("pipe", os.mkfifo), ("unreadable", make_unreadable)):
        (folder / name / "set_a").mkdir(parents=True)
        make(folder / name / "set_a/normal__201101070538.wav")
    (folder / "dangling/set_a").mkdir(parents=True)
    (folder / "dangling/set_a/normal__201101070538.wav").symlink_to(folder / "nowhere")
    (folder / "loop").mkdir()
    (folder / "loop/again").symlink_to(folder / "loop")
    (folder / "itself").symlink_to(folder / "itself")


def make_bad_zips(folder: Path) -> None:
    sound = (folder / "few/set_a/normal__201101070538.wav").read_bytes()
    for name, member, content in (
        ("bomb", "set_a/normal__201101070538.wav", bytes(20 * 1024**2)),
        ("traversal", "../../set_a/normal__201101070538.wav", sound),
        ("absolute", "/set_a/normal__201101070538.wav", sound),
        ("link", "set_a/normal__201101070538.wav", b"/etc/passwd"),
    ):
        info = zipfile.ZipInfo(member)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr(info, content)


def make_bad_backbones(folder: Path, good: Path) -> None:
    for name, file, content in (
        ("config-text", "config.json", "{"),
        ("config-list", "config.json", "[1]"),
        ("config-type", "config.json", '{"model_type": "bert"}'),
        ("config-sizes", "config.json", '{"model_type": "wav2vec2", "hidden_size": "many"}'),
        ("extractor-text", "preprocessor_config.json", "{"),
        ("extractor-bytes", "preprocessor_config.json", b"\xff\xfe\x00"),
        ("weights-text", "model.safetensors", "no weights"),
        ("weights-half", "model.safetensors", (good / "model.safetensors").read_bytes()[:3000]),
        ("weights-empty", "model.safetensors", b""),
    ):
        shutil.copytree(good, folder / f"backbone-{name}")
        text(folder / f"backbone-{name}" / file, content)
    for name, file in (
        ("no-weights", "model.safetensors"),
        ("no-extractor", "preprocessor_config.json"),
    ):
        shutil.copytree(good, folder / f"backbone-{name}")
        (folder / f"backbone-{name}" / file).unlink()
    shutil.copytree(good, folder / "backbone-wavlm")
    WavLMConfig().save_pretrained(folder / "backbone-wavlm")


def make_bad_runs(folder: Path, good: Path) -> None:
    for name, file, content in (
        ("config-text", "config.yaml", "a: ["),
        ("config-other", "config.yaml", "colour: red"),
        ("config-bytes", "config.yaml", b"\xff\xfe\x00"),
        ("metrics-text", "metrics.json", "{"),
        ("metrics-list", "metrics.json", "[]"),
        ("metrics-old", "metrics.json", '{"recording": {}}'),
        ("card-text", "data_card.json", "x"),
        ("card-empty", "data_card.json", '{"inspection": 3}'),
        ("environment-empty", "environment.json", "{}"),
        ("history-text", "history.json", '{"epoch": 1}'),
        ("splits-text", "splits.json", "[]"),
        ("splits-part", "splits.json", '{"parts": {"train": []}}'),
        ("splits-unknown", "splits.json",
         '{"parts": {"train": [], "validation": [], "test": [{"recording_id": "a/x"}]}}'),
        ("predictions-text", "predictions.csv", "no,table\n1,2\n"),
        ("predictions-empty", "predictions.csv", ""),
        ("predictions-bytes", "predictions.csv", b"\xff\xfe\x00"),
        ("windows-text", "window_predictions.csv", "no,table\n1,2\n"),
        ("preprocessing-text", "model/preprocessing.json", "{"),
        ("preprocessing-list", "model/preprocessing.json", "[]"),
        ("preprocessing-empty", "model/preprocessing.json", "{}"),
        ("model-config", "model/config.json", "{"),
        ("model-weights", "model/model.safetensors", b"half"),
        ("model-extractor", "model/preprocessor_config.json", "{"),
    ):  # fmt: skip
        shutil.copytree(good, folder / f"run-{name}")
        text(folder / f"run-{name}" / file, content)
    for name, file in (
        ("no-config", "config.yaml"),
        ("no-splits", "splits.json"),
        ("no-predictions", "predictions.csv"),
        ("no-data-card", "data_card.json"),
        ("no-weights", "model/model.safetensors"),
        ("no-preprocessing", "model/preprocessing.json"),
    ):
        shutil.copytree(good, folder / f"run-{name}")
        (folder / f"run-{name}" / file).unlink()
    shutil.rmtree(folder / "run-no-weights/model/adapter")  # it alone would do
    shutil.copytree(good, folder / "run-moved")
    config = (good / "config.yaml").read_text().splitlines()
    moved = ["source: /nowhere/at/all" if line.startswith("source:") else line for line in config]
    text(folder / "run-moved/config.yaml", "\n".join(moved) + "\n")
    shutil.copytree(good, folder / "run-labels")
    about = json.loads((good / "model/preprocessing.json").read_text())
    text(folder / "run-labels/model/preprocessing.json", json.dumps({**about, "labels": ["a"]}))
    shutil.copytree(good, folder / "run-in-the-way")
    text(folder / "run-in-the-way/evaluation")
    (folder / "run-in-the-way/report.html").unlink()
    (folder / "run-in-the-way/report.html").mkdir()


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, recordings: Path, wav2vec2_folder: Path, run: Path
) -> Path:
    """A folder full of bad input."""
    folder = tmp_path_factory.mktemp("bad")
    make_bad_sources(folder)
    make_bad_backbones(folder, wav2vec2_folder)
    make_bad_runs(folder, run)
    text(folder / "unknown.yaml", "epochs: 1\ncolour: red\n")
    text(folder / "half.yaml", "epochs: [")
    text(folder / "bytes.yaml", b"\xff\xfe\x00")
    text(folder / "nested.yaml", "epochs:\n  first: 1\n")
    text(folder / "types.yaml", "epochs: many\n")
    text(folder / "parts.json", '{"parts": {"train": [], "test": []}}')
    parts = {"train": [{"recording_id": "a/x"}], "validation": [], "test": []}
    text(folder / "ids.json", json.dumps({"parts": parts}))
    text(folder / "list.json", "[]")
    text(folder / "foreign/thesis.docx")
    (folder / "RECORDINGS").symlink_to(recordings)
    (folder / "BACKBONE").symlink_to(wav2vec2_folder)
    (folder / "RUN").symlink_to(run)
    return folder


BAD_SOURCES = [
    ("absent", "no such folder"),
    ("file.txt", "no such folder"),
    ("empty", "no readable recording"),
    ("notes", "no readable recording"),
    ("text", "can't be read as audio"),
    ("other-names", "not a name of the challenge"),
    ("unknown-label", "cough"),
    ("unknown-class", "cough"),
    ("two-classes", "expected one class"),
    ("two-files", "expected one file for an id"),
    ("csv-columns", "expected dataset, fname, label, sublabel"),
    ("csv-no-columns", "expected dataset, fname, label, sublabel"),
    ("csv-latin-1", "can't be read as csv"),
    ("csv-binary", "csv"),
    ("half.zip", "not a whole zip file"),
    ("half-zips", "not a whole zip file"),
    ("half-beside", "not a whole zip file"),
    ("text.zip", "not a whole zip file"),
    ("bomb.zip", "a zip bomb?"),
    ("traversal.zip", "leaves the folder"),
    ("absolute.zip", "leaves the folder"),
    ("link.zip", "is a link or a device"),
    ("pipe", "no readable recording"),
    ("unreadable", "can't be opened"),
    ("dangling", "no readable recording"),
    ("loop", "no readable recording"),
    ("itself", "no such folder"),
    ("hub:", "is not a repository name"),
    ("hub:no/such/repo", "is not a repository name"),
    ("hub:no/such-repo", "the Hub can't be reached"),
    ("a\0b", "no such folder"),
    ("", "no such folder"),
    ("x" * 300, "no such folder"),
]

OPTIONS = [
    ("--epochz 1", "did you mean 'epochs'"),
    ("--config unknown.yaml", "unknown option 'colour'"),
    ("--config half.yaml", "not valid YAML"),
    ("--config bytes.yaml", "not valid YAML"),
    ("--config nested.yaml", "flat `key: value`"),
    ("--config types.yaml", "epochs"),
    ("--config empty", "expected a YAML file"),
    ("--epochs nan", "epochs"),
    ("--learning_rate inf", "learning_rate"),
    ("--seed -1", "seed"),
    ("--scheduler magic", "scheduler"),
    ("--mixed_precision int3", "invalid choice"),
    *([("--mixed_precision fp16", "needs a GPU")] if on_cpu() else []),
    ("--label_mode magic", "invalid choice"),
    ("--window_seconds 0", "above 0"),
    ("--window_seconds 0.01 --hop_seconds 0.01", "choose another --window_seconds"),
    ("--window_seconds 1e9", "window"),
    ("--hop_seconds 1e-9", "hop_seconds"),
    ("--band_low_hz 300 --band_high_hz 200", "keep nothing"),
    ("--band_low_hz -5", "band_low_hz"),
    ("--band_high_hz 0", "band_high_hz"),
    ("--validation_fraction 1", "share from 0"),
    ("--lora_targets nothing", "lora_targets"),
    ("--lora_rank 0", "above 0"),
    ("--pooling class_token", "no class tokens"),
    ("--mixup_alpha -1", "mixup_alpha"),
    ("--save_steps -1", "save_steps"),
    ("--early_stopping_patience -1", "early_stopping_patience"),
    ("--augment_low_pass_hz -1", "augment_low_pass_hz"),
    ("--augment_gain_db -1", "augment_gain_db"),
    ("--weight_decay -1", "weight_decay"),
    ("--max_steps 0", "max_steps"),
    ("--augment_spectrogram", "expected an audio-spectrogram-transformer"),
    ("--backbone absent/folder/deep", "absent/folder/deep"),
    ("--backbone ./absent", "no such folder"),
    ("--backbone empty", "has no preprocessor_config.json"),
    ("--backbone file.txt", "file.txt"),
    *[
        (f"--backbone backbone-{name}", message)
        for name, message in [
            ("config-text", "config.json"),
            ("config-list", "backbone-config-list"),
            ("config-type", "backbone type 'bert'"),
            ("config-sizes", "backbone-config-sizes"),
            ("extractor-text", "preprocessor_config.json"),
            ("extractor-bytes", "preprocessor_config.json"),
            ("weights-text", "weights can't be loaded"),
            ("weights-half", "weights can't be loaded"),
            ("weights-empty", "weights can't be loaded"),
            ("no-weights", "weights can't be loaded"),
            ("no-extractor", "has no preprocessor_config.json"),
            ("wavlm", "no gradient"),
        ]
    ],
    ("--output_dir file.txt", "choose another --output_dir"),
    ("--output_dir file.txt/run", "choose another --output_dir"),
    ("--output_dir /proc/hb-ssl", "choose another --output_dir"),
    ("--output_dir foreign", "not an hb-ssl run"),
    ("--output_dir foreign --overwrite", "not an hb-ssl run"),
    ("--output_dir RUN", "holds a finished run"),
    ("--output_dir run-config-text --resume", "not valid YAML"),
    ("--output_dir RUN --resume --seed 7", "other settings"),
]

CASES = [
    *[(["data", "inspect", source], message) for source, message in BAD_SOURCES],
    *[(["data", "push", s, "--repo", "me/x", "--i-may-share"], m) for s, m in BAD_SOURCES[:6]],
    *[(["data", "download", "--source", s], m) for s, m in BAD_SOURCES if ".zip" in s or not s],
    *[(["train", *TRAIN.split(), "--source", s], m) for s, m in BAD_SOURCES],
    *[(["cv", "--method", "majority", "--output_dir", "out", "--source", s], m)
      for s, m in BAD_SOURCES[2:8]],
    *[(["evaluate", "RUN", "--source", s], m) for s, m in BAD_SOURCES],
    *[(["train", *GOOD.split(), *o.split()], m) for o, m in OPTIONS],
    *[(["cv", *GOOD.split(), *o.split()], m) for o, m in OPTIONS[:8]],
    *[(line.split(), message) for line, message in [
        ("data inspect", "required"),
        ("data inspect empty more", "unrecognized"),
        ("data download", "required"),
        ("data download --source absent", "no such folder"),
        ("data push", "required"),
        ("data push few", "--repo"),
        ("data push few --repo me/x", "--i-may-share"),
        ("data push few --repo not/a/repo --i-may-share", "not/a/repo"),
        ("data push few --repo me/x --i-may-share", "me/x"),
        (f"train {TRAIN} --source one-class", "2 labelled recordings of 1 class(es)"),
        (f"train {TRAIN} --source few", "groups"),
        (f"train {TRAIN} --source few --label_mode set_b", "for label mode 'set_b'"),
        (f"train {TRAIN} --source synthetic --num_synthetic 3", "expected at least"),
        (f"train {GOOD} --split_file absent.json", "no such file"),
        (f"train {GOOD} --split_file empty", "empty"),
        (f"train {GOOD} --split_file file.txt", "not valid JSON"),
        (f"train {GOOD} --split_file list.json", "not a split file"),
        (f"train {GOOD} --split_file parts.json", "expected train, validation and test"),
        (f"train {GOOD} --split_file ids.json", "not in this task"),
        (f"cv {GOOD} --num_folds 1", "at least 2"),
        (f"cv {GOOD} --num_folds 500", "parts need 500 groups"),
        (f"cv {GOOD} --num_repeats 0", "above 0"),
        (f"cv {GOOD} --method extra_trees --output_dir file.txt/x", "--output_dir"),
        ("evaluate", "required"),
        ("evaluate file.txt", "has no model/"),
        ("evaluate empty", "has no model/"),
        ("evaluate RUN --batch_size many", "invalid int"),
        ("evaluate RUN --batch_size 0", "batch_size"),
        ("evaluate run-no-config", "config"),
        ("evaluate run-config-text", "not valid YAML"),
        ("evaluate run-config-other", "config.yaml"),
        ("evaluate run-no-splits", "splits.json"),
        ("evaluate run-splits-text", "not a split file"),
        ("evaluate run-splits-part", "splits.json"),
        ("evaluate run-splits-unknown", "a/x"),
        ("evaluate run-no-weights", "model.safetensors"),
        ("evaluate run-no-preprocessing", "has no preprocessing.json"),
        ("evaluate run-preprocessing-text", "preprocessing.json"),
        ("evaluate run-preprocessing-list", "preprocessing.json"),
        ("evaluate run-preprocessing-empty", "preprocessing.json"),
        ("evaluate run-labels", "expected the files of one model"),
        ("evaluate run-model-config", "config.json"),
        ("evaluate run-model-weights", "weights can't be loaded"),
        ("evaluate run-model-extractor", "preprocessor_config.json"),
        ("evaluate run-moved", "/nowhere/at/all"),
        ("evaluate run-in-the-way", "evaluation"),
        ("predict", "required"),
        ("predict empty --model RUN", "holds no audio file"),
        ("predict good.wav --model empty", "preprocessing.json"),
        ("predict good.wav --model file.txt", "file.txt"),
        ("predict good.wav --model no/such-model", "no/such-model"),
        ("predict good.wav --model no/such/model", "no/such/model"),
        ("predict good.wav --model run-preprocessing-text", "preprocessing.json"),
        ("predict good.wav --model run-preprocessing-list", "preprocessing.json"),
        ("predict good.wav --model run-preprocessing-empty", "preprocessing.json"),
        ("predict good.wav --model run-labels", "expected the files of one model"),
        ("predict good.wav --model run-model-config", "config.json"),
        ("predict good.wav --model run-model-weights", "weights can't be loaded"),
        ("predict good.wav --model run-model-extractor", "preprocessor_config.json"),
        ("predict good.wav --model run-no-weights", "model.safetensors"),
        ("predict good.wav --model run-no-config/model --json --csv x", "not allowed with"),
        ("predict good.wav --model RUN --csv file.txt/x.csv", "file.txt/x.csv"),
        ("predict good.wav --model RUN --csv empty", "empty"),
        ("report", "required"),
        ("report file.txt", "no such run folder"),
        ("report empty", "no metrics.json"),
        ("report run-no-config", "config.yaml"),
        ("report run-no-splits", "splits.json"),
        ("report run-no-predictions", "predictions.csv"),
        ("report run-no-data-card", "data_card.json"),
        ("report run-in-the-way", "report.html"),
        *[(f"report run-{name}", file) for name, file in [
            ("config-text", "config.yaml"), ("config-other", "config.yaml"),
            ("config-bytes", "config.yaml"), ("metrics-text", "metrics.json"),
            ("metrics-list", "metrics.json"), ("metrics-old", "metrics.json"),
            ("card-text", "data_card.json"), ("card-empty", "data_card.json"),
            ("environment-empty", "environment.json"), ("history-text", "history.json"),
            ("splits-text", "splits.json"), ("splits-part", "splits.json"),
            ("predictions-text", "predictions.csv"), ("predictions-empty", "predictions.csv"),
            ("predictions-bytes", "predictions.csv"), ("windows-text", "window_predictions.csv"),
        ]],
    ]],
]  # fmt: skip


def is_one_error_line(output: str) -> bool:
    """Log lines may come first; the last line is the error, and it is whole."""
    lines = output.strip().splitlines()
    return lines[-1].startswith("error: ") and sum(line.startswith("error") for line in lines) == 1


def name_of(argv: list[str]) -> str:
    return " ".join(argv).replace(TRAIN, "").replace("--source RECORDINGS", "")[:80]


@pytest.mark.parametrize(("argv", "message"), CASES, ids=[name_of(argv) for argv, _ in CASES])
def test_bad_input_is_one_line_and_code_2(
    argv: list[str], message: str, place: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    out = place / "out"
    try:
        assert cli.main(argv) == 2
    finally:
        shutil.rmtree(out, ignore_errors=True)
    output = capsys.readouterr()
    assert is_one_error_line(output.err), output.err
    assert message in output.err.splitlines()[-1]
    assert "Traceback" not in output.err
    assert output.out == ""


PRETRAIN = "--steps 1 --batch_pairs 2 --window_seconds 1 --mixed_precision no --output_dir out"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "corpora is empty"),
        ("--corpora absent", "no such folder"),
        ("--corpora file.txt", "no such folder"),
        ("--corpora empty", "holds no audio"),
        ("--corpora notes", "holds no audio"),
        ("--corpora text", "no file could be decoded"),
        ("--corpora pipe", "no file could be decoded"),
        ("--corpora unreadable", "no file could be decoded"),
        ("--corpora dangling", "no file could be decoded"),
        ("--corpora few few", "share their last name"),
        ("--corpora few --steps 0", "steps"),
        ("--corpora few --murmur_weight 1", "no training recording has a murmur label"),
        ("--corpora few --data_fraction 0", "above 0 and at most 1"),
        ("--corpora few --data_fraction nan", "above 0 and at most 1"),
        ("--corpora few --data_fraction 1e-9", "leaves no recording to train on"),
        ("--corpora few --learning_rate nan", "learning_rate"),
        ("--corpora few --objective magic", "invalid choice"),
        ("--corpora few --epochz 1", "epochz"),
        ("--corpora few --output_dir file.txt", "choose another --output_dir"),
        ("--corpora few --output_dir foreign", "not an hb-ssl run"),
        ("--corpora few --output_dir RUN", "holds a finished run"),
        ("--corpora few --output_dir RUN --resume", "other settings"),
        ("--corpora few --probe_pascal few", "also a corpus"),
        ("--corpora few --probe_pascal empty", "empty"),
    ],
)
def test_bad_input_of_pretraining(
    given: str, message: str, place: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    argv = [*PRETRAIN.split(), *given.split()]

    def command() -> None:
        (config,) = parse_config([PretrainConfig], argv)
        pretrain(config)

    try:
        assert cli.run_command(command) == 2
    finally:
        shutil.rmtree(place / "out", ignore_errors=True)
    output = capsys.readouterr()
    assert is_one_error_line(output.err), output.err
    assert message in output.err.splitlines()[-1]
    assert "Traceback" not in output.err


def subprocess_of(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], text=True, timeout=240, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("-m hb_ssl.cli data inspect half.zip", "not a whole zip file"),
        ("-m hb_ssl.cli predict good.wav --model run-model-weights", "weights can't be loaded"),
        ("scripts/train.py --config unknown.yaml", "unknown option 'colour'"),
        ("scripts/cross_validate.py --source empty", "no readable recording"),
        ("scripts/evaluate_run.py run-no-splits", "splits.json"),
    ],
)
def test_exit_code_of_the_real_process(command: str, message: str, place: Path) -> None:
    first, *rest = command.split()
    first = str(REPOSITORY / first) if first.startswith("scripts/") else first
    ended = subprocess_of(first, *rest, cwd=place, stdout=subprocess.PIPE)
    assert ended.returncode == 2
    assert is_one_error_line(ended.stderr), ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_output_that_nobody_reads_is_no_error(place: Path) -> None:
    command = f"{sys.executable} -m hb_ssl.cli data inspect RECORDINGS --json 2> errors | true"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shell = ["bash", "-c", f"set -o pipefail; {command}"]
    assert subprocess.run(shell, cwd=place, env=environment, timeout=240).returncode == 0
    assert "Error" not in (place / "errors").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_standard_output_on_a_full_disk(place: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess_of("-m", "hb_ssl.cli", "--help", stdout=full)
    assert ended.returncode == 2
    assert is_one_error_line(ended.stderr), ended.stderr
    assert "No space left on device" in ended.stderr


@pytest.mark.parametrize(
    ("kilobytes", "what"), [(2, "a table"), (20, "weights"), (50, "optimiser state")]
)
def test_no_room_for_a_runs_files(kilobytes: int, what: str, place: Path, tmp_path: Path) -> None:
    """The system itself refuses files above a size, as it does when a disk is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1000, kilobytes * 1000))

    out = str(tmp_path / "out")
    arguments = [*GOOD.split()[:-1], out, "--adaptation", "full", "--tracker", "none"]
    ended = subprocess_of(
        str(REPOSITORY / "scripts/train.py"), *arguments, cwd=place, stdout=subprocess.PIPE,
        preexec_fn=limit,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert is_one_error_line(ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["data", "inspect", "whole.zip"],
        ["data", "download", "--source", "challenge"],
        ["train", "--source", "synthetic", *TRAIN.split()],
        ["cv", "--source", "RECORDINGS", "--method", "extra_trees", "--output_dir", "out"],
    ],
    ids=lambda argv: argv[0] + argv[1],
)
def test_unwritable_cache(
    argv: list[str], place: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    monkeypatch.setenv("HB_SSL_CACHE", "file.txt/cache")
    assert cli.main(argv) == 2
    output = capsys.readouterr()
    assert is_one_error_line(output.err), output.err
    assert "file.txt" in output.err.splitlines()[-1]
    shutil.rmtree(place / "out", ignore_errors=True)


@pytest.mark.parametrize("source", ["challenge", "kaggle"])
def test_download_without_a_network(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sources.download_challenge, "__defaults__", ("http://127.0.0.1:9/",))
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert cli.main(["data", "download", "--source", source]) == 2
    output = capsys.readouterr()
    assert is_one_error_line(output.err), output.err


def test_a_bug_keeps_its_traceback() -> None:
    def broken() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        cli.run_command(broken)
