"""How long the Space takes to answer, through its own server and client.

    python benchmarks/space_latency.py            the bundled classifier, or $HB_SSL_MODEL

Writes ``benchmarks/results/space_latency.json`` and ``.md``. Run it on an idle machine.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile as sf
from gradio_client import Client, handle_file

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # for the tests' server helper

from hb_ssl.cli import run_command  # noqa: E402
from hb_ssl.data.synthetic import simulate_recording  # noqa: E402
from hb_ssl.files import write_json_atomic, write_text_atomic  # noqa: E402
from hb_ssl.inference import locate_classifier  # noqa: E402
from hb_ssl.runs import describe_environment  # noqa: E402
from tests.space_server import running_space  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SECONDS, RATES, REPEATS, USERS = 10.0, (4000, 44_100), 20, 20
STEPS = {
    "/classify": "API answer",
    "/analyse": "verdict and pictures",
    "/explain": "occlusion map, which follows the verdict",
}


def main() -> None:
    name = os.environ.get("HB_SSL_MODEL") or None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {rate: write_recording(folder, rate) for rate in RATES}
        with running_space(locate_classifier(name), folder) as (url, classifier):
            rows = measure(Client(url, verbose=False), files)
            crowd = measure_crowd(url, files[RATES[0]])
    content = {
        "environment": {**describe_environment(), "command": ["space_latency.py"]},
        "model": "bundled" if name is None else Path(name).name,
        "trained_on": classifier.preprocessing.get("trained_on"),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "recording_seconds": SECONDS,
        "steps": rows,
        "users_at_once": USERS,
        "seconds_until_all_users_answered": crowd,
    }
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "space_latency.json", content)
    write_text_atomic(RESULTS / "space_latency.md", table(content))
    print(table(content))


def write_recording(folder: Path, rate: int) -> Path:
    waveform, _ = simulate_recording(
        "murmur", SECONDS, rate, np.random.default_rng(0), "stethoscope"
    )
    path = folder / f"recording_{rate}.wav"
    sf.write(path, waveform, rate)
    return path


def measure(client: Client, files: dict[int, Path]) -> list[dict]:
    """Seconds from sending the file to the complete answer, one row a step and rate."""
    rows = []
    for endpoint, meaning in STEPS.items():
        for rate, path in files.items():
            seconds = []
            for _ in range(REPEATS + 1):
                start = time.perf_counter()
                client.predict(handle_file(str(path)), api_name=endpoint)
                seconds.append(time.perf_counter() - start)
            seconds = seconds[1:]  # the first call warms up
            rows.append(
                {
                    "step": meaning,
                    "endpoint": endpoint,
                    "sampling_rate": rate,
                    "median_seconds": round(float(np.median(seconds)), 3),
                    "slowest_seconds": round(max(seconds), 3),
                }
            )
    return rows


def measure_crowd(url: str, path: Path) -> float:
    """Seconds until ``USERS`` visitors who click at once all have their verdict."""
    clients = [Client(url, verbose=False) for _ in range(USERS)]
    start = time.perf_counter()
    with ThreadPoolExecutor(USERS) as users:
        answers = list(
            users.map(lambda c: c.predict(handle_file(str(path)), api_name="/analyse"), clients)
        )
    assert all("Result" in verdict for verdict, _ in answers)
    return round(time.perf_counter() - start, 2)


def table(content: dict) -> str:
    """Markdown."""
    lines = [
        "# Answer time of the Space",
        "",
        f"A {content['recording_seconds']:g} s recording, {content['cpu_cores']} CPU cores, model: "
        f"{content['model']} (trained on {content['trained_on']}).",
        "Made by `python benchmarks/space_latency.py`.",
        "",
        "| step | file's rate (Hz) | median (s) | slowest (s) |",
        "|---|---|---|---|",
    ]
    for row in content["steps"]:
        lines.append(
            f"| {row['step']} | {row['sampling_rate']} | {row['median_seconds']:.2f} | "
            f"{row['slowest_seconds']:.2f} |"
        )
    lines += [
        "",
        f"{content['users_at_once']} users who click at once: all have their verdict after "
        f"{content['seconds_until_all_users_answered']:.1f} s.",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run_command(main))
