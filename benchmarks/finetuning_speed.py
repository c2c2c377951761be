"""Fine-tuning here against the plain Hugging Face way: time, memory and validation score.

    python benchmarks/finetuning_speed.py --source DIR [--cases ast ...] [--seeds 0 1 2]

Ours is ``scripts/train.py``; the plain way is ``benchmarks/plain_finetuning.py``. Both get the same
backbone, recordings, split, precision, LoRA settings, batch size, epochs and learning rate, without
data-loading workers, and run by turns. Every run is a process of its own, whose peak memory is the
largest resident set of its process tree. Finished runs are kept in ``--runs``, so cases and seeds
can be measured one at a time; the tables come from those that are there. Writes
``benchmarks/results/finetuning_speed.{json,md}``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

from hb_ssl.cli import run_command
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.data.task import choose_split, prepare_task_from
from hb_ssl.files import read_json, write_csv_atomic, write_json_atomic, write_text_atomic
from hb_ssl.models.backbones import (
    family_of,
    load_backbone_config,
    load_feature_extractor,
    locate_backbone,
)
from hb_ssl.models.classifier import adapt, build_classifier
from hb_ssl.models.heads import drop_tokens
from hb_ssl.runs import describe_environment
from hb_ssl.utilisation import count_flops, matmul_tflops

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
AST = ["--config", str(REPOSITORY / "configs" / "pcg_lora_fast.yaml")]
SPEECH = [
    "--config", str(REPOSITORY / "configs" / "wav2vec2_lora.yaml"), "--random_weights", "True",
    "--windows_per_recording", "1", "--batch_size", "4", "--max_steps", "4",
    "--validation_fraction", "0", "--test_fraction", "0",
]  # fmt: skip
# name: (what the table says, options of scripts/train.py)
CASES: dict[str, tuple[str, list[str]]] = {
    "ast": (
        "bundled AST backbone (1.9 M parameters, 2 kHz), bf16, 8 epochs",
        [*AST, "--epochs", "8"],
    ),
    "ast_float32": (
        "bundled AST backbone, float32, 2 epochs (speed and memory only)",
        [*AST, "--mixed_precision", "no", "--epochs", "2"],
    ),
    "speech": (
        "wav2vec2-base shape (95 M parameters, random weights, 16 kHz), float32, 4 steps of 4 "
        "recordings (speed and memory only)",
        SPEECH,
    ),
}
SIDES = ("ours", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/finetuning_speed", help="where the runs go")
    arguments = parser.parse_args()
    runs = Path(arguments.runs)
    runs.mkdir(parents=True, exist_ok=True)
    floor = runs / "floor.json"
    if not floor.is_file():
        libraries = "import torch, datasets, peft; from transformers import Trainer"
        write_json_atomic(floor, measured([sys.executable, "-c", libraries]))
    for case in arguments.cases:
        for seed in arguments.seeds:
            for side in SIDES:
                file = runs / f"{case}-{side}-{seed}.json"
                if not file.is_file():
                    options = [*CASES[case][1], "--seed", str(seed), "--source", arguments.source]
                    if case == "speech":
                        options += ["--backbone", str(speech_backbone(runs / "wav2vec2-base"))]
                    run = run_ours if side == "ours" else run_plain
                    write_json_atomic(file, run(options, runs / file.stem))
    environment = describe_environment()
    environment["command"] = ["finetuning_speed.py", "--source", "DIR"]
    content = {
        "environment": {**environment, "threads": torch.get_num_threads()},
        "libraries_mb": read_json(floor)["peak_mb"],
        "cases": {case: summary(runs, case) for case in CASES},
    }
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "finetuning_speed.json", content)
    write_text_atomic(RESULTS / "finetuning_speed.md", table(content))
    print(table(content))


def speech_backbone(folder: Path) -> Path:
    """wav2vec2-base without its weights: they are drawn at random."""
    Wav2Vec2Config().save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def measured(command: list[str]) -> dict[str, float]:
    """Runs a command; wall and CPU seconds of the process, peak memory of its tree in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY)
    tree = psutil.Process(process.pid)
    peak = 0
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.02):
            try:
                members = [tree, *tree.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in members))
            except psutil.Error:  # a process that has just ended
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    finished.set()
    watcher.join()
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return {
        "process_seconds": round(time.perf_counter() - started, 2),
        "process_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(max(peak / 2**20, usage.ru_maxrss / 2**10)),
    }


def run_ours(options: list[str], folder: Path) -> dict[str, Any]:
    """One run of ``scripts/train.py``."""
    script = [sys.executable, "scripts/train.py", *options]
    used = measured(
        [*script, "--output_dir", str(folder.resolve()), "--overwrite", "True", "--tracker", "none"]
    )
    run = read_json(folder / "metrics.json")["run"]
    history = read_json(folder / "history.json")
    parts = read_json(folder / "splits.json")["parts"]
    return {
        **used,
        "train_seconds": run["train_seconds"],
        "train_cpu_seconds": run["train_cpu_seconds"],
        **seen(options, run["steps"], run["epochs"], len(parts["train"])),
        "validation_uar_by_epoch": [
            row["validation_recording_uar"] for row in history if "validation_recording_uar" in row
        ],
    }


def run_plain(options: list[str], folder: Path) -> dict[str, Any]:
    """One run of ``benchmarks/plain_finetuning.py`` with the same settings."""
    data, model, training = parse_config([DataConfig, ModelConfig, TrainConfig], options)
    folder.mkdir(exist_ok=True)
    task = prepare_task_from(data)
    split = choose_split(task, data, training.seed)
    write_csv_atomic(
        folder / "manifest.csv",
        [
            {"path": task.recordings[r].path, "label": task.labels[task.label_id(r)], "part": part}
            for part in ("train", "validation")
            for r in split[part]
        ],
    )
    backbone = locate_backbone(model.backbone)
    family = family_of(load_backbone_config(backbone))
    output = folder / "result.json"
    command = [
        sys.executable, "benchmarks/plain_finetuning.py", "--manifest", folder / "manifest.csv",
        "--backbone", backbone, "--output", output, "--epochs", training.epochs, "--max_steps",
        training.max_steps, "--batch_size", training.batch_size, "--eval_batch_size",
        training.eval_batch_size, "--learning_rate", training.learning_rate, "--weight_decay",
        training.weight_decay, "--label_smoothing", training.label_smoothing, "--seed",
        training.seed, "--lora_rank", model.lora_rank, "--lora_alpha", model.lora_alpha,
        "--lora_dropout", model.lora_dropout, "--lora_targets", *family.lora_targets,
        "--lora_heads", *(["projector"] if family.has_projector else []), "classifier",
    ]  # fmt: skip
    command += ["--bf16"] if training.mixed_precision == "bf16" else []
    command += ["--random_weights"] if model.random_weights else []
    used = measured([str(Path(w).resolve() if isinstance(w, Path) else w) for w in command])
    run = read_json(output)
    return {
        **used,
        "train_seconds": run["train_seconds"],
        "train_cpu_seconds": run["train_cpu_seconds"],
        **seen(options, run["steps"], run["epochs"], len(split["train"])),
        "validation_uar_by_epoch": run["validation_uar_by_epoch"],
    }


def seen(options: list[str], steps: int, epochs: float, num_recordings: int) -> dict[str, Any]:
    """How many recordings a run drew, over all its epochs or steps."""
    _, _, training = parse_config([DataConfig, ModelConfig, TrainConfig], options)
    if training.max_steps > 0:
        return {"recordings_drawn": steps * training.batch_size, "recordings": num_recordings}
    return {"recordings_drawn": round(epochs * num_recordings), "recordings": num_recordings}


def summary(runs: Path, case: str) -> dict[str, Any]:
    """Medians over the seeds of each side, their ratios, and every run."""
    sides: dict[str, Any] = {}
    for side in SIDES:
        found = [read_json(path) for path in sorted(runs.glob(f"{case}-{side}-[0-9]*.json"))]
        if not found:
            return {}
        per_epoch = [run["recordings"] / run["recordings_drawn"] for run in found]
        scores = [run["validation_uar_by_epoch"] for run in found]
        sides[side] = {
            "seconds_per_epoch": _median(
                run["train_seconds"] * e for run, e in zip(found, per_epoch)
            ),
            "cpu_seconds_per_epoch": _median(
                run["train_cpu_seconds"] * e for run, e in zip(found, per_epoch)
            ),
            "recordings_per_second": _median(
                run["recordings_drawn"] / run["train_seconds"] for run in found
            ),
            "process_seconds": _median(run["process_seconds"] for run in found),
            "peak_mb": _median(run["peak_mb"] for run in found),
            "best_validation_uar": [max(s) for s in scores if s],
            "last_validation_uar": [s[-1] for s in scores if s],
            "runs": found,
        }
    ours, plain = sides["ours"], sides["plain"]
    sides["plain_over_ours"] = {
        name: round(plain[name] / ours[name], 2)
        for name in ("seconds_per_epoch", "cpu_seconds_per_epoch", "process_seconds", "peak_mb")
    }
    sides["utilisation"] = utilisation(runs, case, ours)
    return sides


def _median(values: Any) -> float:
    return round(statistics.median(values), 2)


def utilisation(runs: Path, case: str, ours: dict[str, Any]) -> dict[str, Any]:
    """Counted operations of our training steps over a measured matrix peak of this device."""
    _, model_config, training = parse_config(
        [DataConfig, ModelConfig, TrainConfig], [*CASES[case][1], "--source", "synthetic"]
    )
    data = parse_config([DataConfig], [])[0]
    backbone = str(runs / "wav2vec2-base") if case == "speech" else model_config.backbone
    make_features = FeatureMaker(
        load_feature_extractor(locate_backbone(backbone)), data.window_seconds
    )
    model = build_classifier(
        backbone, ["a", "b"], model_config.pooling, model_config.layer_weighted_sum,
        model_config.random_weights,
    )  # fmt: skip
    model.set_attn_implementation("eager")  # whose products are all counted
    if training.keep_fraction < 1:
        drop_tokens(model, training.keep_fraction)
    model = adapt(model, model_config.adaptation, model_config.lora_rank).train()
    window = torch.randn(1, make_features.window).numpy()
    inputs = {make_features.input_name: torch.from_numpy(make_features(window))}
    flops = count_flops(lambda: model(**inputs).logits.sum().backward())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = matmul_tflops(device, training.mixed_precision)
    speed = _median(
        run["recordings_drawn"]
        # on a CPU by the time that the run got of it, as the peak is
        / (run["train_seconds"] if device == "cuda" else run["train_cpu_seconds"])
        for run in ours["runs"]
    )
    if device == "cpu":
        speed *= torch.get_num_threads()
    achieved = flops * speed * training.windows_per_recording / 1e12
    return {
        "device": device,
        "gigaflops_per_training_window": round(flops / 1e9, 3),
        "achieved_tflops": round(achieved, 4),
        "matmul_peak_tflops": round(peak, 4),
        "share_of_peak": round(achieved / peak, 3),
    }


def table(content: dict[str, Any]) -> str:
    """Markdown: for each case both sides and how many times over ours is better."""
    libraries = content["libraries_mb"]
    lines = [
        "# Fine-tuning against the plain Hugging Face way",
        "",
        "Ours: `scripts/train.py` with the options below. Plain: "
        "`benchmarks/plain_finetuning.py`, a stock `Trainer` that decodes and resamples whole "
        "clips with librosa every time. Medians of runs by turns on the same split of the real "
        "PASCAL recordings; an epoch shows the model every training recording once and ends with "
        "validation and a checkpoint. CPU seconds are those that the process used: other programs "
        "ran on this machine and stretched wall time, so they are the fairer column. "
        f"A process that has only imported torch, datasets, peft and the Trainer holds {libraries} "
        "MB; the memory column in brackets is what comes on top. Made by "
        "`benchmarks/finetuning_speed.py`.",
    ]
    for case, sides in content["cases"].items():
        if not sides:
            continue
        options = [w for w in CASES[case][1] if not Path(w).is_absolute() and w != "--config"]
        config = Path(CASES[case][1][1]).name
        lines += [
            "",
            f"## {CASES[case][0]}",
            "",
            f"`--config configs/{config} {' '.join(options)}`".replace(" `", "`"),
            "",
            "| | s per epoch | CPU s per epoch | recordings/s | peak MB (above libraries) | "
            "best validation UAR, mean of seeds | last epoch's |",
            "|---|---|---|---|---|---|---|",
        ]
        for side in SIDES:
            row = sides[side]
            best, last = row["best_validation_uar"], row["last_validation_uar"]
            share = row["cpu_seconds_per_epoch"] / row["seconds_per_epoch"]
            lines.append(
                f"| {side} | {row['seconds_per_epoch']} (got {share:.0%} of a core) | "
                f"{row['cpu_seconds_per_epoch']} | {row['recordings_per_second']} | "
                f"{row['peak_mb']:.0f} ({row['peak_mb'] - libraries:.0f}) | {_scores(best)} | "
                f"{_scores(last)} |"
            )
        ratio = sides["plain_over_ours"]
        above = (sides["plain"]["peak_mb"] - libraries) / (sides["ours"]["peak_mb"] - libraries)
        used = sides["utilisation"]
        lines += [
            f"| plain / ours | {ratio['seconds_per_epoch']} | {ratio['cpu_seconds_per_epoch']} | "
            f"| {ratio['peak_mb']} ({above:.2f}) | | |",
            "",
            f"Ours: {used['gigaflops_per_training_window']} GFLOP a training window (counted), "
            f"{used['achieved_tflops']} TFLOP/s over a matrix peak of {used['matmul_peak_tflops']} "
            f"TFLOP/s measured on this {used['device']}: {used['share_of_peak']:.1%}, validation "
            "and checkpoints included in the time.",
        ]
    if content["environment"]["device"] == "cpu":
        lines += ["", "No GPU was there: nothing here was measured on one."]
    return "\n".join([*lines, ""])


def _scores(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
