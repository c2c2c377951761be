"""Windows a second and peak memory: pre-training windows from shards against the mapped corpus.

    python benchmarks/streaming.py --corpora PHYSIONET_DIR/training-f

Writes small shards, makes 4 and 16 times as many of them (the same files under other
names), and draws pairs as the training loop does, without a model, until every shard was read once.
Memory is the peak of a fresh process (a fork of one that has only imported) above what it held
before it opened the data; what is mapped counts as far as it was touched. On a busy machine look at
the windows per second of CPU time.
Writes ``benchmarks/results/streaming.{json,md}``.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from hb_ssl.cli import run_command
from hb_ssl.data.shards import write_shards
from hb_ssl.files import write_json_atomic, write_text_atomic
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.windows import load_data, train_sampler
from hb_ssl.runs import describe_environment

RESULTS = Path(__file__).parent / "results"
SHARD_MB, COPIES = 0.25, (1, 4, 16)
PAIRS, POOL = 32, 64
COLUMNS = (
    "objective", "data", "copies", "train_shards", "processes", "threads", "pairs_per_recording",
    "windows", "windows_per_second", "windows_per_cpu_second", "peak_mb",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        content = compare(arguments.corpora, Path(scratch))
    write_json_atomic(RESULTS / "streaming.json", content)
    write_text_atomic(RESULTS / "streaming.md", table(content))
    print(table(content))


def compare(corpora: list[str], scratch: Path) -> dict[str, Any]:
    """All rows, each in fresh processes."""
    started = time.process_time()
    summary = write_shards(corpora, scratch / "x1", SHARD_MB)
    written = time.process_time() - started
    recordings = summary["train"]["recordings"]
    folders = {copies: str(copy_shards(scratch, copies)) for copies in COPIES}
    rows = []

    def row(objective: str, copies: int = 0, **changes: Any) -> None:
        settings = {"objective": objective, "world": 1, "threads": 1, "each": 1, **changes}
        settings["steps"] = -(-recordings * max(copies, 1) * settings["each"] // PAIRS)
        settings["steps"] //= settings["world"]
        made = run([folders[copies]] if copies else corpora, scratch, settings)
        data = {"data": "shards" if copies else "mapped", "copies": max(copies, 1)}
        rows.append({"objective": objective, **data, **made})
        print(rows[-1], flush=True)

    for objective in ("agreement", "wav2vec2"):
        run(corpora, scratch, {"objective": objective, "world": 1, "threads": 1, "each": 1,
                               "steps": 1})  # decodes, and computes the features  # fmt: skip
        row(objective)
        row(objective, 1)
    for copies in COPIES[1:]:
        row("agreement", copies)
    row("agreement", 1, each=4)
    row("agreement", 4, threads=2)
    row("agreement", 4, world=2)
    return {
        "pairs": PAIRS, "pool_recordings": POOL, "shards": summary,
        "write_cpu_seconds": round(written, 2), "rows": rows,
        "environment": describe_environment() | {"command": ["streaming.py", "--corpora", "DIR"]},
    }  # fmt: skip


def copy_shards(scratch: Path, copies: int) -> Path:
    """The shards of ``x1`` again and again under other names; the held-out ones once."""
    target = scratch / f"x{copies}"
    if copies == 1:
        return target
    target.mkdir()
    for path in (scratch / "x1").glob("*.parquet"):
        for copy in range(copies if path.name.startswith("train") else 1):
            os.link(path, target / path.name.replace("-", f"-{copy:02d}-"))
    return target


def run(corpora: list[str], scratch: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One new process a rank, which share nothing but the cache; their windows add up."""
    world = settings["world"]
    os.environ["HB_SSL_CACHE"] = str(scratch / "cache")
    with ProcessPoolExecutor(world, multiprocessing.get_context("fork")) as workers:
        futures = [workers.submit(measure, corpora, rank=rank, **settings) for rank in range(world)]
        parts = [future.result() for future in futures]
    windows, seconds, cpu = (sum(p[n] for p in parts) for n in ("windows", "seconds", "cpu"))
    return {
        "train_shards": parts[0]["train_shards"],
        "processes": world,
        "threads": settings["threads"],
        "pairs_per_recording": settings["each"],
        "windows": windows,
        "windows_per_second": round(windows / seconds * world, 1),
        "windows_per_cpu_second": round(windows / cpu, 1),
        "peak_mb": max(p["peak_mb"] for p in parts),
    }


def measure(
    corpora: list[str], objective: str, rank: int, world: int, threads: int, each: int, steps: int
) -> dict[str, Any]:
    """Draws ``steps`` batches in this process."""
    config = PretrainConfig(
        corpora=corpora, objective=objective, batch_pairs=PAIRS, pool_recordings=POOL,
        pairs_per_recording=each, reader_threads=threads,
    )  # type: ignore[arg-type]  # fmt: skip
    before = peak_mb()
    data = load_data(config)
    started, cpu = time.monotonic(), time.process_time()
    sampler = train_sampler(data, config, rank, world, None)
    windows = sum(2 * sampler.batch(step, PAIRS).views.shape[1] for step in range(steps))
    return {
        "train_shards": 0 if data.stream is None else data.stream.num_shards,
        "windows": windows,
        "seconds": time.monotonic() - started,
        "cpu": time.process_time() - cpu,
        "peak_mb": round(peak_mb() - before, 1),
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(content: dict[str, Any]) -> str:
    """Markdown: one row a setting."""
    shards = content["shards"]["train"]
    lines = [
        "# Streaming from shards against a mapped corpus",
        "",
        f"{shards['recordings']} training recordings, {shards['hours']:.1f} h, "
        f"{shards['bytes'] / 1e6:.1f} MB in {shards['shards']} shards (x 1); every shard is read "
        f"about once. {content['pairs']} pairs a batch, {content['pool_recordings']} recordings in "
        "the pool of a reader. peak_mb: of one process, above the start. Where windows_per_second "
        "is far below windows_per_cpu_second, the machine was busy with other programs. "
        "Made by `benchmarks/streaming.py`.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(str(row[c]) for c in COLUMNS) + " |" for row in content["rows"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
