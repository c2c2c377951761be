"""Decoding, resampling and caching all PASCAL recordings: here, and with datasets + librosa.

    python benchmarks/data_loading.py --source DIR [--repeats 1]

Each side is a process of its own that loads once with an empty cache and then three times with
the cache that this filled. Ours is what a training run waits for: the list of recordings
with hashes and headers, the search for shared audio, groups and the data card (``prepare_task``),
and the waveforms. The other way is ``datasets``: ``map`` with ``librosa.load``, cached by
``load_from_cache_file``; it looks for no shared audio and checks nothing. Times leave imports out.
Writes ``benchmarks/results/data_loading.{json,md}``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
RATES = (2000,)  # Hz: of the bundled backbone
STEPS = ("prepare_task", "waveforms", "read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", choices=("ours", "plain"), help="measure one run in this process")
    parser.add_argument("--rate", type=int)
    arguments = parser.parse_args()
    if arguments.side:
        load = load_ours if arguments.side == "ours" else load_plain
        order = ("first", "second", "second", "second")
        print(json.dumps([{"run": n, **load(arguments.source, arguments.rate)} for n in order]))
        return
    from hb_ssl.files import write_json_atomic, write_text_atomic
    from hb_ssl.runs import describe_environment

    environment = describe_environment()
    environment["command"] = ["data_loading.py", "--source", "DIR"]
    runs = measure(arguments.source, arguments.repeats)
    content = {"environment": environment, "medians": medians(runs), "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "data_loading.json", content)
    write_text_atomic(RESULTS / "data_loading.md", table(content))
    print(table(content))


def measure(source: str, repeats: int) -> list[dict[str, Any]]:
    """Runs of both sides, each with a cache of its own that is empty at first."""
    runs = []
    for repeat in range(repeats):
        for rate in RATES:
            with tempfile.TemporaryDirectory() as cache:
                places = {"HB_SSL_CACHE": f"{cache}/ours", "HF_DATASETS_CACHE": f"{cache}/plain"}
                for side in ("ours", "plain"):
                    made = subprocess.run(
                        [sys.executable, __file__, "--source", source, "--side", side, "--rate",
                         str(rate)],
                        env={**os.environ, **places, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
                        stdout=subprocess.PIPE, check=True,
                    )  # fmt: skip
                    for row in json.loads(made.stdout.splitlines()[-1]):
                        runs.append({"side": side, "rate": rate, "repeat": repeat, **row})
    return runs


def load_ours(source: str, rate: int) -> dict[str, Any]:
    """Seconds until a task is ready, until its waveforms are, and to read each of them once."""
    from hb_ssl.data.dataset import Waveforms, waveform_dataset
    from hb_ssl.data.task import prepare_task

    clock = Clock()
    task = prepare_task(source, "merge")
    clock.lap("prepare_task")
    recordings = list(task.recordings.values())
    waveforms = Waveforms(waveform_dataset(recordings, rate))
    clock.lap("waveforms")
    samples = sum(len(waveforms[recording.recording_id]) for recording in recordings)
    clock.lap("read")
    return {**clock.result(), "recordings": len(recordings), "samples": samples}


def load_plain(source: str, rate: int) -> dict[str, Any]:
    """The same with ``datasets`` and librosa."""
    import datasets
    import librosa

    clock = Clock()
    paths = sorted(str(path) for path in Path(source).rglob("*.wav"))
    clock.lap("prepare_task")
    listed = datasets.Dataset.from_dict({"path": paths})

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return {"waveform": librosa.load(row["path"], sr=rate)[0]}

    folder = Path(os.environ["HF_DATASETS_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    made = listed.map(
        decode,
        cache_file_name=str(folder / f"{rate}.arrow"),
        load_from_cache_file=True,
        writer_batch_size=32,
    ).with_format("numpy")
    clock.lap("waveforms")
    samples = sum(len(row["waveform"]) for row in made)
    clock.lap("read")
    return {**clock.result(), "recordings": len(paths), "samples": samples}


class Clock:
    """Wall and CPU seconds of the steps of a run."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, step: str) -> None:
        now = time.perf_counter(), time.process_time()
        wall, cpu = (after - before for before, after in zip(self._last, now))
        self.steps[step] = {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
        self._last = now

    def result(self) -> dict[str, Any]:
        return {"steps": self.steps}


def medians(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a rate, side and run: median wall and CPU seconds of every step and of their sum."""
    rows = []
    for key in sorted({(r["rate"], r["run"], r["side"]) for r in runs}):
        own = [r["steps"] for r in runs if (r["rate"], r["run"], r["side"]) == key]
        row: dict[str, Any] = dict(zip(("rate", "run", "side"), key))
        for unit in ("seconds", "cpu_seconds"):
            steps = {s: statistics.median(run[s][unit] for run in own) for s in STEPS}
            total = statistics.median(sum(run[s][unit] for s in STEPS) for run in own)
            row[unit] = {s: round(v, 3) for s, v in {**steps, "total": total}.items()}
        rows.append(row)
    return rows


def table(content: dict[str, Any]) -> str:
    """Markdown: one row a rate, run and side."""
    one = content["runs"][0]
    lines = [
        f"# Loading {one['recordings']} recordings",
        "",
        "First: with an empty cache; second: the median of three more times with that cache; "
        "seconds of wall time, in brackets of CPU time, since other programs ran on this machine. "
        "Imports are left out. Made by `benchmarks/data_loading.py`.",
        "",
        "| rate | run | side | list, hashes, shared audio, groups | waveforms | read all once | "
        "total |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"ours": "hb_ssl", "plain": "datasets + librosa"}
    for row in content["medians"]:
        cells = [
            f"{row['seconds'][s]:.2f} ({row['cpu_seconds'][s]:.2f})" for s in (*STEPS, "total")
        ]
        lines.append(
            f"| {row['rate']} Hz | {row['run']} | {names[row['side']]} | {' | '.join(cells)} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
