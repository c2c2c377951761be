"""kill -9 at random moments, then the same command again: the same result as without.

    bash scripts/test.sh -m slow tests/slow/test_kill_and_resume.py
    HB_SSL_KILL_ROUNDS=50 bash scripts/test.sh -m slow tests/slow/test_kill_and_resume.py

HB_SSL_KILL_ROUNDS (default 8) is the number of rounds of each command (of cv a quarter: its rounds
are many runs); a round kills up to three times, every fourth one begins without a cache.
HB_SSL_KILL_SEED (default 0) chooses the moments; HB_SSL_KILL_RESULTS names a JSON file for the
counts.
"""

import copy
import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.files import read_json
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.pretraining.checkpoint import read_checkpoint
from tests.hub_server import WRITER, HubServer
from tests.integration.conftest import make_backbone
from tests.slow.killing import ROUNDS, SEED, Commands, Tally, interrupted, write_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def counted() -> dict[str, Tally]:
    return {}


@pytest.fixture
def tallies(counted: dict[str, Tally]) -> Iterator[dict[str, Tally]]:
    yield counted
    name, tally = list(counted.items())[-1]
    print(f"{name}: {tally.rounds} rounds, {tally.kills} kills, {tally.cold} without a cache")
    write_results(counted)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    running = Commands(tmp_path_factory.mktemp("kill"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(tmp_path_factory.mktemp("given") / "pcg", 60, seed=1)


@pytest.fixture(scope="module")
def options(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    backbone = make_backbone("audio-spectrogram-transformer", tmp_path_factory.mktemp("ast") / "m")
    return [
        "--source", str(recordings), "--backbone", str(backbone), "--window_seconds", "1",
        "--hop_seconds", "1", "--epochs", "3", "--windows_per_recording", "1", "--batch_size", "4",
        "--mixup_alpha", "0.3", "--early_stopping_patience", "0", "--save_steps", "2",
    ]  # fmt: skip


def rounds(
    commands: Commands,
    arguments: list[str],
    tally: Tally,
    folder: Path,
    seed: int,
    check: Callable[[Path], None],
    count: int = ROUNDS,
) -> None:
    """Interrupted runs of a command that ends with its run folder."""
    for number in range(count):
        run, cold = folder / f"run-{number}", folder / f"cache-{number}"
        rng = np.random.default_rng([SEED, seed, number])
        interrupted(
            commands, [*arguments, str(run)], tally, rng,
            cold_cache=cold if number % 4 == 3 else None,
        )  # fmt: skip
        check(run)
        assert half_written(run) == []
        tally.rounds += 1
        shutil.rmtree(run)
        shutil.rmtree(cold, ignore_errors=True)
    assert tally.kills >= count / 2


def rows_of(run: Path) -> list[tuple[str, ...]]:
    with (run / "predictions.csv").open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert len(set(rows)) == len(rows), "a row twice"
    return rows


def half_written(run: Path) -> list[Path]:
    return [p for p in run.rglob("*") if p.name.endswith((".tmp", ".part"))]


def assert_same_tensors(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def test_train(
    commands: Commands, options: list[str], tmp_path: Path, tallies: dict[str, Tally]
) -> None:
    whole = tmp_path / "whole"
    arguments = ["train", *options, "--output_dir"]
    commands.timed([*arguments, str(tmp_path / "warm")])  # fills caches
    tally = tallies["train"] = Tally(commands.timed([*arguments, str(whole)]))
    expected = load_file(whole / "model/model.safetensors")

    def check(run: Path) -> None:
        assert_same_tensors(load_file(run / "model/model.safetensors"), expected)
        assert rows_of(run) == rows_of(whole)
        assert read_json(run / "history.json") == read_json(whole / "history.json")
        scores = [read_json(folder / "metrics.json")["recording"] for folder in (run, whole)]
        assert scores[0] == scores[1]
        assert (run / "report.html").is_file()
        assert not (run / "checkpoints").exists()
        HeartSoundClassifier.from_pretrained(run)

    rounds(commands, arguments, tally, tmp_path, 0, check)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("windows_per_second", "model_gflops", "mfu", "train_seconds")
    return [{name: row[name] for name in row if name not in timed} for row in history]


def test_pretrain(
    commands: Commands, recordings: Path, tmp_path: Path, tallies: dict[str, Tally]
) -> None:
    whole = tmp_path / "whole"
    arguments = [
        "pretrain", "--corpora", str(recordings), "--window_seconds", "1", "--num_mel_bins", "8",
        "--hidden_size", "16", "--num_layers", "2", "--num_heads", "2", "--steps", "40",
        "--batch_pairs", "4", "--log_steps", "2", "--eval_steps", "4", "--objective",
        "agreement_distillation", "--simulated_weight", "1", "--num_simulated", "20",
        "--simulated_batch", "4", "--mixed_precision", "no", "--output_dir",
    ]  # fmt: skip
    commands.timed([*arguments, str(tmp_path / "warm")])
    tally = tallies["pretrain"] = Tally(commands.timed([*arguments, str(whole)]))
    expected = read_checkpoint(whole)
    assert expected is not None

    def check(run: Path) -> None:
        got = read_checkpoint(run)
        assert got is not None and got["step"] == expected["step"]
        assert_same_tensors(got["model"], expected["model"])
        for number, state in expected["optimiser"]["state"].items():
            assert_same_tensors(got["optimiser"]["state"][number], state)
        weights = [load_file(folder / "backbone/model.safetensors") for folder in (run, whole)]
        assert_same_tensors(*weights)
        histories = [read_json(folder / "history.json") for folder in (run, whole)]
        assert without_times(histories[0]) == without_times(histories[1])
        assert (run / "backbone/README.md").is_file()

    rounds(commands, arguments, tally, tmp_path, 2000, check)


def test_predict(
    commands: Commands, recordings: Path, tmp_path: Path, tallies: dict[str, Tally]
) -> None:
    """Killed, it leaves no table or a whole one; resumed, it makes the same one."""
    whole = tmp_path / "whole.csv"
    arguments = ["predict", str(recordings / "set_b"), "--csv"]
    tally = tallies["predict"] = Tally(commands.timed([*arguments, str(whole)]))
    expected = whole.read_bytes()
    for number in range(ROUNDS):
        table = tmp_path / f"{number}.csv"

        def absent_or_whole(table: Path = table) -> None:
            assert not table.exists() or table.read_bytes() == expected

        rng = np.random.default_rng([SEED, 3000, number])
        interrupted(
            commands, [*arguments, str(table)], tally, rng, after_kill=absent_or_whole
        )  # fmt: skip
        assert table.read_bytes() == expected
        assert {p for p in tmp_path.iterdir() if p.name.startswith(table.name)} == {table}
        tally.rounds += 1
        table.unlink()
    assert tally.kills >= ROUNDS / 2


def test_push(
    commands: Commands,
    options: list[str],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tallies: dict[str, Tally],
) -> None:
    """The repository has its old files or all of the new ones; pushed again, it has the new."""
    old, new = tmp_path / "old", tmp_path / "new"
    commands.timed(["train", *options, "--epochs", "1", "--output_dir", str(old)])
    shutil.copytree(old, new)
    weights = bytearray((new / "model/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (new / "model/model.safetensors").write_bytes(weights)
    hub = HubServer()
    pusher = Commands(
        tmp_path_factory.mktemp("push"), HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1",
        HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0", HF_TOKEN=WRITER,
        NO_PROXY="127.0.0.1,localhost",
    )  # fmt: skip
    try:
        pusher.timed(["push", str(old), "--repo", "tiny/old"])
        stored = dict(hub.objects)
        seconds = pusher.timed(["push", str(new), "--repo", "tiny/old"])
        tally = tallies["push"] = Tally(seconds)
        before, *_, last = hub.repos["models", "tiny/old"].commits.items()
        first = list(hub.repos["models", "tiny/old"].commits.items())[1]
        contents = [{n: c for n, (c, _) in files.items()} for _, files in (first, last)]
        contents = [{n: c for n, c in files.items() if n != "README.md"} for files in contents]
        assert contents[0] != contents[1] and before
        for number in range(ROUNDS):
            name = f"tiny/round-{number}"
            hub.objects.clear()
            hub.objects.update(stored)
            exists = number % 2 == 0  # else the push makes the repository, too
            if exists:
                repo = copy.deepcopy(hub.repos["models", "tiny/old"])
                repo.branches["main"] = first[0]
                del repo.commits[last[0]]
                hub.repos["models", name] = repo

            def files(name: str = name) -> dict[str, bytes]:
                found = hub.files(name) if ("models", name) in hub.repos else {}
                return {file: content for file, content in found.items() if file != "README.md"}

            def old_or_new(exists: bool = exists) -> None:
                nothing = ({}, {".gitattributes": contents[0][".gitattributes"]})
                assert files() in ((contents[0],) if exists else nothing) or files() == contents[1]

            rng = np.random.default_rng([SEED, 4000, number])
            interrupted(
                pusher, ["push", str(new), "--repo", name], tally, rng, resume=(),
                after_kill=old_or_new,
            )  # fmt: skip
            assert files() == contents[1]
            assert f"# round-{number}" in hub.files(name)["README.md"].decode()
            expected_commits = 3 if exists else 2  # made, (old,) new: none twice
            assert len(hub.repos["models", name].commits) == expected_commits
            tally.rounds += 1
    finally:
        pusher.close()
        hub.close()
    assert tally.kills >= ROUNDS / 2


@pytest.mark.parametrize("method", ["fine_tune", "logistic_regression"])
def test_cross_validation(
    method: str,
    commands: Commands,
    options: list[str],
    tmp_path: Path,
    tallies: dict[str, Tally],
) -> None:
    whole = tmp_path / "whole"
    arguments = ["cv", *options, "--epochs", "1", "--method", method, "--num_folds", "2",
                 "--num_repeats", "2", "--tracker", "none", "--output_dir"]  # fmt: skip
    commands.timed([*arguments, str(tmp_path / "warm")])
    tally = tallies[f"cv {method}"] = Tally(commands.timed([*arguments, str(whole)]))

    def check(run: Path) -> None:
        assert rows_of(run) == rows_of(whole)
        scores = [read_json(folder / "metrics.json")["recording"] for folder in (run, whole)]
        assert scores[0] == scores[1]
        assert not list(run.rglob("checkpoints"))

    rounds(commands, arguments, tally, tmp_path, 1000, check, max(ROUNDS // 4, 2))
