"""Pre-training speed of one process: windows a second and model FLOP/s utilisation (MFU).

    python benchmarks/pretraining_speed.py --corpora DIR [DIR ...] [--steps 6] [--repeats 3]

The recipe ``configs/pretrain_pcg.yaml`` in float32 and bfloat16 by turns, for a few steps, the
first two of them left out. MFU is what the run itself logs: the estimate of ``flops_per_pair`` over
the peak that matrix products of that precision reach on this device at the start of the run. Where
other programs take part of the processor, the numbers per CPU second say what an idle machine
would do. Writes ``benchmarks/results/pretraining_speed.{json,md}``.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from hb_ssl.cli import run_command
from hb_ssl.config import parse_config
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import pretrain
from hb_ssl.runs import describe_environment

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PRECISIONS = {"no": "float32", "bf16": "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    for _ in range(arguments.repeats):
        for precision in PRECISIONS:
            found[precision].append(one_run(arguments.corpora, precision, arguments.steps))
    environment = describe_environment()
    environment["command"] = ["pretraining_speed.py", "--corpora", "DIR"]
    content = {
        "environment": {**environment, "threads": torch.get_num_threads()},
        "steps": arguments.steps,
        "results": {
            PRECISIONS[precision]: {
                "median": {
                    name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]
                },
                "runs": runs,
            }
            for precision, runs in found.items()
        },
    }
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "pretraining_speed.json", content)
    write_text_atomic(RESULTS / "pretraining_speed.md", table(content))
    print(table(content))


def one_run(corpora: list[str], precision: str, steps: int) -> dict[str, Any]:
    """Windows a second, FLOP/s and the share of the peak over the steps after the first two."""
    recipe = ["--config", str(REPOSITORY / "configs" / "pretrain_pcg.yaml"), "--corpora", *corpora]
    AcceleratorState._reset_state(True)  # it keeps the precision of a process' first run
    with tempfile.TemporaryDirectory() as folder:
        (config,) = parse_config(
            [PretrainConfig],
            [*recipe, "--output_dir", folder, "--mixed_precision", precision, "--steps", str(steps),
             "--eval_steps", str(steps), "--log_steps", "2", "--num_simulated", "600"],
        )  # fmt: skip
        wall, cpu = time.perf_counter(), time.process_time()
        history = read_json(pretrain(config) / "history.json")
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    share /= torch.get_num_threads()
    rows = [row for row in history if row["step"] > 2]
    speed = statistics.mean(row["windows_per_second"] for row in rows)
    gflops = statistics.mean(row["model_gflops"] for row in rows)
    mfu = statistics.mean(row["mfu"] for row in rows)
    return {
        "windows_per_second": round(speed, 1),
        "model_gflops": round(gflops, 1),
        "mfu": round(mfu, 4),
        "peak_gflops": round(gflops / mfu, 1),
        "cpu_share": round(share, 3),
        "windows_per_cpu_second": round(speed / share, 1),
        "mfu_per_cpu_second": round(mfu / share, 4),
    }


def table(content: dict[str, Any]) -> str:
    """Markdown: one row a precision."""
    lines = [
        "# Pre-training speed, one process",
        "",
        f"`configs/pretrain_pcg.yaml` on {content['environment']['device']} with "
        f"{content['environment']['threads']} thread(s), medians of runs by turns. MFU: the "
        "model's operations (weights only, so a lower bound) over the peak of matrix products of "
        "the same precision, measured at the start of each run. Other programs ran on this "
        "machine: the last two columns divide by the share of the processor that the run got. "
        "Made by "
        "`benchmarks/pretraining_speed.py`.",
        "",
        "| precision | windows/s | model GFLOP/s | measured peak GFLOP/s | MFU | share of the CPU "
        "| windows per CPU s | MFU by CPU time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for precision, result in content["results"].items():
        m = result["median"]
        lines.append(
            f"| {precision} | {m['windows_per_second']} | {m['model_gflops']} | {m['peak_gflops']} "
            f"| {m['mfu']:.1%} | {m['cpu_share']:.0%} | {m['windows_per_cpu_second']} | "
            f"{m['mfu_per_cpu_second']:.1%} |"
        )
    if content["environment"]["device"] == "cpu":
        lines += ["", "No GPU was there: nothing here was measured on one."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
