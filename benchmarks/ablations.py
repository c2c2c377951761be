"""What decides the fine-tuning recipe, compared inside one training part only.

    python benchmarks/ablations.py --source DIR [--variants NAME ...] [--backbone DIR]

The recordings of the first outer training part (four-way task, seed 0, fold 0: 80 % of the groups)
are split again into three grouped folds; every variant is trained and scored there. The outer test
folds that ``benchmarks/foundation_model.py`` reports are not touched, apart from being training
recordings of other folds. Finished variants are kept; ``benchmarks/results/ablations.{json,md}``.
"""

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hb_ssl.cli import run_command
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.data.splits import grouped_folds
from hb_ssl.data.task import prepare_task_from
from hb_ssl.evaluation.intervals import grouped_bootstrap
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.runs import describe_environment
from hb_ssl.scoring import TABLE_METRICS, format_interval
from hb_ssl.training import fine_tune

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
INNER_FOLDS = 3
LORA = ["--adaptation", "lora", "--learning_rate", "2e-3"]
VARIANTS: dict[str, list[str]] = {
    "recipe": [],
    "learning rate 1e-3": ["--learning_rate", "1e-3"],
    "learning rate 1e-4": ["--learning_rate", "1e-4"],
    "8 epochs": ["--epochs", "8"],
    "16 epochs": ["--epochs", "16"],
    "no device augmentation": ["--augment_probability", "0"],
    "device augmentation always": ["--augment_probability", "0.99"],
    "waveform augmentation": ["--augment_spectrogram", "False"],
    "mean pooling": ["--pooling", "mean"],
    "attentive pooling": ["--pooling", "attentive"],
    "layer-weighted mean": ["--pooling", "mean", "--layer_weighted_sum", "True"],
    "LoRA rank 4": [*LORA, "--lora_rank", "4", "--lora_alpha", "8"],
    "LoRA rank 16": [*LORA, "--lora_rank", "16", "--lora_alpha", "32"],
    "band limit 20-195 Hz": ["--band_low_hz", "20", "--band_high_hz", "195"],
    "one test window in 5 s": ["--hop_seconds", "5.0"],
    "random weights": ["--random_weights", "True"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    parser.add_argument("--backbone", default="bundled")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--results", default=str(RESULTS / "ablations.json"), help="JSON to add to")
    arguments = parser.parse_args()
    path = Path(arguments.results)
    content: dict[str, Any] = read_json(path) if path.is_file() else {"results": {}}
    for name in arguments.variants:
        if name in content["results"]:
            continue
        content["results"][name] = _inner_scores(VARIANTS[name], arguments)
        content["environment"] = describe_environment()
        content["environment"]["command"] = ["ablations.py", "--source", "DIR"]
        write_json_atomic(path, content)
        write_text_atomic(path.with_suffix(".md"), table(content))
    print(table(content))


def _inner_scores(flags: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    recipe = ["--config", str(REPOSITORY / "configs" / "pcg_full.yaml"), "--tracker", "none"]
    types: list[type[Any]] = [DataConfig, ModelConfig, TrainConfig]
    data, model, training = parse_config(
        types, [*recipe, "--source", arguments.source, "--backbone", arguments.backbone, *flags]
    )
    task = prepare_task_from(data)
    outer = set(grouped_folds(task.items, 5, seed=0)[0])
    task = replace(task, items=[item for item in task.items if item.recording_id not in outer])
    rows, seconds = [], 0.0
    for number, test in enumerate(grouped_folds(task.items, INNER_FOLDS, seed=0)):
        held = set(test)
        train = [item.recording_id for item in task.items if item.recording_id not in held]
        folder = Path(tempfile.mkdtemp())
        split = {"train": train, "validation": [], "test": test}
        try:
            tuned = fine_tune(task, split, data, model, training, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows += [{**row, "seed": 0, "fold": number} for row in tuned.recording_rows]
        seconds += tuned.summary["train_seconds"]
    intervals = grouped_bootstrap(rows, task.labels)
    return {"n": len(rows), "intervals": intervals, "train_seconds": round(seconds, 1)}


def table(content: dict[str, Any]) -> str:
    """Markdown: one row a variant."""
    lines = [
        "# Ablations of the fine-tuning recipe, inner folds of one training part",
        "",
        "Four-way task, three inner grouped folds, one seed; 95 % intervals from a bootstrap over "
        "subjects. Each variant changes `configs/pcg_full.yaml` in one thing. Made by "
        f"`benchmarks/ablations.py`. {content.get('note', '')}",
        "",
        "| variant | UAR | macro-F1 | accuracy | training seconds |",
        "|---|---|---|---|---|",
    ]
    for name, result in content["results"].items():
        cells = [format_interval(result["intervals"][metric]) for metric in TABLE_METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} | {result['train_seconds']:.0f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
