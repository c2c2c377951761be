"""The honest table: baselines, random weights, Whisper, and our backbone, in the same folds.

    python benchmarks/foundation_model.py --source DIR [--whisper DIR] [--rows NAME ...]

Grouped 5-fold x 3 repeats of the PASCAL recordings, recording level, 95 % intervals from a
bootstrap over subjects, for every row and each of the tasks merge, set_a and set_b. Every row is a
run folder below ``--runs`` that is resumed, so rows can be made one at a time or side by side.
``benchmarks/results/foundation_model.{json,md}`` and the short table in README are written from
those that are complete; a row that has no run folder keeps what the table said of it before.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hb_ssl.cli import run_command
from hb_ssl.config import CrossValidationConfig, DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.cross_validation import cross_validate
from hb_ssl.errors import UserError
from hb_ssl.evaluation.baselines import FEATURE_BASELINES
from hb_ssl.evaluation.hand_made_features import recording_features
from hb_ssl.evaluation.intervals import paired_bootstrap
from hb_ssl.evaluation.metrics import PROBABILITY_PREFIX, labels_of, read_predictions
from hb_ssl.evaluation.probes import FrozenBackbone, log_mel_matrix
from hb_ssl.files import read_json, with_text_between, write_json_atomic, write_text_atomic
from hb_ssl.runs import describe_environment
from hb_ssl.scoring import TABLE_METRICS, format_interval, score_with_intervals

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
README = REPOSITORY / "README.md"
MODES = ("merge", "set_a", "set_b")
PCG_WINDOWS = ["--window_seconds", "5.0", "--hop_seconds", "2.5"]
FULL = ["--config", str(REPOSITORY / "configs" / "pcg_full.yaml")]
LORA = ["--config", str(REPOSITORY / "configs" / "pcg_lora.yaml")]
# name: (what the table says, flags of `hb-ssl cv`)
ROWS: dict[str, tuple[str, list[str]]] = {
    "majority": ("majority class", ["--method", "majority"]),
    "device_only": ("device only, no audio", ["--method", "device_only"]),
    "logistic_regression": ("hand-made features, LR", ["--method", "logistic_regression"]),
    "extra_trees": ("hand-made features, extra trees", ["--method", "extra_trees"]),
    "log_mel_probe": ("log-mel statistics, LR", ["--method", "log_mel_probe"]),
    "random_probe": (
        "our architecture, random weights: probe",
        ["--method", "embedding_probe", "--random_weights", "True", *PCG_WINDOWS],
    ),
    "random_full": (
        "our architecture, random weights: full",
        [*FULL, "--random_weights", "True"],
    ),
    "whisper_probe": (
        "Whisper-tiny encoder: probe",
        ["--method", "embedding_probe", "--window_seconds", "10.0", "--hop_seconds", "5.0"],
    ),
    "whisper_lora": (  # one repeat: the fits take ten minutes each
        "Whisper-tiny encoder: LoRA (5 folds once)",
        ["--config", str(REPOSITORY / "configs" / "whisper_lora.yaml"), "--num_repeats", "1"],
    ),
    "pcg_probe": ("our backbone: probe", ["--method", "embedding_probe", *PCG_WINDOWS]),
    "pcg_lora": ("our backbone: LoRA", LORA),
    "pcg_full": ("our backbone: full", FULL),
    "pcg_full_100": ("our backbone: full, another seed", [*FULL, "--seed", "100"]),
    "pcg_full_200": ("our backbone: full, a third seed", [*FULL, "--seed", "200"]),
}
SEEDS = ("pcg_full", "pcg_full_100", "pcg_full_200")
# Means of probabilities by task. "inner_ensemble" was chosen on the inner folds of
# benchmarks/results/ablations.md, the others before the scores of their members were seen.
ENSEMBLES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "ensemble": (
        "mean of probe, LoRA and extra trees",
        dict.fromkeys(MODES, ("pcg_probe", "pcg_lora", "extra_trees")),
    ),
    "balanced_ensemble": (
        "mean of probe, full, and features with LR",
        dict.fromkeys(MODES, ("pcg_probe", "pcg_full", "logistic_regression")),
    ),
    "inner_ensemble": (
        "mean of the two that inner folds chose",
        {
            "merge": ("pcg_full", "logistic_regression"),
            "set_a": ("pcg_probe", "logistic_regression"),
            "set_b": ("pcg_full", "pcg_probe"),
        },
    ),
    "seeds": ("mean of full, three seeds", dict.fromkeys(MODES, SEEDS)),
    "seeds_and_balanced": (
        "mean of full, three seeds, probe, and features with LR",
        dict.fromkeys(MODES, (*SEEDS, "pcg_probe", "logistic_regression")),
    ),
}
TITLES = {name: title for name, (title, _) in (ROWS | ENSEMBLES).items()}
MARKS = ("<!-- made by benchmarks/foundation_model.py -->", "<!-- end -->")  # in README
PAIRS = (
    ("pcg_probe", "random_probe"),
    ("pcg_probe", "log_mel_probe"),
    ("pcg_full", "random_full"),
    ("pcg_full", "log_mel_probe"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    parser.add_argument("--whisper", help="folder of the Whisper-tiny encoder")
    parser.add_argument("--backbone", default="bundled", help="our backbone (bundled)")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--runs", default="runs/foundation", help="where the run folders go")
    arguments = parser.parse_args()
    runs = Path(arguments.runs)
    for row in arguments.rows:
        backbone = arguments.whisper if row.startswith("whisper") else arguments.backbone
        if backbone is None:
            print(f"{row}: left out, --whisper names no folder")
            continue
        for mode in arguments.modes:
            _run(row, mode, arguments.source, backbone, runs / f"{row}-{mode}")
    path = RESULTS / "foundation_model.json"
    earlier = read_json(path) if path.is_file() else {"results": {}, "differences": {}}
    results, differences = {}, {}
    for mode in MODES:
        made = earlier["results"].get(mode, {}) | _results(runs, mode)
        results[mode] = {row: made[row] for row in (*ROWS, *ENSEMBLES) if row in made}
        differences[mode] = earlier["differences"].get(mode, {}) | _differences(runs, mode)
    environment = describe_environment()
    environment["command"] = ["foundation_model.py", "--source", "DIR", "--whisper", "DIR"]
    content = {
        "environment": environment,
        "results": results,
        "differences": differences,
        "costs": earlier.get("costs", {}) | _costs(arguments.backbone, arguments.whisper),
    }
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(path, content)
    write_text_atomic(RESULTS / "foundation_model.md", table(content))
    text = README.read_text(encoding="utf-8")
    write_text_atomic(README, with_short_table(text, results))
    print(table(content))


def _run(row: str, mode: str, source: str, backbone: str, folder: Path) -> None:
    flags = [*ROWS[row][1], "--source", source, "--label_mode", mode, "--backbone", backbone]
    flags += ["--output_dir", str(folder), "--tracker", "none"]
    if folder.is_dir():
        flags += ["--resume", "True"]
    types: list[type[Any]] = [DataConfig, ModelConfig, TrainConfig, CrossValidationConfig]
    cross_validate(*parse_config(types, flags))


def _finished(runs: Path, mode: str) -> dict[str, Path]:
    folders = {row: runs / f"{row}-{mode}" for row in ROWS}
    return {row: folder for row, folder in folders.items() if (folder / "metrics.json").is_file()}


def _results(runs: Path, mode: str) -> dict[str, Any]:
    results: dict[str, Any] = {}
    finished = _finished(runs, mode)
    for row, folder in finished.items():
        metrics = read_json(folder / "metrics.json")
        results[row] = {
            "n": metrics["recording"]["overall"]["n"],
            "intervals": metrics["intervals"],
            "recalls": _recalls(metrics),
            **{k: v for k, v in metrics.get("run", {}).items() if k != "random_weights"},
        }
        if "run" in metrics:
            results[row]["seconds_per_epoch"] = _seconds_per_epoch(folder)
    for name, (_, of_mode) in ENSEMBLES.items():
        members = of_mode[mode]
        if set(members) <= set(finished):
            rows = mean_probabilities(
                [read_predictions(finished[r] / "predictions.csv") for r in members]
            )
            scores = score_with_intervals(rows, labels_of(rows))
            results[name] = {
                "n": scores["recording"]["overall"]["n"],
                "intervals": scores["intervals"],
                "recalls": _recalls(scores),
                "members": list(members),
            }
    return results


def _recalls(metrics: dict[str, Any]) -> dict[str, float]:
    classes = metrics["recording"]["overall"]["recording_per_class"]
    return {name: scores["recall"] for name, scores in classes.items()}


def _seconds_per_epoch(folder: Path) -> float:
    summaries = [read_json(path) for path in sorted(folder.glob("seed-*-fold-*/summary.json"))]
    return statistics.median(s["train_seconds"] / s["epochs"] for s in summaries)


def mean_probabilities(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of several runs in the same folds, as one run with their mean probabilities.

    Raises:
        UserError: the runs were not made in the same folds.
    """
    keyed = [{(r["seed"], r["fold"], r["recording_id"]): r for r in rows} for rows in runs]
    if any(set(other) != set(keyed[0]) for other in keyed):
        raise UserError("ensemble: the runs hold other folds; expected runs of one command")
    columns = [c for c in runs[0][0] if c.startswith(PROBABILITY_PREFIX)]
    averaged = []
    for key, row in keyed[0].items():
        mean = {c: float(np.mean([float(rows[key][c]) for rows in keyed])) for c in columns}
        best = max(columns, key=lambda c: mean[c]).removeprefix(PROBABILITY_PREFIX)
        averaged.append({**row, **mean, "prediction": best})
    return averaged


def _differences(runs: Path, mode: str) -> dict[str, Any]:
    """Paired bootstrap of UAR, ours minus the control, over the same subjects."""
    finished = _finished(runs, mode)
    found = {}
    for ours, control in PAIRS:
        if {ours, control} <= set(finished):
            rows = [read_predictions(finished[r] / "predictions.csv") for r in (ours, control)]
            found[f"{ours} - {control}"] = paired_bootstrap(rows[0], rows[1], labels_of(rows[0]))[
                "recording_uar"
            ]
    return found


def _costs(backbone: str, whisper: str | None) -> dict[str, dict[str, float]]:
    """Parameters, and the median CPU time of describing a 10 s recording on one thread."""
    torch.set_num_threads(1)
    waveform = np.random.default_rng(0).standard_normal(10 * 2000).astype(np.float32)
    ours = FrozenBackbone(backbone, 5.0, 2.5)
    log_mel = {"x": waveform}
    costs = {
        "features": _cost(0, lambda: recording_features(waveform, 2000)),
        "log_mel": _cost(0, lambda: log_mel_matrix(log_mel, ["x"], 5.0, 2.5)),  # type: ignore[arg-type]
        "pcg": _cost(_parameters(ours), lambda: ours.embed(waveform)),
    }
    if whisper:
        theirs = FrozenBackbone(whisper, 10.0, 5.0)
        long = np.resize(waveform, 10 * 16000)
        costs["whisper"] = _cost(_parameters(theirs), lambda: theirs.embed(long))
    return costs


def _parameters(frozen: FrozenBackbone) -> int:
    return sum(parameter.numel() for parameter in frozen.model.parameters())


def _cost(parameters: int, describe: Callable[[], object]) -> dict[str, float]:
    times = []
    for _ in range(20):
        started = time.process_time()  # other programs may run
        describe()
        times.append(time.process_time() - started)
    milliseconds = round(1000 * statistics.median(times), 1)
    return {"parameters": parameters, "milliseconds_per_10_s": milliseconds}


def _cost_of(row: str, mode: str, costs: dict[str, dict[str, float]]) -> dict[str, float]:
    """The cost of a row; of an ensemble the sum."""
    if row in ENSEMBLES:
        members = [_cost_of(member, mode, costs) for member in ENSEMBLES[row][1][mode]]
        return {name: round(sum(m[name] for m in members), 1) for name in members[0]}
    if row in ("majority", "device_only"):
        return {"parameters": 0, "milliseconds_per_10_s": 0.0}
    if row in FEATURE_BASELINES:
        return costs["features"]
    kind = row.removesuffix("_probe") if row == "log_mel_probe" else row.split("_")[0]
    return costs.get("pcg" if kind == "random" else kind, {})


def table(content: dict[str, Any]) -> str:
    """Markdown: one row a method, columns by task, then the differences."""
    lines = [
        "# The honest table: grouped 5-fold x 3 repeats, recording level",
        "",
        "95 % intervals from a bootstrap over subjects. Made by `benchmarks/foundation_model.py`.",
    ]
    for mode, rows in content["results"].items():
        lines += [
            "",
            f"## {mode}",
            "",
            "| row | UAR | macro-F1 | accuracy | UAR without simulator | parameters | trained | "
            "s per epoch | ms per 10 s recording |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, result in rows.items():
            cells = [format_interval(result["intervals"]["overall"][m]) for m in TABLE_METRICS]
            without = result["intervals"].get("without_simulator", {}).get("recording_uar")
            trained = result.get("parameters", {}).get("trainable", "")
            seconds = result.get("seconds_per_epoch")
            cost = _cost_of(name, mode, content["costs"])
            lines.append(
                f"| {TITLES[name]} | {' | '.join(cells)} | "
                f"{format_interval(without) if without else ''} | {cost.get('parameters', '')} | "
                f"{trained} | {'' if seconds is None else round(seconds, 1)} | "
                f"{cost.get('milliseconds_per_10_s', '')} |"
            )
        for pair, difference in content["differences"][mode].items():
            lines += [
                "",
                f"UAR, {pair}: {difference['difference']:+.3f} ({difference['low']:+.3f} to "
                f"{difference['high']:+.3f}, paired bootstrap).",
            ]
    lines += [
        "",
        "Seconds on one core, other programs running. ms: CPU time of describing a 10 s recording "
        "at the method's own rate, without decoding.",
    ]
    return "\n".join([*lines, ""])


def short_table(results: dict[str, Any]) -> str:
    """Markdown for README: the scores that the targets name."""
    columns = [
        (f"{task} {title}", mode, metric)
        for task, mode in (("four-way", "merge"), ("set A", "set_a"), ("set B", "set_b"))
        for title, metric in (("UAR", "recording_uar"), ("macro-F1", "recording_macro_f1"))
    ]
    lines = [
        f"| | {' | '.join(title for title, _, _ in columns)} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name in results["merge"]:
        cells = [
            format_interval(results[mode][name]["intervals"]["overall"][metric])
            if name in results[mode]
            else ""
            for _, mode, metric in columns
        ]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_short_table(text: str, results: dict[str, Any]) -> str:
    """README with its table of scores made anew."""
    return with_text_between(text, MARKS, short_table(results))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
