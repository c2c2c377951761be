"""Repeated grouped k-fold cross-validation of a fine-tuning recipe or a baseline.

Every recording is tested once a repeat, by a model that saw no recording of its group. Fine-tuning
takes its validation part for early stopping from the training side of each fold; nothing is ever
chosen on the test side.
"""

import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hb_ssl.config import CrossValidationConfig, DataConfig, ModelConfig, TrainConfig
from hb_ssl.data.dataset import Waveforms, waveform_dataset
from hb_ssl.data.splits import Item, grouped_folds, inner_validation
from hb_ssl.data.task import HeartSoundTask, prepare_task_from
from hb_ssl.errors import UserError
from hb_ssl.evaluation.baselines import BASELINES, FEATURE_BASELINES, fit_predict_baseline
from hb_ssl.evaluation.hand_made_features import FEATURE_RATE, feature_matrix
from hb_ssl.evaluation.metrics import read_predictions
from hb_ssl.evaluation.probes import (
    LOG_MEL_RATE,
    PROBES,
    FrozenBackbone,
    embedding_matrix,
    fit_predict_probe,
    log_mel_matrix,
)
from hb_ssl.files import read_json, write_csv_atomic, write_json_atomic, write_text_atomic
from hb_ssl.processes import processes
from hb_ssl.runs import changed_data, describe_environment, open_run, remove_checkpoints
from hb_ssl.scoring import score_with_intervals, summary_table
from hb_ssl.training import describe_task, fine_tune

logger = logging.getLogger(__name__)

METHODS = ("fine_tune", *PROBES, *BASELINES)


def cross_validate(
    data: DataConfig, model: ModelConfig, training: TrainConfig, cv: CrossValidationConfig
) -> Path:
    """Runs all folds of all repeats, each once; an interrupted run goes on with ``--resume``.

    The folder holds ``folds.json``, one folder a fold, and, when all are done, ``predictions.csv``
    (``seed`` and ``fold`` columns added), ``metrics.json`` and ``summary.md``.

    Returns:
        The run folder.

    Raises:
        UserError: bad input, or the folder holds another run.
    """
    if cv.method not in METHODS:
        raise UserError(f"method '{cv.method}': expected one of {', '.join(METHODS)}")
    folder = Path(training.output_dir)
    state = processes()
    configs = (data, model, training, cv)
    with open_run(folder, training.resume, training.overwrite, *configs) as finished:
        if finished:
            return folder
        with state.main_process_first():
            task = prepare_task_from(data)
        with state.main_process_first():
            features = describe_recordings(task, cv.method, data, model)
        plan = [
            (repeat, number, test)
            for repeat in range(cv.num_repeats)
            for number, test in enumerate(grouped_folds(task.items, cv.num_folds, seed=repeat))
        ]
        folds = [{"seed": r, "fold": k, "test": sorted(test)} for r, k, test in plan]
        folds_file = folder / "folds.json"
        if folds_file.is_file() and read_json(folds_file) != folds:
            raise changed_data(folds_file)
        if state.is_main_process:
            write_json_atomic(folder / "environment.json", describe_environment())
            write_json_atomic(folder / "data_card.json", describe_task(task))
            write_json_atomic(folds_file, folds)
        bar = tqdm(plan, desc=f"{cv.method} folds", disable=None if state.is_main_process else True)
        for repeat, number, test in bar:
            fold_folder = folder / f"seed-{repeat}-fold-{number}"
            if (fold_folder / "predictions.csv").is_file():
                if state.is_main_process:
                    remove_checkpoints(fold_folder)  # killed between its result and this
                logger.info("seed %d fold %d is done already", repeat, number)
            elif cv.method == "fine_tune":
                _fine_tune_fold(task, test, data, model, training, repeat, number, fold_folder)
            elif state.is_main_process:
                rows = baseline_rows(task, test, cv.method, features, seed=repeat)
                _write_fold(fold_folder, rows, repeat, number)
            state.wait_for_everyone()
        if state.is_main_process:
            _summarise(folder, task, plan, cv)
        state.wait_for_everyone()
    return folder


def describe_recordings(
    task: HeartSoundTask, method: str, data: DataConfig, model: ModelConfig
) -> dict[str, np.ndarray] | None:
    """What a method without fine-tuning sees of every recording ``[F]``, by recording id.

    ``None`` for fine-tuning and for baselines that hear nothing.
    """
    recordings = [task.recordings[item.recording_id] for item in task.items]
    ids = [recording.recording_id for recording in recordings]

    def at(rate: int) -> Waveforms:
        return Waveforms(waveform_dataset(recordings, rate, data.band_low_hz, data.band_high_hz))

    if method in FEATURE_BASELINES:
        waveforms = at(FEATURE_RATE)
        matrix = feature_matrix((waveforms[recording_id] for recording_id in ids), FEATURE_RATE)
    elif method == "log_mel_probe":
        matrix = log_mel_matrix(at(LOG_MEL_RATE), ids, data.window_seconds, data.hop_seconds)
    elif method == "embedding_probe":
        frozen = FrozenBackbone(
            model.backbone, data.window_seconds, data.hop_seconds, model.random_weights
        )
        matrix = embedding_matrix(frozen, at(frozen.make_features.sampling_rate), ids)
    else:
        return None
    return dict(zip(ids, matrix, strict=True))


def _fine_tune_fold(
    task: HeartSoundTask,
    test: list[str],
    data: DataConfig,
    model: ModelConfig,
    training: TrainConfig,
    repeat: int,
    number: int,
    folder: Path,
) -> None:
    outer = set(test)
    rest = [item for item in task.items if item.recording_id not in outer]
    train_ids, validation_ids = inner_validation(rest, data.validation_fraction, seed=repeat)
    split = {"train": train_ids, "validation": validation_ids, "test": test}
    seeded = replace(training, seed=training.seed + repeat)
    tuned = fine_tune(task, split, data, model, seeded, folder)
    if processes().is_main_process:
        write_json_atomic(folder / "history.json", tuned.history)
        write_json_atomic(folder / "summary.json", tuned.summary)
        _write_fold(folder, tuned.recording_rows, repeat, number)
        remove_checkpoints(folder)


def baseline_rows(
    task: HeartSoundTask,
    test: list[str],
    method: str,
    features: dict[str, np.ndarray] | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Fits a probe or baseline on all recordings but ``test``, and predicts those.

    Args:
        task: the recordings.
        test: recording ids.
        method: a method other than ``fine_tune``.
        features: from ``describe_recordings``.
        seed: of inner folds and trees.

    Returns:
        Recording rows as in ``predictions.csv``.

    Raises:
        LeakError: a group or a duplicate stands on both sides.
    """
    outer = set(test)
    train_items = [item for item in task.items if item.recording_id not in outer]
    test_items = [item for item in task.items if item.recording_id in outer]
    task.check_split({"train": [item.recording_id for item in train_items], "test": test})

    def matrix(items: list[Item]) -> np.ndarray | None:
        return None if features is None else np.stack([features[i.recording_id] for i in items])

    train_labels = [item.label for item in train_items]
    train_features, test_features = matrix(train_items), matrix(test_items)
    if method in PROBES:
        assert train_features is not None and test_features is not None
        probabilities = fit_predict_probe(
            train_features,
            train_labels,
            [item.group for item in train_items],
            test_features,
            task.labels,
            seed=seed,
        )
    else:
        probabilities = fit_predict_baseline(
            method,
            train_features,
            train_labels,
            [item.set for item in train_items],
            test_features,
            [item.set for item in test_items],
            task.labels,
            seed=seed,
        )
    return [
        {
            "recording_id": item.recording_id,
            "set": item.set,
            "group": item.group,
            "simulator": int(task.groups[item.recording_id].simulator),
            "label": item.label,
            "prediction": task.labels[int(row.argmax())],
            "num_windows": 1,
            **{f"prob_{name}": float(p) for name, p in zip(task.labels, row, strict=True)},
        }
        for item, row in zip(test_items, probabilities, strict=True)
    ]


def _write_fold(folder: Path, rows: list[dict[str, Any]], repeat: int, number: int) -> None:
    """Written last: a fold that has ``predictions.csv`` is done."""
    rows = [{**row, "seed": repeat, "fold": number} for row in rows]
    write_csv_atomic(folder / "predictions.csv", rows)


def _summarise(
    folder: Path, task: HeartSoundTask, plan: list[Any], cv: CrossValidationConfig
) -> None:
    fold_folders = [folder / f"seed-{repeat}-fold-{number}" for repeat, number, _ in plan]
    rows = [row for path in fold_folders for row in read_predictions(path / "predictions.csv")]
    summaries = [read_json(p / "summary.json") for p in fold_folders if cv.method == "fine_tune"]
    metrics = {
        "method": cv.method,
        "synthetic": task.synthetic,
        "num_folds": cv.num_folds,
        "num_repeats": cv.num_repeats,
        **score_with_intervals(rows, task.labels),
    }
    if summaries:
        metrics["run"] = {
            "parameters": summaries[0]["parameters"],
            "random_weights": summaries[0]["random_weights"],
            "mean_train_seconds": statistics.mean(s["train_seconds"] for s in summaries),
        }
    write_csv_atomic(folder / "predictions.csv", rows)
    title = f"{cv.method}, {cv.num_folds} grouped folds x {cv.num_repeats} repeats"
    write_text_atomic(folder / "summary.md", f"# {title}\n\n{summary_table(metrics)}")
    write_json_atomic(folder / "metrics.json", metrics)
