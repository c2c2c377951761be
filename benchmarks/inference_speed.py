"""Time and memory of a prediction, against a pipeline of transformers, on one CPU core.

    python benchmarks/inference_speed.py

Ours is the bundled classifier: from the file to the verdict with heart rate, signal quality and
heart-sound gate. The other side is ``transformers.pipeline("audio-classification")`` with a model
of wav2vec2-base's shape and RANDOM weights (speed does not depend on them). Both get the same WAV
files of 10 s, take turns, and use one core and one thread. Times are CPU time, which is what an
idle core needs; the elapsed time stands beside it, and says more about what else the machine did.
Writes ``benchmarks/results/inference_speed.json`` and ``.md``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from hb_ssl.cli import run_command
from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.files import write_json_atomic, write_text_atomic
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.runs import describe_environment

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
SECONDS, RATES = 10.0, (4000, 44_100)
PIPELINE = "transformers pipeline, wav2vec2-base shape, RANDOM weights"
PIPELINE_SCRIPT = """
import sys, soundfile, torch
from transformers import pipeline
torch.set_num_threads(1)
waveform, rate = soundfile.read(sys.argv[2], dtype="float32")
print(pipeline("audio-classification", sys.argv[1])({"raw": waveform, "sampling_rate": rate}))
"""
# The peak of a process counts from that of the one that started it, so a small one has to do it.
LAUNCHER = """
import os, sys, time
started = time.perf_counter()
null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=null)
_, status, usage = os.wait4(pid, 0)
cpu = usage.ru_utime + usage.ru_stime
print(status, cpu, time.perf_counter() - started, usage.ru_maxrss)
"""
TARGETS = {
    "times as fast as the pipeline": 20.0,
    "ms from file to verdict": 50.0,
    "s to `hb-ssl --help`": 0.5,
    "s to the first prediction": 4.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of everybody (5)")
    parser.add_argument("--files", type=int, default=60, help="recordings in a row (60)")
    arguments = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # also for the processes started below
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        content = measure(Path(scratch), arguments.rounds, arguments.files)
    content["environment"] = {
        **describe_environment(),
        "command": ["inference_speed.py", *sys.argv[1:]],
    }
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "inference_speed.json", content)
    write_text_atomic(RESULTS / "inference_speed.md", table(content))
    print(table(content))


def measure(folder: Path, rounds: int, num_files: int) -> dict[str, Any]:
    files = {rate: write_recording(folder / f"{rate}.wav", rate) for rate in RATES}
    cli = [sys.executable, "-m", "hb_ssl.cli"]
    run([*cli, "export", str(save_bundled(folder)), str(folder / "onnx"), "--int8"])
    speech, parameters = save_wav2vec2(folder / "wav2vec2")
    one = str(files[44_100])
    onnx = ["--model", str(folder / "onnx"), "--runtime"]
    commands = {
        "hb-ssl --help": [*cli, "--help"],
        "hb-ssl predict (torch)": [*cli, "predict", one],
        "hb-ssl predict (ONNX fp32)": [*cli, "predict", one, *onnx, "onnx"],
        "hb-ssl predict (ONNX int8)": [*cli, "predict", one, *onnx, "onnx-int8"],
        PIPELINE: [sys.executable, "-c", PIPELINE_SCRIPT, str(speech), one],
    }
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            starts[name].append(run(command))
    return {
        "recording_seconds": SECONDS,
        "rounds": rounds,
        "pipeline_parameters": parameters,
        "cold_start": {name: medians(rows) for name, rows in starts.items()},
        **measure_warm(folder, files, speech, rounds, num_files),
    }


def measure_warm(
    folder: Path, files: dict[int, Path], speech: Path, rounds: int, num_files: int
) -> dict[str, Any]:
    """Everybody in this process, already loaded, taking turns."""
    from transformers import pipeline

    ours = {
        "hb-ssl (torch)": HeartSoundClassifier.from_pretrained(),
        "hb-ssl (ONNX fp32)": HeartSoundClassifier.from_pretrained(folder / "onnx", None, "onnx"),
        "hb-ssl (ONNX int8)": HeartSoundClassifier.from_pretrained(
            folder / "onnx", None, "onnx-int8"
        ),
    }
    theirs = pipeline("audio-classification", str(speech))

    def ask_pipeline(path: Path) -> None:
        waveform, rate = sf.read(path, dtype="float32")
        theirs({"raw": waveform, "sampling_rate": rate})

    askers: dict[str, Callable[[Path], Any]] = {
        **{name: classifier.predict for name, classifier in ours.items()},
        PIPELINE: ask_pipeline,
    }
    whole = {f"{name}, {rate} Hz": (ask, path) for name, ask in askers.items()
             for rate, path in files.items()}  # fmt: skip
    window = ours["hb-ssl (torch)"].make_features.window
    windows = np.random.default_rng(0).standard_normal((3, window)).astype(np.float32)
    samples = torch.randn(1, round(SECONDS * 16_000))

    def run_speech_model(values: torch.Tensor) -> None:
        with torch.inference_mode():
            theirs.model(values)

    alone: dict[str, tuple[Callable[[Any], Any], Any]] = {
        **{name: (classifier.window_logits, windows) for name, classifier in ours.items()},
        PIPELINE: (run_speech_model, samples),
    }
    many = [files[RATES[number % len(RATES)]] for number in range(num_files)]
    row = {}
    for name, classifier in ours.items():
        spent = timed(lambda paths, c=classifier: list(c.predict_each(paths)), many)
        row[name] = {key: value / num_files for key, value in spent.items()}
    return {
        "whole_path_ms": take_turns(whole, rounds),
        "model_part_ms": take_turns(alone, rounds),
        "files_in_a_row": num_files,
        "seconds_per_1000": {  # a thousandfold of milliseconds a file is seconds a thousand
            name: {key: round(value, 1) for key, value in values.items()}
            for name, values in row.items()
        },
    }


def take_turns(
    jobs: dict[str, tuple[Callable[[Any], Any], Any]], rounds: int
) -> dict[str, dict[str, float]]:
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, (ask, argument) in jobs.items():
            times = timed(ask, argument)
            if number:  # the first round warms up
                spent[name].append(times)
    return {name: medians(rows) for name, rows in spent.items()}


def timed(ask: Callable[[Any], Any], argument: Any) -> dict[str, float]:
    """Milliseconds."""
    cpu, elapsed = time.process_time(), time.perf_counter()
    ask(argument)
    return {
        "cpu": (time.process_time() - cpu) * 1e3,
        "elapsed": (time.perf_counter() - elapsed) * 1e3,
    }


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def run(command: list[str]) -> dict[str, float]:
    """CPU and elapsed seconds and peak resident megabytes of a fresh process.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True, check=True
    )
    status, cpu, elapsed, peak_kb = map(float, done.stdout.split())
    if status:
        raise RuntimeError(f"{command}: exit status {status:g}: {done.stderr}")
    return {"cpu": cpu, "elapsed": elapsed, "peak_mb": peak_kb / 1024}


def write_recording(path: Path, rate: int) -> Path:
    rng = np.random.default_rng(0)
    waveform, _ = simulate_recording("murmur", SECONDS, rate, rng, "stethoscope")
    sf.write(path, waveform, rate)
    return path


def save_bundled(folder: Path) -> Path:
    """The bundled classifier's folder, as `hb-ssl export` wants one to be named."""
    from hb_ssl.inference import locate_classifier

    link = folder / "bundled"
    link.symlink_to(locate_classifier())
    return link


def save_wav2vec2(folder: Path) -> tuple[Path, int]:
    """A randomly initialised model of wav2vec2-base's shape with four classes."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=4))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder, sum(parameter.numel() for parameter in model.parameters())


def table(content: dict[str, Any]) -> str:
    """Markdown."""
    whole, alone = content["whole_path_ms"], content["model_part_ms"]
    start, row = content["cold_start"], content["seconds_per_1000"]
    first, help_ = start["hb-ssl predict (torch)"], start["hb-ssl --help"]
    slowest = max(whole[f"hb-ssl (torch), {rate} Hz"]["cpu"] for rate in RATES)
    fewest = min(whole[f"{PIPELINE}, {rate} Hz"]["cpu"]
                 / whole[f"hb-ssl (torch), {rate} Hz"]["cpu"] for rate in RATES)  # fmt: skip
    reached = dict(zip(TARGETS, (fewest, slowest, help_["cpu"], first["cpu"]), strict=True))
    lines = [
        "# Speed of a prediction",
        "",
        f"{content['recording_seconds']:g} s recordings, one CPU core, one thread, medians of "
        f"{content['rounds']} alternating rounds. `cpu` is CPU time, what an idle core needs; "
        "`elapsed` was measured on a machine that also did other work. The pipeline's model has "
        f"{content['pipeline_parameters'] / 1e6:.0f} M parameters and RANDOM weights.",
        "Made by `python benchmarks/inference_speed.py`.",
        "",
        "| target | wanted | measured (cpu) | reached |",
        "|---|---|---|---|",
    ]
    for name, wanted in TARGETS.items():
        good = reached[name] >= wanted if "times" in name else reached[name] <= wanted
        sign = ">=" if "times" in name else "<="
        lines.append(
            f"| {name} | {sign} {wanted:g} | {reached[name]:.3g} | {'yes' if good else 'no'} |"
        )
    lines += [
        "", "## From file to verdict, loaded", "",
        "| what | cpu (ms) | elapsed (ms) | times as fast as the pipeline (cpu) |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name, times in whole.items():
        rate = name.rsplit(", ", 1)[1]
        ratio = whole[f"{PIPELINE}, {rate}"]["cpu"] / times["cpu"]
        lines.append(f"| {name} | {times['cpu']:.1f} | {times['elapsed']:.1f} | {ratio:.1f} |")
    lines += ["", "## Features and model alone", "", "| what | cpu (ms) | elapsed (ms) |",
              "|---|---|---|"]  # fmt: skip
    lines += [f"| {n} | {t['cpu']:.1f} | {t['elapsed']:.1f} |" for n, t in alone.items()]
    lines += [
        "", "## Many recordings", "",
        f"Seconds per 1,000 recordings, from {content['files_in_a_row']} in a row, half at each "
        "rate.", "", "| what | cpu (s) | elapsed (s) |", "|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {n} | {t['cpu']:.1f} | {t['elapsed']:.1f} |" for n, t in row.items()]
    lines += [
        "", "## A fresh process, to its end", "",
        "| what | cpu (s) | elapsed (s) | peak memory (MB) |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {name} | {t['cpu']:.2f} | {t['elapsed']:.2f} | {t['peak_mb']:.0f} |"
        for name, t in start.items()
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run_command(main))
