"""Fuzzes `load_audio`: valid files of many formats, damaged at random, in a process of their own.

    python benchmarks/fuzz_load_audio.py --inputs 100000

Every input must be decoded to finite samples or be refused with a UserError. Anything else is a
failure: another exception, a crash of the decoder (the parent sees the signal and goes on behind
that input), one input that takes longer than 20 s, or more than 6 GB of memory. Input number i
depends on the seed and i alone, so `--only i` shows one again.
"""

import argparse
import io
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

FORMATS = [
    ("WAV", "PCM_16", 4000), ("WAV", "PCM_U8", 4000), ("WAV", "PCM_24", 4000),
    ("WAV", "FLOAT", 4000), ("WAV", "IMA_ADPCM", 4000), ("WAV", "MS_ADPCM", 4000),
    ("WAV", "ALAW", 4000), ("WAV", "GSM610", 8000), ("WAVEX", "PCM_16", 4000),
    ("FLAC", "PCM_16", 4000), ("FLAC", "PCM_24", 4000), ("OGG", "VORBIS", 8000),
    ("OGG", "OPUS", 8000), ("MP3", "MPEG_LAYER_III", 8000), ("AIFF", "PCM_16", 4000),
    ("AU", "PCM_16", 4000), ("W64", "PCM_16", 4000), ("RF64", "PCM_16", 4000),
    ("CAF", "PCM_16", 4000),
]  # fmt: skip
INTERESTING = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
HEADER_BYTES = 128  # most mutations go here: the samples themselves can do little harm
SECONDS = 0.25
RATES = (None, 2000, 16_000)
MAX_SECONDS = 20  # for one input
MAX_MEMORY = 6 * 1024**3
BATCH = 5000  # inputs a process


def seed_files() -> list[bytes]:
    """One small valid file of every format, mono and stereo."""
    files = []
    for format_, subtype, rate in FORMATS:
        for channels in (1, 2):
            if subtype == "GSM610" and channels == 2:
                continue
            noise = np.random.default_rng(0).uniform(-0.5, 0.5, (round(SECONDS * rate), channels))
            buffer = io.BytesIO()
            sf.write(buffer, noise, rate, format=format_, subtype=subtype)
            files.append(buffer.getvalue())
    return files


def mutated(files: list[bytes], rng: np.random.Generator) -> bytes:
    """A file with one to eight random changes."""
    data = bytearray(files[int(rng.integers(len(files)))])
    for _ in range(int(rng.integers(1, 9))):
        reach = min(len(data), HEADER_BYTES) if rng.random() < 0.8 else len(data)
        at = int(rng.integers(reach + 1)) if data else 0
        kind = int(rng.integers(7))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and at < len(data):
            data[at] = int(rng.integers(256))
        elif kind == 2:
            width = int(rng.choice([1, 2, 4]))
            value = INTERESTING[int(rng.integers(len(INTERESTING)))] & (256**width - 1)
            order = "little" if rng.random() < 0.5 else "big"
            data[at : at + width] = value.to_bytes(width, order)
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at:at] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 5 and rng.random() < 0.3:
            del data[at:]
        elif kind == 6:
            other = files[int(rng.integers(len(files)))]
            start = int(rng.integers(len(other)))
            piece = other[start : start + int(rng.integers(1, 256))]
            data[at : at + len(piece)] = piece
    return bytes(data)


def work(first: int, last: int, seed: int, scratch: Path) -> None:
    """Runs inputs ``first`` to ``last``; says which one is under way in ``scratch/current``."""
    from hb_ssl.audio import load_audio
    from hb_ssl.errors import UserError

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    files = seed_files()
    path = scratch / "input.wav"
    outcomes: Counter[str] = Counter()
    failures = []
    slowest = 0.0
    for number in range(first, last):
        rng = np.random.default_rng([seed, number])
        path.write_bytes(mutated(files, rng))
        (scratch / "current").write_text(str(number))
        started = time.perf_counter()
        try:
            waveform, _ = load_audio(path, RATES[number % len(RATES)])
        except UserError as error:
            reason = re.split("[(;,]", str(error).removeprefix(f"{path}: "))[0]
            outcomes["refused: " + re.sub(r"\d\S*", "N", reason).strip()] += 1
            if "\n" in str(error):
                failures.append({"input": number, "what": "an error of several lines"})
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            failures.append({"input": number, "what": repr(error)[:300]})
        else:
            outcomes["decoded"] += 1
            if waveform.dtype != np.float32 or not len(waveform) or not np.isfinite(waveform).all():
                failures.append({"input": number, "what": "samples that are not finite float32"})
        slowest = max(slowest, time.perf_counter() - started)
        if number % 500 == 0:
            print(number, file=sys.stderr, flush=True)
    result = {"outcomes": outcomes, "failures": failures, "slowest_seconds": slowest}
    (scratch / "result.json").write_text(json.dumps(result))


def run_batch(first: int, last: int, seed: int) -> dict[str, Any]:
    """Runs a batch in a process; after a crash or hang, goes on behind the guilty input."""
    total: dict[str, Any] = {"outcomes": Counter(), "failures": [], "slowest_seconds": 0.0}
    while first < last:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            command = [sys.executable, __file__, "--worker", f"{first}", f"{last}",
                       "--seed", f"{seed}", "--scratch", folder]  # fmt: skip
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            seen, since = None, time.monotonic()
            while process.poll() is None:
                time.sleep(0.2)
                current = scratch / "current"
                now = current.read_text() if current.is_file() else ""
                if now != seen:
                    seen, since = now, time.monotonic()
                elif now and time.monotonic() - since > MAX_SECONDS:
                    process.kill()
            if (scratch / "result.json").is_file():
                result = json.loads((scratch / "result.json").read_text())
                total["outcomes"].update(result["outcomes"])
                total["failures"] += result["failures"]
                total["slowest_seconds"] = max(total["slowest_seconds"], result["slowest_seconds"])
                return total
            if not (scratch / "current").is_file():
                raise SystemExit(f"the worker did not start (exit code {process.returncode})")
            guilty = int((scratch / "current").read_text())
            what = f"the process died with code {process.returncode}"
            total["failures"].append({"input": guilty, "what": what})
            print(f"input {guilty}: {what}; its inputs from {first} on are run again without it")
            if guilty > first:  # what came before it, for its outcomes
                before = run_batch(first, guilty, seed)
                total["outcomes"].update(before["outcomes"])
                total["failures"] += before["failures"]
            first = guilty + 1
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="write this one input to ./input.wav and stop")
    results = Path(__file__).parent / "results" / "fuzz_load_audio.json"
    parser.add_argument("--output", type=Path, default=results)
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker, arguments.seed, arguments.scratch)
        return 0
    if arguments.only is not None:
        rng = np.random.default_rng([arguments.seed, arguments.only])
        Path("input.wav").write_bytes(mutated(seed_files(), rng))
        print(f"input.wav; load it at {RATES[arguments.only % len(RATES)]} Hz")
        return 0
    started = time.perf_counter()
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest = 0.0
    for first in range(0, arguments.inputs, BATCH):
        part = run_batch(first, min(first + BATCH, arguments.inputs), arguments.seed)
        outcomes.update(part["outcomes"])
        failures += part["failures"]
        slowest = max(slowest, part["slowest_seconds"])
        done = min(first + BATCH, arguments.inputs)
        print(f"{done} inputs, {len(failures)} failures, {time.perf_counter() - started:.0f} s")
    report = {
        "command": f"python benchmarks/fuzz_load_audio.py --inputs {arguments.inputs} "
        f"--seed {arguments.seed}",
        "inputs": arguments.inputs,
        "failures": failures,
        "outcomes": dict(outcomes.most_common()),
        "slowest_input_seconds": round(slowest, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "formats": [f"{format_} {subtype}" for format_, subtype, _ in FORMATS],
        "libsndfile": sf.__libsndfile_version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({k: report[k] for k in ("inputs", "failures", "outcomes")}, indent=2))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
