"""Shards: written from folders, streamed by several readers and processes, resumed exactly."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from datasets import Audio, Dataset

from hb_ssl import cli
from hb_ssl.audio import load_audio
from hb_ssl.data.corpora import is_held_out, load_corpus, to_int16
from hb_ssl.data.shards import ROW_GROUP_BYTES, open_shards, write_shards
from hb_ssl.errors import UserError
from hb_ssl.files import read_json
from hb_ssl.models.wav2vec2 import small_feature_extractor
from hb_ssl.pretraining import stream
from hb_ssl.pretraining.checkpoint import read_checkpoint
from hb_ssl.pretraining.inputs import LogMelInputs, WaveformInputs
from hb_ssl.pretraining.run import pretrain
from hb_ssl.pretraining.stream import StreamSampler, decode_audio
from tests.integration.helpers import interrupt_pretraining
from tests.integration.test_pretraining import RATE, tiny, write_patients

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENTS = range(24)
SHARD_MB = 0.03  # three recordings of 10 kB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("corpus") / "beats", PATIENTS)


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    write_shards([folder], folder.parent / "shards", SHARD_MB, held_out_fraction=0.45)
    return folder.parent / "shards"


def rows_of(paths: list[Path]) -> list[dict]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def sampler(shards: Path, inputs=None, rank: int = 0, world: int = 1, **changes) -> StreamSampler:
    settings = {
        "threads": 2, "pool_recordings": 6, "num_pairs": 4, "pairs_per_recording": 2,
        "max_tempo_change": 0.05, "seed": 0, **changes,
    }  # fmt: skip
    train = open_shards([str(shards)])["train"]
    return StreamSampler(train, inputs or LogMelInputs(1.0, 8), rank, world, **settings)


def test_shards_hold_every_recording_once_with_its_bytes(folder: Path, shards: Path) -> None:
    parts = {name: sorted(shards.glob(f"{name}-*.parquet")) for name in ("train", "validation")}
    rows = {name: rows_of(paths) for name, paths in parts.items()}
    everything = rows["train"] + rows["validation"]
    assert {row["recording_id"] for row in everything} == {
        f"beats/{path.stem}" for path in folder.glob("*.wav")
    }
    assert len(everything) == 2 * len(PATIENTS)
    for row in everything:
        patient = row["recording_id"].split("/")[1].split("_")[0]
        assert row["audio"]["bytes"] == (folder / row["audio"]["path"]).read_bytes()
        assert row["subject"] == f"circor2022/{patient}"
        assert row["murmur"] == ("Present" if int(patient) % 4 < 2 else "Absent")
        assert (row["sampling_rate"], row["num_samples"]) == (RATE, 5000)
    for name, held_out in (("train", False), ("validation", True)):
        assert all(is_held_out(row["subject"], 0.45) is held_out for row in rows[name])
    summary = read_json(shards / "shards.json")
    assert summary["train"]["recordings"] == len(rows["train"])
    assert summary["train"]["shards"] == len(parts["train"]) > 4
    assert summary["train"]["hours"] == pytest.approx(len(rows["train"]) * 2.5 / 3600, abs=1e-4)
    sizes = [sum(len(r["audio"]["bytes"]) for r in rows_of([p])) for p in parts["train"]]
    largest = max(len(row["audio"]["bytes"]) for row in everything)
    assert all(SHARD_MB * 1e6 <= size < SHARD_MB * 1e6 + largest for size in sizes[:-1])
    # Mixed: the first shard is not the first patients.
    assert (
        sorted(r["recording_id"] for r in rows_of(parts["train"][:1]))
        != sorted(r["recording_id"] for r in rows["train"])[: len(rows_of(parts["train"][:1]))]
    )


def test_a_bad_file_is_left_out_and_long_shards_have_small_row_groups(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 600_000)
    (tmp_path / "in").mkdir()
    for number in range(6):
        sf.write(tmp_path / f"in/{number}.wav", noise, RATE)
    (tmp_path / "in/broken.wav").write_bytes(b"no audio")
    summary = write_shards([tmp_path / "in"], tmp_path / "out", 100)
    assert (summary["train"]["recordings"], summary["train"]["shards"]) == (6, 1)
    metadata = pq.read_metadata(tmp_path / "out/train-000000.parquet")
    assert metadata.num_row_groups == -(-6 // -(-ROW_GROUP_BYTES // 1_200_044))


def test_command_line_writes_shards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    arguments = ["data", "shards", str(folder), "--out", str(out), "--shard-mb", "0.1"]
    assert cli.main(arguments) == 0
    assert "train: 48 recordings" not in capsys.readouterr().out  # some are held out
    assert read_json(out / "shards.json")["shard_mb"] == 0.1
    assert cli.main(arguments) == 2
    assert "exists; expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["log_mel", "waveform"])
def test_streamed_windows_are_those_of_the_decoded_corpus(
    folder: Path, shards: Path, tmp_path: Path, kind: str
) -> None:
    inputs = (
        LogMelInputs(1.0, 8)
        if kind == "log_mel"
        else WaveformInputs(1.0, small_feature_extractor())
    )
    corpus = load_corpus([folder], RATE, tmp_path)
    mapped = inputs.of_corpus(corpus, tmp_path)
    at = {r.recording_id: i for i, r in enumerate(corpus.recordings)}
    train = open_shards([str(shards)])["train"]
    recordings = stream._recordings(train, inputs, 0, 0, None)
    for recording in itertools.islice(recordings, 10):
        expected = mapped.window(at[recording.recording_id], 7, inputs.length)
        np.testing.assert_array_equal(recording.windows.window(0, 7, inputs.length), expected)
        assert recording.subject == corpus.recordings[at[recording.recording_id]].subject


def test_long_recordings_give_a_random_minute(tmp_path: Path) -> None:
    ramp = np.linspace(-0.9, 0.9, int(100 * RATE))
    sf.write(tmp_path / "long.wav", ramp, RATE)
    content = (tmp_path / "long.wav").read_bytes()
    first, second = (decode_audio(content, RATE, np.random.default_rng(s)) for s in (0, 1))
    assert len(first) == len(second) == 60 * RATE
    assert first[0] != second[0]
    whole = to_int16(load_audio(tmp_path / "long.wav")[0])
    offset = int(np.flatnonzero(whole == first[0])[0])
    assert abs(whole[offset : offset + len(first)].astype(int) - first).max() <= 1


def test_readers_share_the_shards_and_reorder_them_every_epoch(shards: Path) -> None:
    train = open_shards([str(shards)])["train"]
    inputs = LogMelInputs(1.0, 8)
    num = train.num_shards
    seen = []
    for reader in range(3):
        part = stream.split_dataset_by_node(train, reader, 3, "shards")
        length = sum(1 for _ in part)
        recordings = stream._recordings(part, inputs, 0, 0, None)
        first = [r.recording_id for r in itertools.islice(recordings, length)]
        assert len(set(first)) == length
        seen.append(set(first))
    assert num >= 3
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(list(train))
    recordings = stream._recordings(train, inputs, 0, 0, None)
    epochs = [
        [r.recording_id for r in itertools.islice(recordings, len(list(train)))] for _ in "ab"
    ]
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]


def test_batches_come_from_distinct_subjects_and_know_murmurs(shards: Path) -> None:
    drawn = sampler(shards)
    for step in range(12):
        pairs = drawn.batch(step, 4)
        assert pairs.views.shape == (2, 4, LogMelInputs(1.0, 8).length, 8)
        assert len(set(pairs.subjects)) == 4
        for subject, murmur in zip(pairs.subjects, pairs.murmur):
            assert murmur == (int(subject.split("/")[1]) % 4 < 2)


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_sampler_goes_on_from_its_state(shards: Path, stop: int) -> None:
    whole = sampler(shards)
    expected = [whole.batch(step, 4) for step in range(stop + 24)]  # over two epochs of a reader
    broken = sampler(shards)
    for step in range(stop):
        broken.batch(step, 4)
    state = json.loads(json.dumps(broken.state()))
    resumed = sampler(shards, state=state)
    for step in range(stop, stop + 24):
        pairs = resumed.batch(step, 4)
        assert torch.equal(pairs.views, expected[step].views)
        assert pairs.subjects == expected[step].subjects
    assert any(s["epoch"] > 0 for s in resumed.state())


def streamed(shards: Path | str, output: Path, **changes):
    return tiny(Path("x"), output, corpora=[str(shards)], pool_recordings=8, **changes)


@pytest.mark.parametrize("objective", ["agreement", "wav2vec2"])
def test_a_streamed_run_keeps_no_corpus_and_resumes_exactly(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hb_ssl.pretraining.probe.NUM_FOLDS", 2)
    changes = {"objective": objective, "steps": 6, "eval_steps": 3}
    if objective == "agreement":
        changes["murmur_weight"] = 1.0
    whole = pretrain(streamed(shards, tmp_path / "whole", **changes))
    assert not list((tmp_path / "cache").rglob("*"))
    with monkeypatch.context() as patch:
        # four batches of the first validation are among the nine
        interrupt_pretraining(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            pretrain(streamed(shards, tmp_path / "broken", **changes))
    assert read_checkpoint(tmp_path / "broken")["step"] == 3
    resumed = pretrain(streamed(shards, tmp_path / "broken", resume=True, **changes))
    states = [read_checkpoint(folder) for folder in (whole, resumed)]
    assert states[0]["step"] == states[1]["step"] == 6
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], rtol=0, atol=0)
    stands = [[(r["epoch"], r["batch"]) for r in state["readers"][0]] for state in states]
    assert stands[0] == stands[1]
    last = read_json(resumed / "history.json")[-1]
    assert {"validation_loss", "probe/circor_murmur/last"} < set(last)
    result = read_json(resumed / "metrics.json")["recordings"]
    assert result["train_shards"] == len(list(shards.glob("train-*")))
    assert "streamed from" in (resumed / "backbone/README.md").read_text()


@pytest.mark.slow
def test_two_processes_stream_disjoint_shards(shards: Path, tmp_path: Path) -> None:
    """And train one model on them, with nothing in the cache."""
    script = tmp_path / "spy.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from hb_ssl.pretraining import stream\n"
        "from hb_ssl.processes import processes\n"
        "from hb_ssl.pretraining.run import pretrain\n"
        "from tests.integration.test_streaming import streamed\n"
        "seen, original = [], stream.PairSampler.batch\n"
        "def batch(self, step, num_pairs):\n"
        "    if num_pairs < 256:  # else the windows that fit the extractor\n"
        "        held = getattr(self._features, '_recordings')\n"
        "        seen.extend(r.recording_id for r in held if r.epoch == 0)\n"
        "    return original(self, step, num_pairs)\n"
        "stream.PairSampler.batch = batch\n"
        "shards, output = sys.argv[1:]\n"
        "pretrain(streamed(shards, Path(output) / 'run', steps=16, eval_steps=16,\n"
        "                  held_out_fraction=0.0, reader_threads=1))\n"
        "rank = processes().process_index\n"
        "(Path(output) / f'{rank}.json').write_text(json.dumps(sorted(set(seen))))\n"
    )
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script),
         str(shards), str(tmp_path)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": str(REPOSITORY), "HB_SSL_CACHE": str(tmp_path / "cache")},
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    held_out = {r["recording_id"] for r in rows_of(sorted(shards.glob("validation-*")))}
    parts = [set(read_json(tmp_path / f"{rank}.json")) - held_out for rank in (0, 1)]
    assert all(parts) and not parts[0] & parts[1]
    train = {r["recording_id"] for r in rows_of(sorted(shards.glob("train-*")))}
    assert parts[0] | parts[1] == train
    assert not list((tmp_path / "cache").rglob("*.npy"))
    state = read_checkpoint(tmp_path / "run")
    assert len(state["readers"]) == 2
    assert read_json(tmp_path / "run/metrics.json")["environment"]["processes"] == 2


def test_any_parquet_with_audio_will_do(folder: Path, tmp_path: Path) -> None:
    rows = {"audio": [{"bytes": p.read_bytes(), "path": p.name} for p in folder.glob("*.wav")]}
    rows["audio"][3]["bytes"] = b"no audio"
    table = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))
    table.add_column("age", list(range(48))).to_parquet(tmp_path / "data.parquet")
    drawn = sampler(tmp_path / "*.parquet", threads=1)
    for step in range(15):
        pairs = drawn.batch(step, 4)
        assert len(set(pairs.subjects)) == 4
        assert rows["audio"][3]["path"] not in pairs.subjects
        assert set(pairs.murmur) == {-1}


def test_bad_sources_and_settings(shards: Path, folder: Path, tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["x"]}).to_parquet(tmp_path / "text.parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train-0.parquet").write_bytes(b"PAR1 no parquet")
    for sources, message in (
        ([str(shards), str(folder)], "is no shard; expected audio folders alone"),
        ([str(tmp_path / "*.nothing.parquet")], "no such shards"),
        ([str(tmp_path / "text.parquet")], "has no column `audio` but text"),
        ([str(tmp_path / "broken")], "can't be opened as shards"),
        (["hub:a/b", "hub:c/d"], "expected one hub:ORG/NAME"),
        (["hub:nobody/nothing"], "can't be opened as shards"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_shards(sources)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected a shard for each"):
        sampler(shards, threads=200)
    with pytest.raises(UserError, match="at least batch_pairs"):
        sampler(shards, pool_recordings=3)
    with pytest.raises(UserError, match="shards are streamed whole"):
        pretrain(streamed(shards, tmp_path / "run", data_fraction=0.5))
    with pytest.raises(UserError, match="expected the same number"):
        sampler(shards, threads=1, state=[stream.START] * 2)
    with pytest.raises(UserError, match="shard_mb 0"):
        write_shards([folder], tmp_path / "out", 0)


def test_shards_without_a_readable_recording(tmp_path: Path) -> None:
    rows = {"audio": [{"bytes": b"no audio", "path": "x.wav"}] * 3}
    Dataset.from_dict(rows).cast_column("audio", Audio(decode=False)).to_parquet(
        tmp_path / "data.parquet"
    )
    with pytest.raises(UserError, match="no recording that can be decoded"):
        sampler(tmp_path, threads=1).batch(0, 4)
