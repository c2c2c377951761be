"""Time and peak memory of the quickstart, after the installation.

    .venv/bin/python benchmarks/quickstart.py [--data DIR]

Runs ``bash scripts/quickstart.sh``, and with ``--data`` also ``bash scripts/quickstart.sh --data
DIR``, one after the other. Peak memory is that of the largest process (resident set). Writes
``benchmarks/results/quickstart.json``.
"""

import argparse
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from hb_ssl.cli import run_command
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.runs import describe_environment
from hb_ssl.scoring import TABLE_METRICS

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="also on this copy of the PASCAL recordings")
    data = parser.parse_args().data
    runs = {"synthetic": _measure([], "quickstart")}
    if data:
        name = f"quickstart-{Path(data).name}"
        runs["pascal"] = _measure(["--data", str(Path(data).resolve())], name)
    environment = describe_environment()
    environment["command"] = ["quickstart.py", *(["--data", "DIR"] if data else [])]
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": environment, "runs": runs}
    write_json_atomic(RESULTS / "quickstart.json", content)
    for name, run in runs.items():
        print(f"{name}: {run['seconds']} s, {run['peak_memory_gb']} GB, UAR {run['scores']}")


def _measure(options: list[str], run: str) -> dict[str, Any]:
    started = time.monotonic()
    subprocess.run(["bash", "scripts/quickstart.sh", *options], cwd=REPOSITORY, check=True)
    seconds = time.monotonic() - started
    metrics = read_json(REPOSITORY / "runs" / run / "metrics.json")
    return {
        "seconds": round(seconds, 1),
        # The largest so far: the second run shows more only if it needs more.
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
        "scores": {name: metrics["intervals"]["overall"][name] for name in TABLE_METRICS},
        "n_test": metrics["recording"]["overall"]["n"],
        "train_seconds": round(metrics["run"]["train_seconds"], 1),
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
