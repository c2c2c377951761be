"""A full disk, a cache that can only be read, no network: one line, and nothing lost."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hb_ssl import cli
from hb_ssl.config import parse_config
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import pretrain


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 200 kB; ``grow`` and ``read_only`` change it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(disk: Path) -> None:
    mount("-o", "remount,size=64m", str(disk))


def read_only(disk: Path) -> None:
    mount("-o", "remount,ro", str(disk))


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.startswith("error") for line in lines].count(True) == 1, lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_training_goes_on_when_there_is_room_again(
    options: list[str], run: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", *options, "--output_dir", str(disk / "run")]
    assert cli.main(arguments) == 2
    said = error_line(capsys)  # torch knows of no reason
    assert "No space left on device" in said or "a file can't be written" in said
    assert not (disk / "run/metrics.json").exists()
    grow(disk)
    assert cli.main([*arguments, "--resume"]) == 0
    assert (disk / "run/predictions.csv").read_text() == (run / "predictions.csv").read_text()
    assert (disk / "run/model/model.safetensors").read_bytes() == (
        run / "model/model.safetensors"
    ).read_bytes()


def test_pretraining_goes_on_when_there_is_room_again(
    recordings: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(folder: Path, *more: str) -> int:
        (config,) = parse_config(
            [PretrainConfig],
            ["--corpora", str(recordings), "--window_seconds", "1", "--num_mel_bins", "8",
             "--hidden_size", "32", "--num_layers", "2", "--num_heads", "2", "--steps", "4",
             "--batch_pairs", "4", "--log_steps", "1", "--eval_steps", "1", "--mixed_precision",
             "no", "--output_dir", str(folder), *more],
        )  # fmt: skip
        return cli.run_command(lambda: pretrain(config) and None)

    assert command(disk / "run") == 2
    assert "error" in error_line(capsys)
    assert not (disk / "run/metrics.json").exists()
    grow(disk)
    assert command(disk / "run", "--resume") == 0
    assert command(tmp_path / "whole") == 0
    weights = [f / "backbone/model.safetensors" for f in (disk / "run", tmp_path / "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_table_on_a_full_disk(
    run: Path, recordings: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filler = fill(disk)
    arguments = ["predict", str(recordings / "set_a"), "--model", str(run)]
    table, pictures = disk / "x.csv", disk / "pictures"
    assert cli.main([*arguments, "--csv", str(table)]) == 2
    assert "No space left on device" in error_line(capsys)
    assert cli.main([*arguments, "--plot", str(pictures)]) == 2
    assert "No space left on device" in error_line(capsys)
    assert not table.exists()
    filler.unlink()
    assert cli.main([*arguments, "--csv", str(table), "--resume"]) == 0
    assert sorted(path.name for path in disk.iterdir()) in (["pictures", "x.csv"], ["x.csv"])


def test_a_full_cache_and_one_that_can_only_be_read(
    options: list[str], recordings: Path, cache: Path, disk: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HB_SSL_CACHE", str(disk / "cache"))
    once = [*options, "--epochs", "1"]
    assert cli.main(["train", *once, "--output_dir", str(tmp_path / "full")]) == 2
    assert "No space left on device" in error_line(capsys)
    grow(disk)
    assert cli.main(["train", *once, "--output_dir", str(tmp_path / "a")]) == 0
    read_only(disk)
    # What is cached is used; what is not is refused in one line.
    assert cli.main(["train", *once, "--output_dir", str(tmp_path / "b")]) == 0
    other = tmp_path / "other"
    shutil.copytree(recordings, other)
    next((other / "set_a").glob("*.wav")).unlink()
    arguments = [str(other) if word == str(recordings) else word for word in once]
    capsys.readouterr()
    assert cli.main(["train", *arguments, "--output_dir", str(tmp_path / "c")]) == 2
    assert "Read-only file system" in error_line(capsys)


def test_output_that_can_only_be_read(
    run: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow(disk)
    shutil.copytree(run, disk / "run")
    read_only(disk)
    for arguments in (
        ["evaluate", str(disk / "run")],
        ["report", str(disk / "run")],
        ["train", "--output_dir", str(disk / "new")],
        ["export", str(disk / "run"), str(disk / "onnx")],
        ["predict", str(disk / "absent.wav"), "--csv", str(disk / "x.csv")],
    ):
        assert cli.main(arguments) == 2, arguments
        assert "Read-only file system" in error_line(capsys), arguments
