"""Baselines on grouped 5-fold x 3 repeats of the real data: majority, device only, features.

    python benchmarks/baselines.py --source DIR        DIR: the PASCAL recordings

Writes ``benchmarks/results/baselines.json`` and ``.md``.
"""

import argparse
import tempfile
from pathlib import Path

from hb_ssl.cli import run_command
from hb_ssl.config import CrossValidationConfig, DataConfig, ModelConfig, TrainConfig
from hb_ssl.cross_validation import cross_validate
from hb_ssl.evaluation.baselines import BASELINES
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.runs import describe_environment
from hb_ssl.scoring import TABLE_METRICS, format_interval

RESULTS = Path(__file__).parent / "results"
MODES = ("merge", "set_a", "set_b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    source = parser.parse_args().source
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for mode in MODES:
            for method in BASELINES:
                folder = cross_validate(
                    DataConfig(source=source, label_mode=mode),
                    ModelConfig(),
                    TrainConfig(output_dir=f"{scratch}/{mode}-{method}"),
                    CrossValidationConfig(method=method),
                )
                metrics = read_json(folder / "metrics.json")
                results[f"{mode}/{method}"] = {
                    "n": metrics["recording"]["overall"]["n"],
                    "intervals": metrics["intervals"],
                }
    environment = describe_environment()
    environment["command"] = ["baselines.py", "--source", "DIR"]
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "baselines.json", {"environment": environment, "results": results})
    write_text_atomic(RESULTS / "baselines.md", table(results))
    print(table(results))


def table(results: dict) -> str:
    """Markdown: one row a task and method, with and without the simulator's recordings."""
    lines = [
        "# Baselines, grouped 5-fold x 3 repeats, recording level",
        "",
        "95 % intervals from a bootstrap over subjects. Made by `benchmarks/baselines.py`.",
        "",
        "| task | baseline | n | UAR | macro-F1 | accuracy | UAR without simulator |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        mode, method = name.split("/")
        intervals = result["intervals"]
        cells = [format_interval(intervals["overall"][metric]) for metric in TABLE_METRICS]
        without = intervals["without_simulator"]["recording_uar"]
        lines.append(
            f"| {mode} | {method} | {result['n']} | {' | '.join(cells)} | "
            f"{format_interval(without)} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
