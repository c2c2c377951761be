"""From window logits to prediction rows and scores, and the re-evaluation of a finished run."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hb_ssl.config import read_yaml
from hb_ssl.data.dataset import EvaluationWindows, FeatureMaker, Waveforms, waveform_dataset
from hb_ssl.data.splits import read_split, split_hashes
from hb_ssl.data.task import HeartSoundTask, prepare_task
from hb_ssl.errors import UserError
from hb_ssl.evaluation.intervals import grouped_bootstrap
from hb_ssl.evaluation.metrics import rows_by_part, score_by_part, score_recordings
from hb_ssl.evaluation.verdict import pool_windows
from hb_ssl.files import write_csv_atomic, write_json_atomic
from hb_ssl.models.classifier import load_classifier
from hb_ssl.processes import processes
from hb_ssl.trainer import predict_logits

logger = logging.getLogger(__name__)

TABLE_METRICS = ("recording_uar", "recording_macro_f1", "recording_accuracy")


def prediction_rows(
    task: HeartSoundTask, windows: EvaluationWindows, logits: np.ndarray
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pools window logits to one row a recording, and keeps one row a window.

    Args:
        task: labels, sets and groups.
        windows: the windows that were classified, in order.
        logits: ``[N, C]`` for the N windows.

    Returns:
        Recording rows and window rows, as in ``predictions.csv`` and ``window_predictions.csv``.
    """
    if len(logits) != len(windows):
        raise ValueError(f"{len(logits)} rows of logits for {len(windows)} windows")
    item_of = {item.recording_id: item for item in task.items}
    indices: dict[str, list[int]] = {}
    for index, recording_id in enumerate(windows.recording_of):
        indices.setdefault(recording_id, []).append(index)
    recording_rows: list[dict[str, Any]] = []
    window_rows: list[dict[str, Any]] = []
    for recording_id, own in indices.items():
        item = item_of[recording_id]
        about = {
            "recording_id": recording_id,
            "set": item.set,
            "group": item.group,
            "simulator": int(task.groups[recording_id].simulator),
            "label": item.label,
        }
        recording_rows.append(
            {**about, **_predicted(task.labels, pool_windows(logits[own]), num_windows=len(own))}
        )
        for index in own:
            start = windows.start_of[index] / windows.make_features.sampling_rate
            probabilities = pool_windows(logits[index : index + 1])
            window_rows.append(
                {**about, **_predicted(task.labels, probabilities, window_start_seconds=start)}
            )
    return recording_rows, window_rows


def _predicted(labels: list[str], probabilities: np.ndarray, **extra: Any) -> dict[str, Any]:
    return {
        "prediction": labels[int(probabilities.argmax())],
        **extra,
        **{f"prob_{name}": float(p) for name, p in zip(labels, probabilities, strict=True)},
    }


def score(task: HeartSoundTask, recording_rows: list, window_rows: list) -> dict[str, Any]:
    """The scores in ``metrics.json``: per recording (with intervals) and per window."""
    return {
        "synthetic": task.synthetic,
        **score_with_intervals(recording_rows, task.labels),
        "window": {"overall": score_recordings(window_rows, task.labels, level="window")},
    }


def score_with_intervals(rows: list[dict[str, Any]], labels: list[str]) -> dict[str, Any]:
    """Recording scores by part of the data, and their 95 % subject-bootstrap intervals."""
    return {
        "recording": score_by_part(rows, labels),
        "intervals": {
            part: grouped_bootstrap(own, labels) for part, own in rows_by_part(rows).items()
        },
    }


def summary_table(metrics: dict[str, Any]) -> str:
    """A Markdown table of ``metrics.json``: one row a part of the data."""
    lines = ["| part | n | UAR | macro-F1 | accuracy |", "|---|---|---|---|---|"]
    for part, intervals in metrics["intervals"].items():
        cells = [format_interval(intervals[name]) for name in TABLE_METRICS]
        lines.append(f"| {part} | {metrics['recording'][part]['n']} | {' | '.join(cells)} |")
    note = "Recording level; 95 % intervals from a bootstrap over subjects."
    if metrics["synthetic"]:
        note += " SYNTHETIC recordings: these scores say nothing about real hearts."
    return "\n".join([*lines, "", note, ""])


def format_interval(interval: dict[str, float | None]) -> str:
    """``0.640 (0.580-0.700)``, or ``-`` when undefined."""
    if interval["value"] is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['value']:.3f}"
    return f"{interval['value']:.3f} ({interval['low']:.3f}-{interval['high']:.3f})"


def evaluate_run(run_folder: str | Path, source: str | None = None, batch_size: int = 32) -> Path:
    """Scores a run's saved classifier again: on its own test split, or on another source.

    Works under ``accelerate launch`` and ``torchrun`` too: every window is classified once, and
    the scores do not depend on the number of processes.

    Args:
        run_folder: a finished ``hb-ssl train`` run.
        source: other recordings to score, all of them (see ``DataConfig.source``); by default the
            run's own test split.
        batch_size: windows per device.

    Returns:
        The folder that got ``metrics.json``, ``predictions.csv`` and ``window_predictions.csv``:
        ``<run>/evaluation`` or ``<run>/evaluation-<source>``.

    Raises:
        UserError: no finished run, or the source does not fit the classifier's labels.
    """
    run_folder = Path(run_folder)
    if not (run_folder / "model").is_dir():
        raise UserError(f"{run_folder}: has no model/; expected a finished `hb-ssl train` folder")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: expected a number above 0")
    model, extractor, preprocessing = load_classifier(run_folder / "model")
    saved = read_yaml(run_folder / "config.yaml")
    missing = {"source", "num_synthetic", "keep_contradictions"} - set(saved)
    if missing:
        raise UserError(
            f"{run_folder / 'config.yaml'}: has no {', '.join(sorted(missing))}; expected the file "
            "as `hb-ssl train` writes it"
        )
    task = prepare_task(
        saved["source"] if source is None else source,
        preprocessing["label_mode"],
        saved["num_synthetic"],
        saved["keep_contradictions"],
    )
    unknown = sorted(set(task.labels) - set(preprocessing["labels"]))
    if unknown:
        raise UserError(
            f"{task.source}: holds class(es) {', '.join(unknown)} that the classifier does not "
            f"know; it knows {', '.join(preprocessing['labels'])}"
        )
    task = replace(task, labels=preprocessing["labels"])
    if source is None:
        ids = _test_ids(run_folder / "splits.json", task)
        folder = run_folder / "evaluation"
    else:
        ids = _not_trained_on(run_folder / "splits.json", task)
        name = Path(source).resolve().name if Path(source).exists() else source.split("/")[-1]
        folder = run_folder / f"evaluation-{name}"
    make_features = FeatureMaker(extractor, preprocessing["window_seconds"])
    with processes().main_process_first():
        dataset = waveform_dataset(
            [task.recordings[recording_id] for recording_id in ids],
            make_features.sampling_rate,
            preprocessing["band_low_hz"],
            preprocessing["band_high_hz"],
        )
    windows = EvaluationWindows(
        Waveforms(dataset),
        ids,
        [task.label_id(recording_id) for recording_id in ids],
        len(task.labels),
        make_features,
        preprocessing["hop_seconds"],
    )
    logits = predict_logits(model, windows, batch_size)
    if processes().is_main_process:
        recording_rows, window_rows = prediction_rows(task, windows, logits)
        write_csv_atomic(folder / "predictions.csv", recording_rows)
        write_csv_atomic(folder / "window_predictions.csv", window_rows)
        write_json_atomic(folder / "metrics.json", score(task, recording_rows, window_rows))
    processes().wait_for_everyone()
    return folder


def _not_trained_on(split_file: Path, task: HeartSoundTask) -> list[str]:
    """The recordings of another source, but those whose files the run trained on or chose by."""
    used = split_hashes(split_file, ("train", "validation")) if split_file.is_file() else set()
    all_ids = [item.recording_id for item in task.items]
    ids = [r for r in all_ids if task.recordings[r].content_hash not in used]
    if not ids:
        raise UserError(
            f"{task.source}: the run was trained on every recording there, so a score would mean "
            "nothing; give other recordings, or leave --source out for the run's test split"
        )
    if len(ids) < len(all_ids):
        logger.warning(
            "%d of %d recordings are left out: the run was trained on them",
            len(all_ids) - len(ids), len(all_ids),
        )  # fmt: skip
    return ids


def _test_ids(split_file: Path, task: HeartSoundTask) -> list[str]:
    """The test recordings of a run, all still in the task."""
    ids = read_split(split_file).get("test", [])
    known = {item.recording_id for item in task.items}
    unknown = [recording_id for recording_id in ids if recording_id not in known]
    if not ids or unknown:
        found = (
            f"{len(unknown)} recordings that {task.source} does not hold ({unknown[0]})"
            if unknown
            else "no recording"
        )
        raise UserError(
            f"{split_file}: its part 'test' names {found}; expected the split of this run and its "
            "source as it was"
        )
    return ids
