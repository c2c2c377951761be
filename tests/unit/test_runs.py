"""Run folders: who may write into one, and what an interrupted run leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from hb_ssl.config import TrainConfig, save_config
from hb_ssl.errors import UserError
from hb_ssl.files import write_text_atomic
from hb_ssl.runs import (
    last_complete_checkpoint,
    open_run,
    remove_checkpoints,
    seal_checkpoint,
)

CONFIG = TrainConfig(epochs=3)


def start(folder: Path, resume: bool = False, overwrite: bool = False) -> bool:
    with open_run(folder, resume, overwrite, CONFIG) as finished:
        return finished


def test_an_interrupted_run_is_only_resumed_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder) is False
    with pytest.raises(UserError, match="an interrupted run; .*--resume to continue it"):
        start(folder)
    assert start(folder, resume=True) is False
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="a finished run; choose another"):
        start(folder)
    assert start(folder, resume=True) is True


def test_a_run_from_before_a_setting_existed_had_its_default(tmp_path: Path) -> None:
    start(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith("keep_fraction")))
    start(tmp_path / "run", resume=True)


def test_other_settings_are_named(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with (
        pytest.raises(UserError, match=r"other settings than the run has \(epochs, seed\)"),
        open_run(tmp_path / "run", True, False, TrainConfig(epochs=4, seed=9)),
    ):
        pass


def test_overwrite_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    start(tmp_path / "run")
    (tmp_path / "run/model").mkdir()
    (tmp_path / "run/model/x").write_text("old")
    (tmp_path / "beside").write_text("kept")
    assert start(tmp_path / "run", overwrite=True) is False
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "config.yaml"}
    assert (tmp_path / "beside").is_file()


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(UserError, match="not an hb-ssl run"):
        start(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.docx").is_file()


def test_half_written_files_of_a_killed_process_go_on_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start(folder)
    for name in (".metrics.json.77.tmp", "seed-0-fold-1/.predictions.csv.77.tmp"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    (folder / ".model.77.tmp").mkdir()
    (folder / ".model.77.tmp/config.json").write_text("half")
    start(folder, resume=True)
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
    assert (folder / "seed-0-fold-1").is_dir()


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c",
         "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
         "print('held', flush=True); time.sleep(60)", str(folder / ".lock")],
        stdout=subprocess.PIPE, text=True, cwd=(folder.mkdir() or tmp_path),
    )  # fmt: skip
    try:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing there"):
            start(folder)
    finally:
        other.kill()  # -9: the system releases the lock
        other.wait()
    assert start(folder) is False


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    made = folder / f"checkpoint-{step}"
    (made / "deep").mkdir(parents=True)
    (made / "optimizer.pt").write_bytes(bytes(range(256)) * 8)
    (made / "deep/trainer_state.json").write_text("{}")
    if sealed:
        seal_checkpoint(made)
    return made


def test_checkpoint_without_its_last_file_is_not_used(tmp_path: Path) -> None:
    for step in (2, 10, 12):
        checkpoint(tmp_path, step, sealed=step != 12)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    assert last_complete_checkpoint(tmp_path / "absent") is None
    checkpoint(tmp_path / "only", 4, sealed=False)
    assert last_complete_checkpoint(tmp_path / "only") is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b""),  # as a lost power supply leaves it
        ("optimizer.pt", bytes(range(256)) * 7),
        ("optimizer.pt", bytes(2048)),
        ("optimizer.pt", bytes(range(256)) * 7 + bytes(range(255)) + b"\xfe"),  # one bit
        ("optimizer.pt", None),
        ("deep/trainer_state.json", b"{"),
        ("checksums.json", b'{"optimizer.pt": '),
        ("checksums.json", b"[1]"),
        ("checksums.json", b"\xff\xfe"),
    ],
)
def test_damaged_checkpoints_are_left_out_by_name(
    name: str, content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint(tmp_path, 2)
    file = checkpoint(tmp_path, 4) / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert f"{file}: damaged since it was written; going on from checkpoint-2" in caplog.text
    assert not file.parent.is_dir()
    only = tmp_path / "only"
    alone = checkpoint(only, 8) / "optimizer.pt"
    alone.write_bytes(b"half")
    with pytest.raises(
        UserError, match="no earlier checkpoint; restore the file, or .*--overwrite"
    ):
        last_complete_checkpoint(only)
    assert alone.is_file(), "nothing is thrown away where nothing else is left"


def test_checkpoints_go_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it removes them, a run must not find half a checkpoint and call it damaged."""
    checkpoint(tmp_path / "run/checkpoints", 2)
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors=False: None)  # killed there
    remove_checkpoints(tmp_path / "run")
    monkeypatch.undo()
    assert last_complete_checkpoint(tmp_path / "run/checkpoints") is None
    save_config(tmp_path / "run/config.yaml", CONFIG)
    start(tmp_path / "run", resume=True)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "config.yaml"}
    remove_checkpoints(tmp_path / "run")  # none there: fine


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_atomic(tmp_path / "x.json", "old")

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_text_atomic(tmp_path / "x.json", "new content")
    monkeypatch.undo()
    assert (tmp_path / "x.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
