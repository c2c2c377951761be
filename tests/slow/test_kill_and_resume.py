"""kill -9 at random moments of train and cv, then --resume: the same result as without.

    bash scripts/test.sh -m slow tests/slow/test_kill_and_resume.py
    HB_SSL_KILL_ROUNDS=50 bash scripts/test.sh -m slow tests/slow/test_kill_and_resume.py

HB_SSL_KILL_ROUNDS (default 8) is the number of rounds of each command; a round kills up to three
times. HB_SSL_KILL_SEED (default 0) chooses the moments.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.files import read_json
from hb_ssl.inference import HeartSoundClassifier
from tests.integration.conftest import make_backbone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("HB_SSL_KILL_ROUNDS", "8"))
SEED = int(os.environ.get("HB_SSL_KILL_SEED", "0"))
KILLS = 3

# Imports everything once, then forks a process for each command: a start costs milliseconds.
SERVER = """
import json, os, sys
import hb_ssl.cross_validation, hb_ssl.report, hb_ssl.training
from hb_ssl import cli
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os._exit(cli.main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Runs ``hb-ssl`` commands as processes of their own, and kills them."""

    def __init__(self, cache: Path) -> None:
        self.errors = (cache.parent / "errors.txt").open("w+")
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True,
            env={**os.environ, "HB_SSL_CACHE": str(cache), "OMP_NUM_THREADS": "1",
                 "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip

    def run(self, arguments: list[str], kill_after: float | None = None) -> int:
        """Exit code; -9 if it was killed before its end."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps(arguments) + "\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # a finished process is still waited for: no other pid
        return int(self.server.stdout.readline())

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2000:]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    running = Commands(tmp_path_factory.mktemp("kill") / "cache")
    yield running
    running.server.stdin.close()
    running.server.wait()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("given")
    source = write_synthetic_dataset(folder / "pcg", 60, seed=1)
    backbone = make_backbone("audio-spectrogram-transformer", folder / "ast")
    return [
        "--source", str(source), "--backbone", str(backbone), "--window_seconds", "1",
        "--hop_seconds", "1", "--epochs", "3", "--windows_per_recording", "1", "--batch_size", "4",
        "--mixup_alpha", "0.3", "--early_stopping_patience", "0", "--save_steps", "2",
    ]  # fmt: skip


def interrupted(
    commands: Commands, arguments: list[str], seconds: float, rng: np.random.Generator
) -> int:
    """Starts, kills up to ``KILLS`` times, resumes to the end; returns how often it was killed."""
    kills = 0
    resume: list[str] = []
    for _ in range(KILLS):
        if commands.run([*arguments, *resume], kill_after=float(rng.uniform(0, seconds))) == -9:
            kills += 1
        resume = ["--resume"]
        if rng.random() < 0.4:
            break
    assert commands.run([*arguments, *resume]) == 0, commands.said()
    return kills


def rows_of(run: Path) -> list[tuple[str, ...]]:
    with (run / "predictions.csv").open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert len(set(rows)) == len(rows), "a row twice"
    return rows


def leftovers(run: Path) -> list[Path]:
    return [
        p for p in run.rglob("*") if p.name.endswith((".tmp", ".part")) or "checkpoint" in p.name
    ]


def test_train(commands: Commands, options: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    arguments = ["train", *options, "--output_dir"]
    assert commands.run([*arguments, str(tmp_path / "warm")]) == 0, commands.said()  # fills caches
    started = time.monotonic()
    assert commands.run([*arguments, str(whole)]) == 0, commands.said()
    seconds = time.monotonic() - started
    expected = load_file(whole / "model/model.safetensors")
    kills = 0
    for number in range(ROUNDS):
        run = tmp_path / f"run-{number}"
        rng = np.random.default_rng([SEED, number])
        kills += interrupted(commands, [*arguments, str(run)], seconds, rng)
        got = load_file(run / "model/model.safetensors")
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, got[name]), f"round {number}: {name}"
        assert rows_of(run) == rows_of(whole)
        assert read_json(run / "history.json") == read_json(whole / "history.json")
        assert (
            read_json(run / "metrics.json")["recording"]
            == (read_json(whole / "metrics.json")["recording"])
        )
        assert (run / "report.html").is_file()
        assert leftovers(run) == []
        HeartSoundClassifier.from_pretrained(run)
    print(f"{ROUNDS} rounds of train, {kills} kills")
    assert kills >= ROUNDS / 2


@pytest.mark.parametrize("method", ["fine_tune", "logistic_regression"])
def test_cross_validation(
    method: str, commands: Commands, options: list[str], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    arguments = ["cv", *options, "--epochs", "1", "--method", method, "--num_folds", "2",
                 "--num_repeats", "2", "--tracker", "none", "--output_dir"]  # fmt: skip
    assert commands.run([*arguments, str(tmp_path / "warm")]) == 0, commands.said()
    started = time.monotonic()
    assert commands.run([*arguments, str(whole)]) == 0, commands.said()
    seconds = time.monotonic() - started
    kills = 0
    for number in range(ROUNDS):
        run = tmp_path / f"run-{number}"
        rng = np.random.default_rng([SEED, 1000 + number])
        kills += interrupted(commands, [*arguments, str(run)], seconds, rng)
        assert rows_of(run) == rows_of(whole)
        assert (
            read_json(run / "metrics.json")["recording"]
            == (read_json(whole / "metrics.json")["recording"])
        )
        assert leftovers(run) == []
    print(f"{ROUNDS} rounds of cv {method}, {kills} kills")
    assert kills >= ROUNDS / 2
