"""How time and memory grow with the number of recordings, their length, and the processes.

    python benchmarks/scale.py

Everything is simulated. Each row is a fresh process; CPU time is what an idle core needs, elapsed
time also says what else the machine did. Prediction and preparation run on one core, fine-tuning
on as many as it has processes. Writes ``benchmarks/results/scale.json`` and ``.md``.
"""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from inference_speed import REPOSITORY, RESULTS, run
from tqdm import tqdm

from hb_ssl.cli import run_command
from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.runs import describe_environment

LENGTHS = {"10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600, "2 h": 7200}
LONG_RATE, SHORT_RATE, SHORT_SECONDS = 44_100, 4000, 5.0
FILES = (10, 100, 1000)
RECORDINGS = (40, 400)
PREPARE = {
    "read and hash": "from hb_ssl.data.pascal import list_recordings as f; "
    "r = f(sys.argv[1]).recordings",
    "search for shared audio": "from hb_ssl.data.pascal import list_recordings as f; "
    "from hb_ssl.data.duplicates import find_duplicates; "
    "find_duplicates(f(sys.argv[1]).recordings)",
    "decode to 2 kHz": "from hb_ssl.data.pascal import list_recordings as f; "
    "from hb_ssl.data.dataset import waveform_dataset; "
    "waveform_dataset(f(sys.argv[1]).recordings, 2000)",
}
TRAIN_OPTIONS = [
    "--num_synthetic", "60", "--max_steps", "16", "--tracker", "none", "--batch_size", "8",
    "--overwrite",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    cores = os.sched_getaffinity(0)
    content: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "HB_SSL_CACHE": str(folder / "cache"),
            "ACCELERATE_USE_CPU": "true",
        }
        os.sched_setaffinity(0, {min(cores)})
        content["length"] = measure_lengths(folder)
        content["files"] = measure_files(folder)
        content["preparation"] = measure_preparation(folder)
        os.sched_setaffinity(0, cores)
        content["processes"] = measure_processes(folder)
    content["environment"] = {**describe_environment(), "command": ["scale.py"]}
    content["cores_for_fine_tuning"] = len(cores)
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "scale.json", content)
    write_text_atomic(RESULTS / "scale.md", table(content))
    print(table(content))


def measure_lengths(folder: Path) -> dict[str, dict[str, float]]:
    """`hb-ssl predict` of one recording, mono, 44.1 kHz, 16 bits."""
    rng = np.random.default_rng(0)
    minute, _ = simulate_recording("murmur", 60.0, LONG_RATE, rng, "stethoscope")
    rows = {}
    path = folder / "long.wav"
    for name, seconds in tqdm(LENGTHS.items(), desc="lengths", disable=None):
        with sf.SoundFile(path, "w", LONG_RATE, 1, "PCM_16") as file:
            for start in range(0, seconds, 60):
                file.write(minute[: min(seconds - start, 60) * LONG_RATE])
        rows[name] = {**predict(path), "decoded_mb": seconds * LONG_RATE * 4 / 2**20}
    path.unlink()
    return rows


def measure_files(folder: Path) -> dict[str, dict[str, float]]:
    """`hb-ssl predict` of a folder of short recordings."""
    rng = np.random.default_rng(0)
    waveform, _ = simulate_recording("normal", SHORT_SECONDS, SHORT_RATE, rng, "stethoscope")
    rows = {}
    for count in tqdm(FILES, desc="files", disable=None):
        inside = folder / f"files{count}"
        inside.mkdir()
        for number in range(count):
            sf.write(inside / f"{number}.wav", waveform, SHORT_RATE)
        rows[str(count)] = predict(inside)
    return rows


def predict(path: Path) -> dict[str, float]:
    return run([sys.executable, "-m", "hb_ssl.cli", "predict", str(path)])


def measure_preparation(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What training does to recordings before the first step, stage by stage."""
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in PREPARE}
    for count in RECORDINGS:
        source = write_synthetic_dataset(folder / f"pcg{count}", count, seed=0)
        for name, code in tqdm(PREPARE.items(), desc=f"{count} recordings", disable=None):
            command = [sys.executable, "-c", f"import sys; {code}", str(source)]
            rows[name][str(count)] = run(command)
    return rows


def measure_processes(folder: Path) -> dict[str, dict[str, float]]:
    """The same number of windows a step in total, fine-tuned by 1 and by 2 processes."""
    train = [str(REPOSITORY / "scripts" / "train.py"), *TRAIN_OPTIONS]
    launchers = {
        "1": [sys.executable, *train],
        "2": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
              "2", *train, "--batch_size", "4"],
    }  # fmt: skip
    rows = {}
    for name, command in tqdm(launchers.items(), desc="processes", disable=None):
        out = folder / f"run{name}"
        rows[name] = run([*command, "--output_dir", str(out)])
        rows[name]["train_seconds"] = read_json(out / "metrics.json")["run"]["train_seconds"]
    return rows


def table(content: dict[str, Any]) -> str:
    """Markdown."""
    head = "cpu (s) | elapsed (s) | peak memory (MB) |"
    lines = [
        "# Growth of time and memory",
        "",
        "Simulated recordings; every row is a fresh process, so about 2.5 s and 700 MB of each are "
        "Python and PyTorch. Made by `python benchmarks/scale.py`.",
        "", "## Length of one recording (`hb-ssl predict`, 44.1 kHz)", "",
        f"| length | decoded at once it would hold (MB) | {head}", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in content["length"].items():
        lines.append(f"| {name} | {row['decoded_mb']:.0f} | {_cells(row)} |")
    lines += ["", f"## Number of recordings (`hb-ssl predict`, {SHORT_SECONDS:g} s each)", "",
              f"| recordings | {head}", "|---|---|---|---|"]  # fmt: skip
    lines += [f"| {name} | {_cells(row)} |" for name, row in content["files"].items()]
    lines += ["", "## Preparation of a training source", "",
              "The exponent is that of the growth from the row above, of the CPU time beyond the "
              "start of Python (1 is proportional, 2 is quadratic).", "",
              f"| stage | recordings | {head} exponent |", "|---|---|---|---|---|---|"]  # fmt: skip
    start = min(row[str(RECORDINGS[0])]["cpu"] for row in content["preparation"].values())
    for name, row in content["preparation"].items():
        before = None
        for count in RECORDINGS:
            here = (count, max(row[str(count)]["cpu"] - start, 0.0))
            exponent = _exponent(before, here) if before is not None else ""
            lines.append(f"| {name} | {count} | {_cells(row[str(count)])} | {exponent} |")
            before = here
    lines += ["", "## Processes of one fine-tuning run", "",
              f"{content['cores_for_fine_tuning']} cores, the same windows a step in total: "
              f"`scripts/train.py {' '.join(TRAIN_OPTIONS)}`, "
              "for two under `torchrun --nproc_per_node 2` with half the batch each. CPU time is "
              "that of all processes, memory that of the largest.", "",
              f"| processes | training alone (s) | {head}", "|---|---|---|---|---|"]  # fmt: skip
    for name, row in content["processes"].items():
        lines.append(f"| {name} | {row['train_seconds']:.1f} | {_cells(row)} |")
    return "\n".join([*lines, ""])


def _exponent(before: tuple[int, float], here: tuple[int, float]) -> str:
    if min(before[1], here[1]) < 0.1:  # seconds; less is noise
        return "-"
    return f"{math.log(here[1] / before[1]) / math.log(here[0] / before[0]):.2f}"


def _cells(row: dict[str, float]) -> str:
    return f"{row['cpu']:.1f} | {row['elapsed']:.1f} | {row['peak_mb']:.0f}"


if __name__ == "__main__":
    sys.exit(run_command(main))
