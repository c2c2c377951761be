"""Coverage-guided fuzzing of `load_audio` with atheris (`pip install atheris`, not a dependency).

    python benchmarks/fuzz_load_audio_coverage.py --inputs 50000

The guide is the coverage of Python code (hb_ssl.audio, soundfile); libsndfile itself is not
instrumented, so `fuzz_load_audio.py` with its larger number of inputs is the main test. The corpus
starts with one valid file of every format, mono and stereo. Anything but finite samples or a
UserError ends the worker and leaves the guilty input in ./crash-*.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "fuzz_load_audio_coverage.json"
MAX_BYTES = 8192
MAX_SECONDS = 20  # for one input
MAX_MEGABYTES = 6144


def fuzz(corpus: str, options: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["hb_ssl.audio", "soundfile"]):
        from hb_ssl.audio import load_audio
    from fuzz_load_audio import RATES, seed_files

    from hb_ssl.errors import UserError

    for number, content in enumerate(seed_files()):
        (Path(corpus) / f"seed-{number}").write_bytes(content)
    path = Path(corpus).with_name("input.wav")

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            waveform, _ = load_audio(path, RATES[len(data) % len(RATES)])
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(waveform)
            assert abs(waveform).max() < float("inf")

    atheris.Setup([sys.argv[0], *options, corpus], one_input)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args()
    if arguments.worker:
        fuzz(arguments.worker, options)
    if options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(corpus), f"-runs={arguments.inputs}",
             f"-seed={arguments.seed}", f"-max_len={MAX_BYTES}", f"-timeout={MAX_SECONDS}",
             f"-rss_limit_mb={MAX_MEGABYTES}"],
            stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        said = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            print(line, end="", file=sys.stderr)
        code = process.wait()
        found = len(list(corpus.iterdir()))
    tries = [m for line in said if (m := re.match(r"#(\d+)\s.* cov: (\d+) ft: (\d+)", line))]
    if not tries:
        raise SystemExit(f"the worker did not start (exit code {code})")
    report = {
        "command": f"python benchmarks/fuzz_load_audio_coverage.py --inputs {arguments.inputs} "
        f"--seed {arguments.seed}",
        "inputs": int(tries[-1][1]),
        "failed": bool(code),
        "coverage_at_start": {"edges": int(tries[0][2]), "features": int(tries[0][3])},
        "coverage_at_end": {"edges": int(tries[-1][2]), "features": int(tries[-1][3])},
        "files_in_the_corpus_at_the_end": found,
        "longest_input_bytes": MAX_BYTES,
        "seconds": round(time.perf_counter() - started, 1),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
