"""What decides the recipe and the ensemble, compared inside one training part only.

    python benchmarks/ablations.py --source DIR [--variants NAME ...] [--backbone DIR]

The recordings of the first outer training part (seed 0, fold 0: 80 % of the groups) are split again
into three grouped folds; every variant is trained and scored there. The outer test folds that
``benchmarks/foundation_model.py`` reports are not touched, apart from being training recordings of
other folds. Finished variants are kept below ``--runs``, so more can be added; the table
``benchmarks/results/ablations.{json,md}`` is written from those that are complete.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundation_model import mean_probabilities

from hb_ssl.cli import run_command
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.cross_validation import baseline_rows, describe_recordings
from hb_ssl.data.splits import grouped_folds, inner_validation
from hb_ssl.data.task import HeartSoundTask, prepare_task_from
from hb_ssl.evaluation.intervals import grouped_bootstrap
from hb_ssl.evaluation.metrics import labels_of, read_predictions
from hb_ssl.files import read_json, write_csv_atomic, write_json_atomic, write_text_atomic
from hb_ssl.runs import describe_environment
from hb_ssl.scoring import TABLE_METRICS, format_interval
from hb_ssl.training import fine_tune

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
INNER_FOLDS = 3
NUM_BLOCKS = 6  # of an embedding: the tokens before the first layer, four layers, class tokens
EPOCHS = ["--epochs", "8"]
PROBE = ["--window_seconds", "5.0", "--hop_seconds", "2.5"]
LORA = ["--adaptation", "lora", "--learning_rate", "2e-3"]


@dataclass(frozen=True)
class Variant:
    """One thing that is changed.

    Attributes:
        flags: of ``hb-ssl train`` (on top of ``configs/pcg_full.yaml``) or of a probe.
        method: of ``hb-ssl cv``.
        mode: label mode.
        layer: of the embedding a probe sees, see ``FrozenBackbone.embed``; ``None``: all.
        training_share: share of the groups of an inner training part that is used.
    """

    flags: list[str]
    method: str = "fine_tune"
    mode: str = "merge"
    layer: int | None = None
    training_share: float = 1.0


def _probe(flags: list[str] = PROBE, **changes: Any) -> Variant:
    return Variant(flags, method="embedding_probe", **changes)


def _tuned(*flags: str, **changes: Any) -> Variant:
    return Variant([*EPOCHS, *flags], **changes)


FINE_TUNING = {
    "recipe, 12 epochs": Variant([]),
    "recipe, 8 epochs": _tuned(),
    "half of the training groups": _tuned(training_share=0.5),
    "a quarter of the training groups": _tuned(training_share=0.25),
    "windows of 2.5 s": _tuned("--window_seconds", "2.5", "--hop_seconds", "1.25"),
    "band limit 20-195 Hz": _tuned("--band_low_hz", "20", "--band_high_hz", "195"),
    "mean pooling": _tuned("--pooling", "mean"),
    "attentive pooling": _tuned("--pooling", "attentive"),
    "layer-weighted mean": _tuned("--pooling", "mean", "--layer_weighted_sum", "True"),
    "no device augmentation": _tuned("--augment_probability", "0"),
    "device augmentation always": _tuned("--augment_probability", "0.99"),
    "LoRA rank 4": _tuned(*LORA, "--lora_rank", "4", "--lora_alpha", "8"),
    "LoRA rank 16": _tuned(*LORA, "--lora_rank", "16", "--lora_alpha", "32"),
    "LoRA rank 64": _tuned(*LORA, "--lora_rank", "64", "--lora_alpha", "128"),
    "random weights": _tuned("--random_weights", "True"),
}
PROBES = {
    "all layers and class tokens": _probe(),
    **{f"layer {layer} alone": _probe(layer=layer) for layer in range(5)},
    "class tokens alone": _probe(layer=5),
    "half of the training groups": _probe(training_share=0.5),
    "a quarter of the training groups": _probe(training_share=0.25),
    "windows of 2.5 s": _probe(["--window_seconds", "2.5", "--hop_seconds", "1.25"]),
    "band limit 20-195 Hz": _probe([*PROBE, "--band_low_hz", "20", "--band_high_hz", "195"]),
    "windows every 5 s": _probe(["--window_seconds", "5.0", "--hop_seconds", "5.0"]),
    "windows every 1.25 s": _probe(["--window_seconds", "5.0", "--hop_seconds", "1.25"]),
}
MODES = ("merge", "set_a", "set_b")
MEMBERS = {
    "full": Variant([]),
    "probe": _probe(),
    "features": Variant([], method="logistic_regression"),
    "trees": Variant([], method="extra_trees"),
}
ENSEMBLES = (
    ("full",), ("probe",), ("features",), ("trees",), ("full", "probe"), ("full", "features"),
    ("probe", "features"), ("full", "probe", "features"), ("full", "probe", "trees"),
)  # fmt: skip
VARIANTS: dict[str, Variant] = {
    **{f"fine-tuning: {name}": variant for name, variant in FINE_TUNING.items()},
    **{f"probe: {name}": variant for name, variant in PROBES.items()},
    **{
        f"{member}, {mode}": replace(variant, mode=mode)
        for mode in MODES
        for member, variant in MEMBERS.items()
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    parser.add_argument("--backbone", default="bundled")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--runs", default="runs/ablations", help="where finished variants go")
    arguments = parser.parse_args()
    runs = Path(arguments.runs)
    runs.mkdir(parents=True, exist_ok=True)
    for name in arguments.variants:
        if not (runs / f"{name}.json").is_file():
            rows, seconds = _inner_rows(VARIANTS[name], arguments)
            write_csv_atomic(runs / f"{name}.csv", rows)
            write_json_atomic(runs / f"{name}.json", {"train_seconds": round(seconds, 1)})
    environment = describe_environment()
    environment["command"] = ["ablations.py", "--source", "DIR"]
    content = {"environment": environment, **_results(runs)}
    write_json_atomic(RESULTS / "ablations.json", content)
    write_text_atomic(RESULTS / "ablations.md", table(content))
    print(table(content))


def _inner_rows(
    variant: Variant, arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], float]:
    """Out-of-fold rows of the inner folds, and the seconds of fine-tuning."""
    types: list[type[Any]] = [DataConfig, ModelConfig, TrainConfig]
    recipe = ["--config", str(REPOSITORY / "configs" / "pcg_full.yaml"), "--tracker", "none"]
    data, model, training = parse_config(
        types,
        [*recipe, "--source", arguments.source, "--backbone", arguments.backbone,
         "--label_mode", variant.mode, *variant.flags],
    )  # fmt: skip
    whole = prepare_task_from(data)
    outer = set(grouped_folds(whole.items, 5, seed=0)[0])
    task = replace(whole, items=[i for i in whole.items if i.recording_id not in outer])
    features = describe_recordings(task, variant.method, data, model)
    if features is not None and variant.layer is not None:
        width = len(next(iter(features.values()))) // NUM_BLOCKS
        columns = slice(variant.layer * width, (variant.layer + 1) * width)
        features = {name: row[columns] for name, row in features.items()}
    rows, seconds = [], 0.0
    for number, test in enumerate(grouped_folds(task.items, INNER_FOLDS, seed=0)):
        part = _with_less_training(task, set(test), variant.training_share)
        if variant.method == "fine_tune":
            made, took = _fine_tuned_rows(part, test, data, model, training)
            seconds += took
        else:
            made = baseline_rows(part, test, variant.method, features, seed=0)
        rows += [{**row, "seed": 0, "fold": number} for row in made]
    return rows, seconds


def _with_less_training(task: HeartSoundTask, test: set[str], share: float) -> HeartSoundTask:
    """The task with a share of its training recordings, by whole groups, each class in turn."""
    if share == 1:
        return task
    rest = [item for item in task.items if item.recording_id not in test]
    kept = set(inner_validation(rest, share, seed=0)[1])
    return replace(task, items=[i for i in task.items if i.recording_id in test | kept])


def _fine_tuned_rows(
    task: HeartSoundTask, test: list[str], data: Any, model: Any, training: Any
) -> tuple[list[dict[str, Any]], float]:
    held = set(test)
    train = [item.recording_id for item in task.items if item.recording_id not in held]
    split = {"train": train, "validation": [], "test": test}
    with tempfile.TemporaryDirectory() as scratch:
        tuned = fine_tune(task, split, data, model, training, Path(scratch))
    return tuned.recording_rows, tuned.summary["train_seconds"]


def _results(runs: Path) -> dict[str, Any]:
    def rows_of(name: str) -> list[dict[str, Any]]:
        return read_predictions(runs / f"{name}.csv")

    finished = {name for name in VARIANTS if (runs / f"{name}.json").is_file()}
    variants = {
        name: {
            "intervals": grouped_bootstrap(rows_of(name), labels_of(rows_of(name))),
            **read_json(runs / f"{name}.json"),
        }
        for name in VARIANTS
        if name in finished
    }
    ensembles: dict[str, Any] = {}
    for mode in MODES:
        for members in ENSEMBLES:
            names = [f"{member}, {mode}" for member in members]
            if set(names) <= finished:
                rows = mean_probabilities([rows_of(name) for name in names])
                scores = grouped_bootstrap(rows, labels_of(rows))
                ensembles.setdefault(mode, {})[" + ".join(members)] = scores
    return {"variants": variants, "ensembles": ensembles}


def table(content: dict[str, Any]) -> str:
    """Markdown: fine-tuning, probes, ensembles."""
    lines = [
        "# Ablations, inner folds of one training part",
        "",
        "Three inner grouped folds, one seed; 95 % intervals from a bootstrap over subjects. "
        "Nothing here has seen the test fold of the first outer split, but its recordings are "
        "tested in other folds and repeats, so a choice made here is not wholly independent of "
        "the scores reported there. Made by `benchmarks/ablations.py`.",
    ]
    for kind, about in (
        ("fine-tuning", "Each variant changes `configs/pcg_full.yaml` in one thing, at 8 epochs."),
        ("probe", "Logistic regression on the frozen backbone; only what is named is changed."),
    ):
        lines += ["", f"## {kind.capitalize()}, four-way task", "", about, ""]
        lines += [
            "| variant | UAR | macro-F1 | accuracy | training seconds |",
            "|---|---|---|---|---|",
        ]
        for name, result in content["variants"].items():
            if name.startswith(f"{kind}: "):
                cells = [format_interval(result["intervals"][metric]) for metric in TABLE_METRICS]
                seconds = f"{result['train_seconds']:.0f}" if kind == "fine-tuning" else ""
                lines.append(f"| {name.split(': ')[1]} | {' | '.join(cells)} | {seconds} |")
    lines += [
        "",
        "## Ensembles",
        "",
        "Means of probabilities. full: `configs/pcg_full.yaml`; probe: as above; features and "
        "trees: hand-made features with logistic regression or extra trees.",
    ]
    for mode, ensembles in content["ensembles"].items():
        lines += [
            "",
            f"### {mode}",
            "",
            "| members | UAR | macro-F1 | accuracy |",
            "|---|---|---|---|",
        ]
        for name, intervals in ensembles.items():
            cells = [format_interval(intervals[metric]) for metric in TABLE_METRICS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
