"""Scores of prediction rows: per recording or per window, and per part of the data."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

from hb_ssl.errors import UserError

Row = Mapping[str, Any]

REQUIRED_COLUMNS = ("recording_id", "set", "group", "simulator", "label", "prediction")
INTEGER_COLUMNS = ("simulator", "num_windows", "seed", "fold")
PROBABILITY_PREFIX = "prob_"


def load_metric() -> evaluate.Metric:
    """The package's own ``evaluate`` metric (see ``heart_sound_metric``); needs no network.

    It is kept in memory, so that processes and runs never meet in a shared cache file; in a
    distributed run gather the predictions first and compute on every process or on one.
    """
    path = Path(__file__).with_name("heart_sound_metric.py")
    return evaluate.load(str(path), keep_in_memory=True)


def score_recordings(
    rows: Sequence[Row], labels: Sequence[str], level: str = "recording"
) -> dict[str, Any]:
    """Scores prediction rows.

    Rows of several cross-validation seeds are scored seed by seed and the scores averaged (a score
    that is undefined in one seed stays undefined), as ``intervals`` does.

    Args:
        rows: one dict a recording (or window) with ``label``, ``prediction`` and, for AUROC,
            ``prob_<label>`` of every label; optionally ``seed``.
        labels: label names of the task.
        level: ``recording`` or ``window``, the prefix of the metric names.

    Returns:
        ``<level>_uar`` and so on (the names and rules are in ``heart_sound_metric``), and ``n``,
        the number of recordings (or windows) of one seed.

    Raises:
        UserError: no rows, a missing column, or a label outside ``labels``.
        ValueError: ``level`` is neither.
    """
    if level not in ("recording", "window"):
        raise ValueError(f"level '{level}': expected 'recording' or 'window'")
    check_rows(rows, labels)
    by_seed: dict[Any, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(row.get("seed"), []).append(row)
    blocks = [_score_one_seed(seed_rows, labels) for seed_rows in by_seed.values()]
    block = blocks[0] if len(blocks) == 1 else _average(blocks)
    scores = {f"{level}_{name}": value for name, value in block.items()}
    return {**scores, "n": round(len(rows) / len(by_seed))}


def _score_one_seed(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    id_of = {label: i for i, label in enumerate(labels)}
    columns = [PROBABILITY_PREFIX + label for label in labels]
    has_scores = any(column in row for row in rows for column in columns)
    missing = [column for column in columns if any(column not in row for row in rows)]
    if has_scores and missing:
        raise UserError(
            f"prediction rows: column(s) {', '.join(missing)} missing; expected the probability of "
            "every label of the task, or of none"
        )
    scores = load_metric().compute(
        predictions=[id_of[row["prediction"]] for row in rows],
        references=[id_of[row["label"]] for row in rows],
        labels=list(labels),
        prediction_scores=(
            np.array([[float(row[column]) for column in columns] for row in rows])
            if has_scores
            else None
        ),
    )
    assert scores is not None  # None is for the other processes of a distributed metric
    return scores


def _average(values: Sequence[Any]) -> Any:
    """Mean of numbers, or of the numbers inside equally shaped dicts and lists; None wins."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _average([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_average(list(entries)) for entries in zip(*values)]
    return None if None in values else float(np.mean(values))


def score_by_part(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Recording scores over all rows, per set, and without the simulator's recordings.

    Set A and B come from different devices and hold different classes, so a score over both alone
    would hide a model that only tells the devices apart. A part scores the classes it holds.

    Returns:
        ``{"overall": ..., "set_a": ..., "set_b": ..., "without_simulator": ...}``; a part without
        rows is left out.

    Raises:
        UserError: see ``score_recordings``; also a row without ``set`` or ``simulator``.
    """
    check_rows(rows, labels, columns=("set", "simulator"))
    return {name: score_recordings(part, labels) for name, part in rows_by_part(rows).items()}


def rows_by_part(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of ``overall``, ``set_a``, ``set_b`` and ``without_simulator``, if there are any."""
    parts = {
        "overall": list(rows),
        "set_a": [row for row in rows if row["set"] == "a"],
        "set_b": [row for row in rows if row["set"] == "b"],
        "without_simulator": [row for row in rows if not int(row["simulator"])],
    }
    return {name: part for name, part in parts.items() if part}


def check_rows(rows: Sequence[Row], labels: Sequence[str], columns: Sequence[str] = ()) -> None:
    """Checks that rows can be scored.

    Raises:
        UserError: no rows, a row without ``label``, ``prediction`` or one of ``columns``, or with a
            label that is not among ``labels``.
    """
    if not rows:
        raise UserError("got no prediction rows; expected at least one, predict recordings first")
    for number, row in enumerate(rows):
        missing = [name for name in ("label", "prediction", *columns) if name not in row]
        if missing:
            raise UserError(
                f"prediction row {number}: column(s) {', '.join(missing)} missing; expected rows "
                "as hb-ssl writes them to predictions.csv"
            )
        for name in ("label", "prediction"):
            if row[name] not in labels:
                raise UserError(
                    f"prediction row {number}: {name} '{row[name]}', expected one of "
                    f"{', '.join(labels)}; score it with the labels of its own task"
                )


def labels_of(rows: Sequence[Row]) -> list[str]:
    """The task's labels, in file order, from the ``prob_<label>`` columns of prediction rows."""
    columns = list(rows[0]) if rows else []
    return [c.removeprefix(PROBABILITY_PREFIX) for c in columns if c.startswith(PROBABILITY_PREFIX)]


def read_predictions(csv_path: str | Path) -> list[dict[str, Any]]:
    """Reads a predictions CSV of a run or of a cross-validation.

    Returns:
        One dict a row; counts, seed and fold are ``int``, probabilities ``float``.

    Raises:
        UserError: the file is missing or not a predictions CSV, or a row is broken: a value that
            is no number, a label without a probability column, a recording listed twice.
    """
    path = Path(csv_path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            raw_rows = list(reader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected the predictions.csv of a run") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: can't be read as CSV ({error}); write it again") from error
    missing = [column for column in REQUIRED_COLUMNS if column not in header]
    if missing or not any(column.startswith(PROBABILITY_PREFIX) for column in header):
        missing = missing or [f"{PROBABILITY_PREFIX}<label>"]
        raise UserError(
            f"{path}: column(s) {', '.join(missing)} missing; expected the predictions.csv of a run"
        )
    if not raw_rows:
        raise UserError(f"{path}: holds a header but no rows; expected one row a recording")
    rows = [_parse_row(raw, f"{path}: line {line}") for line, raw in enumerate(raw_rows, start=2)]
    labels = labels_of(rows)
    seen: set[tuple[Any, str]] = set()
    for line, row in enumerate(rows, start=2):
        for name in ("label", "prediction"):
            if row[name] not in labels:
                raise UserError(
                    f"{path}: line {line}: {name} '{row[name]}', expected one of "
                    f"{', '.join(labels)} (the {PROBABILITY_PREFIX} columns)"
                )
        key = (row.get("seed"), row["recording_id"])
        if key in seen:
            raise UserError(
                f"{path}: line {line}: recording '{row['recording_id']}' is listed twice; expected "
                "one row a recording (and seed)"
            )
        seen.add(key)
    return rows


def _parse_row(raw: dict[str, Any], where: str) -> dict[str, Any]:
    if None in raw or None in raw.values():
        raise UserError(f"{where}: number of fields differs from the header; write the file again")
    row: dict[str, Any] = dict(raw)
    for column, text in raw.items():
        try:
            if column in INTEGER_COLUMNS:
                row[column] = int(text)
            elif column.startswith(PROBABILITY_PREFIX):
                row[column] = float(text)
                if not 0.0 <= row[column] <= 1.0 + 1e-6:  # also false for NaN
                    raise ValueError
        except ValueError as error:
            expected = "a whole number" if column in INTEGER_COLUMNS else "a number from 0 to 1"
            raise UserError(f"{where}: {column} '{text}', expected {expected}") from error
    return row
