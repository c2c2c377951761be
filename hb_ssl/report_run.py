"""The files of a run folder, read and checked, and what the report computes from them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hb_ssl.config import read_yaml
from hb_ssl.data.recording import Recording, task_label
from hb_ssl.data.splits import read_split
from hb_ssl.data.task import load_recordings
from hb_ssl.errors import UserError
from hb_ssl.evaluation.baselines import fit_predict_baseline
from hb_ssl.evaluation.intervals import grouped_bootstrap
from hb_ssl.evaluation.metrics import labels_of, read_predictions, rows_by_part
from hb_ssl.files import read_json

SCORES = (
    "uar", "macro_f1", "accuracy", "problem_sensitivity", "problem_specificity", "problem_auroc",
    "auroc_macro", "per_class", "confusion_matrix",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run of ``hb-ssl train`` or ``hb-ssl cv``.

    Attributes:
        folder: the run folder.
        config: content of ``config.yaml``.
        environment: of ``environment.json``.
        data_card: of ``data_card.json``.
        metrics: of ``metrics.json``.
        labels: class names in label-id order.
        rows: of ``predictions.csv``.
        intervals: 95 % subject-bootstrap intervals by part of the data.
        split: recording ids by part; empty for a cross-validation.
        hashes: SHA-256 of the recordings' files when the run was made, where it was kept.
        histories: one list of rows a training run or fold; empty for a baseline.
        windows: start in seconds and predicted class of the windows, by recording.
        recordings: the source listed again, by id; ``None`` where it can't be reached any more.
        unreachable: why not, in one line.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    data_card: dict[str, Any]
    metrics: dict[str, Any]
    labels: list[str]
    rows: list[dict[str, Any]]
    intervals: dict[str, dict[str, dict[str, float | None]]]
    split: dict[str, list[str]]
    hashes: dict[str, str]
    histories: list[list[dict[str, Any]]]
    windows: dict[str, list[tuple[float, str]]]
    recordings: dict[str, Recording] | None
    unreachable: str

    @property
    def cross_validated(self) -> bool:
        return "method" in self.metrics

    @property
    def method(self) -> str:
        return str(self.metrics.get("method", "fine_tune"))

    @property
    def synthetic(self) -> bool:
        return bool(self.data_card["synthetic"] or self.metrics.get("synthetic"))

    @property
    def random_weights(self) -> bool:
        return self.method == "fine_tune" and bool(self.config.get("random_weights"))

    @property
    def num_seeds(self) -> int:
        return len({row.get("seed") for row in self.rows})


def load_run(folder: str | Path) -> Run:
    """Reads a run folder and lists its source again.

    Raises:
        UserError: no such folder, an unfinished run, or a file that is missing or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; expected the --output_dir of a run")
    if not (folder / "metrics.json").is_file():
        raise UserError(
            f"{folder}: holds no finished run (no metrics.json); finish it with --resume, or give "
            "the folder of another run"
        )
    config = read_yaml(folder / "config.yaml")
    _check(folder / "config.yaml", config, "source", "label_mode", "output_dir", "window_seconds")
    environment = read_json(folder / "environment.json")
    _check(folder / "environment.json", environment, "command", "processes")
    card = read_json(folder / "data_card.json")
    _check(
        folder / "data_card.json", card, "source", "synthetic", "num_labelled", "num_groups",
        "dropped", "inspection",
    )  # fmt: skip
    _check(folder / "data_card.json", card["inspection"], "classes", "problems")
    rows = read_predictions(folder / "predictions.csv")
    metrics = read_json(folder / "metrics.json")
    labels = labels_of(rows)
    _check_metrics(folder / "metrics.json", metrics, rows, labels)
    split, hashes, histories = {}, {}, []
    if "method" not in metrics:
        split = read_split(folder / "splits.json")
        _check(folder / "splits.json", split, "train", "validation", "test")
        parts = read_json(folder / "splits.json")["parts"].values()
        hashes = {r["recording_id"]: r["content_hash"] for p in parts for r in p if len(r) > 2}
        histories = [_read_history(folder / "history.json")]
    elif metrics["method"] == "fine_tune":
        paths = sorted(folder.glob("seed-*-fold-*/history.json"))
        histories = [_read_history(path) for path in paths]
    try:
        listed = load_recordings(config["source"], config.get("num_synthetic") or 0)
        recordings = {recording.recording_id: recording for recording in listed.recordings}
        unreachable = ""
    except UserError as error:
        recordings, unreachable = None, str(error)
    return Run(
        folder=folder,
        config=config,
        environment=environment,
        data_card=card,
        metrics=metrics,
        labels=labels,
        rows=rows,
        intervals=metrics.get("intervals")
        or {part: grouped_bootstrap(own, labels) for part, own in rows_by_part(rows).items()},
        split=split,
        hashes=hashes,
        histories=histories,
        windows=_read_windows(folder / "window_predictions.csv"),
        recordings=recordings,
        unreachable=unreachable,
    )


def _check(path: Path, content: Any, *keys: str) -> None:
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(
            f"{path}: has no {', '.join(missing)}; expected the file as a run writes it, "
            "run it again with --overwrite"
        )


def _check_metrics(path: Path, metrics: Any, rows: list[dict[str, Any]], labels: list[str]) -> None:
    _check(path, metrics, "recording")
    expected = rows_by_part(rows)
    _check(path, metrics["recording"], *expected)
    num_seeds = len({row.get("seed") for row in rows})
    for part, own in expected.items():
        block = metrics["recording"][part]
        _check(path, block, "n", *(f"recording_{name}" for name in SCORES))
        _check(path, block["recording_per_class"], *labels)
        if np.shape(block["recording_confusion_matrix"]) != (len(labels), len(labels)):
            raise UserError(
                f"{path}: confusion matrix of {part} is not {len(labels)} x {len(labels)}, as the "
                "labels in predictions.csv ask for; expected files of one run"
            )
        if block["n"] != round(len(own) / num_seeds):
            raise UserError(
                f"{path}: scores {block['n']} recordings of {part}, but predictions.csv holds "
                f"{round(len(own) / num_seeds)}; expected files of one run"
            )
        if "intervals" in metrics:
            _check(path, metrics["intervals"], part)


def _read_history(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or any(
        not isinstance(row, dict) or "epoch" not in row for row in rows
    ):
        raise UserError(f"{path}: expected a list of rows with 'epoch'; run it again")
    return rows


def _read_windows(path: Path) -> dict[str, list[tuple[float, str]]]:
    """Empty when there is no such file: a cross-validation keeps none."""
    windows: dict[str, list[tuple[float, str]]] = {}
    if not path.is_file():
        return windows
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                entry = (float(row["window_start_seconds"]), row["prediction"])
                windows.setdefault(row["recording_id"], []).append(entry)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: is not a table of windows ({error!r}); expected the file as a run writes it"
        ) from error
    return windows


def device_only_rows(run: Run) -> list[dict[str, Any]]:
    """What the same test rows would get from someone who knows the set and hears nothing.

    The majority class of each set among the recordings that the model of that row could learn from.

    Raises:
        UserError: the labels of the training part can't be had, or a set is not in it.
    """
    if not run.cross_validated:
        return _device_only(run, run.rows, *_training_labels(run))
    predicted = []
    folds = sorted({(row["seed"], row["fold"]) for row in run.rows})
    for seed, fold in folds:
        own_seed = [row for row in run.rows if row["seed"] == seed]
        train = [row for row in own_seed if row["fold"] != fold]
        test = [row for row in own_seed if row["fold"] == fold]
        labels, sets = [row["label"] for row in train], [row["set"] for row in train]
        predicted += _device_only(run, test, labels, sets)
    return predicted


def _training_labels(run: Run) -> tuple[list[str], list[str]]:
    labels, sets = [], []
    for recording_id in run.split["train"]:
        label = label_of(run, recording_id)
        if label not in run.labels or run.recordings is None:
            raise UserError(run.unreachable or f"{recording_id}: not among the recordings any more")
        labels.append(label)
        sets.append(run.recordings[recording_id].set)
    return labels, sets


def label_of(run: Run, recording_id: str) -> str | None:
    """The task's label of a recording of the source; ``None`` where it is not known any more."""
    recording = (run.recordings or {}).get(recording_id)
    if recording is None:
        return None
    return task_label(recording.raw_label, recording.set, run.config["label_mode"])


def _device_only(
    run: Run, test: Sequence[dict[str, Any]], train_labels: list[str], train_sets: list[str]
) -> list[dict[str, Any]]:
    probabilities = fit_predict_baseline(
        "device_only", None, train_labels, train_sets, None, [row["set"] for row in test],
        run.labels, seed=0,
    )  # fmt: skip
    kept = ("recording_id", "set", "group", "simulator", "label", "seed")
    return [
        {
            **{name: row[name] for name in kept if name in row},
            "prediction": run.labels[int(p.argmax())],
        }
        for row, p in zip(test, probabilities, strict=True)
    ]


def worst_errors(rows: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The most confident wrong row of each recording, the surest first.

    Each gets ``times_wrong`` and ``times_tested`` (above 1 where repeats tested it several times).
    """
    surest: dict[str, dict[str, Any]] = {}
    wrong: dict[str, int] = {}
    tested: dict[str, int] = {}
    for row in rows:
        recording_id = row["recording_id"]
        tested[recording_id] = tested.get(recording_id, 0) + 1
        if row["prediction"] == row["label"]:
            continue
        wrong[recording_id] = wrong.get(recording_id, 0) + 1
        known = surest.get(recording_id)
        if known is None or _confidence(row) > _confidence(known):
            surest[recording_id] = row
    ranked = sorted(surest.values(), key=lambda row: (-_confidence(row), row["recording_id"]))
    return [
        {**row, "times_wrong": wrong[r], "times_tested": tested[r]}
        for row in ranked[:limit]
        if (r := row["recording_id"])
    ]


def _confidence(row: dict[str, Any]) -> float:
    return row[f"prob_{row['prediction']}"]
