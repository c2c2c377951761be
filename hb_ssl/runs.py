"""Run folders: who may write into one, what continues it, and what it ran on."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hb_ssl.config import read_yaml, save_config
from hb_ssl.errors import UserError
from hb_ssl.files import file_sha256, read_json, run_lock, write_json_atomic
from hb_ssl.processes import processes

logger = logging.getLogger(__name__)

SEAL_FILE = "checksums.json"  # the last file of a checkpoint
RESULT_FILE = "metrics.json"  # written last: a run that has it is finished
UNCOMPARED_SETTINGS = {"resume", "overwrite", "output_dir"}
PACKAGES = (
    "torch", "torchaudio", "transformers", "datasets", "accelerate", "peft", "evaluate",
    "numpy", "scipy", "scikit-learn", "soundfile",
)  # fmt: skip


@contextmanager
def open_run(folder: Path, resume: bool, overwrite: bool, *configs: Any) -> Iterator[bool]:
    """Claims a run folder and writes the resolved ``config.yaml``.

    Yields:
        True when ``resume`` finds a finished run: there is nothing left to do.

    Raises:
        UserError: the folder holds another run, other settings are resumed, or another process
            works in it.
    """
    state = processes()
    with run_lock(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            _claim(folder, resume, overwrite, configs)
        state.wait_for_everyone()
        yield resume and (folder / RESULT_FILE).is_file()


def _claim(folder: Path, resume: bool, overwrite: bool, configs: tuple[Any, ...]) -> None:
    config_file = folder / "config.yaml"
    others = [path for path in folder.iterdir() if path.name != ".lock"]
    if others and not config_file.is_file():
        raise UserError(
            f"{folder}: holds files that are not an hb-ssl run; choose an empty --output_dir"
        )
    if overwrite and not resume:
        for path in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif others and not resume:
        finished = (folder / RESULT_FILE).is_file()
        raise UserError(
            f"{folder}: holds {'a finished' if finished else 'an interrupted'} run; choose another "
            f"--output_dir, or {'' if finished else '--resume to continue it, '}--overwrite to "
            "replace it"
        )
    elif others:
        changed = _changed_settings(read_yaml(config_file), configs)
        if changed:
            raise UserError(
                f"{folder}: --resume with other settings than the run has ({', '.join(changed)}); "
                f"give the same ones, e.g. --config {config_file} --resume"
            )
        for path in list(folder.rglob(".*.tmp")):  # what a killed process was writing
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    save_config(config_file, *configs)


def changed_data(plan: Path) -> UserError:
    """Why a run can't go on whose split or folds, kept in ``plan``, are others by now."""
    return UserError(
        f"{plan}: --resume, but the recordings or their groups have changed since, so what was "
        "trained on could be tested on; put the source back as it was, or begin again with "
        "--overwrite"
    )


def _changed_settings(saved: dict[str, Any], configs: tuple[Any, ...]) -> list[str]:
    now: dict[str, Any] = {}
    before: dict[str, Any] = {}  # a setting that is newer than the run had its default
    for config in configs:
        now.update(dataclasses.asdict(config))
        before.update({field.name: field.default for field in dataclasses.fields(config)})
    before.update(saved)
    return sorted(
        name
        for name, value in now.items()
        if name not in UNCOMPARED_SETTINGS and before[name] != value
    )


def seal_checkpoint(folder: str | Path) -> None:
    """Writes the SHA-256 of every file of a checkpoint; done last, so it also says: whole."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    write_json_atomic(folder / SEAL_FILE, sums)


def damaged_file(checkpoint: Path) -> str | None:
    """The first file of a sealed checkpoint that is not as it was written, ``None`` if all are."""
    try:
        sums = dict(read_json(checkpoint / SEAL_FILE))
    except (UserError, TypeError, ValueError):
        return SEAL_FILE
    for name, expected in sums.items():
        try:
            found = file_sha256(checkpoint / name)
        except OSError:
            return name
        if found != expected:
            return name
    return None


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end and is still as it was written.

    One that a killed process was writing is removed. A damaged one is removed too if there is an
    earlier one to go on from, which the log then says.

    Raises:
        UserError: there are damaged checkpoints only.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        if not (checkpoint / SEAL_FILE).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)
            continue
        name = damaged_file(checkpoint)
        if name is not None:
            damaged[checkpoint] = name
            continue
        for broken, file in damaged.items():
            logger.warning(
                "%s: damaged since it was written; going on from %s", broken / file, checkpoint.name
            )
            shutil.rmtree(broken, ignore_errors=True)
        return str(checkpoint)
    for broken, file in damaged.items():
        raise UserError(
            f"{broken / file}: damaged since it was written, and there is no earlier checkpoint; "
            "restore the file, or start again with --overwrite instead of --resume"
        )
    return None


def remove_checkpoints(run: Path) -> None:
    """Removes ``run/checkpoints`` of a finished run.

    Renamed first, to a name that ``--resume`` cleans up: killed half way through, the rest of a
    checkpoint would look like a damaged one.
    """
    checkpoints, doomed = run / "checkpoints", run / ".checkpoints.tmp"
    shutil.rmtree(doomed, ignore_errors=True)
    if checkpoints.is_dir():
        checkpoints.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def shareable_command(words: list[str]) -> str:
    """A command without the names of local folders, each cut to its last part."""
    local = [Path(word).is_absolute() or word.startswith(".") for word in words]
    return " ".join(Path(w).name if is_path else w for w, is_path in zip(words, local))


def describe_environment() -> dict[str, Any]:
    """Versions, device and command of this run (JSON-able)."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "processes": processes().num_processes,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
