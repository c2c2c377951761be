"""Is one run better than another? Differences on the same people, with a verdict in words."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hb_ssl.errors import UserError
from hb_ssl.evaluation.calibration import calibration_error, label_ids_of, probability_matrix
from hb_ssl.evaluation.heart_sound_metric import PROBLEM_LABELS
from hb_ssl.evaluation.intervals import (
    bootstrap_difference,
    bootstrap_statistic,
    paired_bootstrap,
    verdict_of,
)
from hb_ssl.evaluation.metrics import Row, labels_of, read_predictions, rows_by_part

NUM_RESAMPLES = 500  # of the scores that need the probabilities: they take longer
SHOWN = {
    "recording_uar": "UAR",
    "recording_macro_f1": "macro-F1",
    "recording_accuracy": "accuracy",
    "recording_problem_sensitivity": "sensitivity, any problem",
    "recording_problem_specificity": "specificity, any problem",
    "recording_problem_auroc": "AUROC, any problem",
    "recording_auroc_macro": "AUROC, mean of classes",
    "recording_ece": "calibration error (lower is better)",
}
PARTS = {"overall": "all", "set_a": "set A", "set_b": "set B",
         "without_simulator": "without simulator"}  # fmt: skip


def compare_runs(folder_a: str | Path, folder_b: str | Path) -> dict[str, dict[str, Any]]:
    """Paired subject bootstrap of every score of two runs, by part of the data.

    Args:
        folder_a: a run folder with ``predictions.csv``.
        folder_b: another, whose test recordings, labels and groups are the same.

    Returns:
        ``{part: {metric: {"value_a", "value_b", "difference", "low", "high", "verdict"}}}``.

    Raises:
        UserError: no predictions, or the runs don't share their recordings.
    """
    rows_a, rows_b = (read_predictions(Path(f) / "predictions.csv") for f in (folder_a, folder_b))
    labels, other = labels_of(rows_a), labels_of(rows_b)
    if set(labels) != set(other):
        raise UserError(
            f"{folder_a} has the classes {', '.join(labels)} and {folder_b} has "
            f"{', '.join(other)}; expected two runs of one task (the same label_mode)"
        )
    names = _names(folder_a, folder_b)
    parts_a, parts_b = rows_by_part(rows_a), rows_by_part(rows_b)
    return {
        part: compare_rows(parts_a[part], parts_b.get(part, []), labels, names)
        for part in parts_a
        if part in parts_b or part == "overall"
    }


def _names(folder_a: str | Path, folder_b: str | Path) -> tuple[str, str]:
    short = Path(folder_a).resolve().name, Path(folder_b).resolve().name
    return short if short[0] != short[1] else (str(folder_a), str(folder_b))


def compare_rows(
    rows_a: Sequence[Row], rows_b: Sequence[Row], labels: Sequence[str], names: tuple[str, str]
) -> dict[str, Any]:
    """``compare_runs`` of prediction rows of one part."""
    result = paired_bootstrap(rows_a, rows_b, labels, names=names)
    scores = probability_scores(rows_a, labels), probability_scores(rows_b, labels)
    groups = [[str(row["group"]) for row in rows] for rows in (rows_a, rows_b)]
    for metric in scores[0]:
        own, other = scores[0][metric], scores[1][metric]
        found = bootstrap_difference(groups[0], own, groups[1], other, NUM_RESAMPLES)
        verdict = verdict_of(found["difference"], found["low"], found["high"], names)
        result[metric] = {**found, "verdict": verdict}
    return result


def probability_scores(
    rows: Sequence[Row], labels: Sequence[str]
) -> dict[str, Callable[[np.ndarray], float]]:
    """AUROC and calibration error as functions of row numbers.

    AUROC is averaged over seeds. The calibration error is that of all seeds together, since few
    rows make it too large; so compare runs of as many seeds.
    """
    probabilities, true = probability_matrix(rows, labels), label_ids_of(rows, labels)
    problem = np.isin(list(labels), PROBLEM_LABELS)
    of_problem = probabilities[:, problem].sum(axis=1)
    predicted = np.array([list(labels).index(row["prediction"]) for row in rows])
    seeds = np.unique([str(row.get("seed")) for row in rows], return_inverse=True)[1]

    def per_seed(score: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
        return lambda index: float(
            np.mean([score(index[seeds[index] == seed]) for seed in np.unique(seeds[index])])
        )

    def macro(index: np.ndarray) -> float:
        present = np.unique(true[index])
        return float(np.mean([auroc(probabilities[index, c], true[index] == c) for c in present]))

    return {
        "recording_problem_auroc": per_seed(lambda i: auroc(of_problem[i], problem[true[i]])),
        "recording_auroc_macro": per_seed(macro),
        "recording_ece": lambda i: calibration_error(
            probabilities[i].max(axis=1), (predicted[i] == true[i]).astype(float)
        ),
    }


def probability_intervals(
    rows: Sequence[Row], labels: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """95 % subject-bootstrap intervals of the scores of ``probability_scores``."""
    groups = [str(row["group"]) for row in rows]
    return {
        name: bootstrap_statistic(groups, score, NUM_RESAMPLES)
        for name, score in probability_scores(rows, labels).items()
    }


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve from ranks (Mann-Whitney); NaN where a class is missing."""
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    ranks = rankdata(scores)
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def format_comparison(result: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as text, the verdict on UAR first."""
    lines = [f"UAR: {result['overall']['recording_uar']['verdict']}."]
    for part, metrics in result.items():
        lines += ["", f"{PARTS[part]}:"]
        lines += [f"  {SHOWN[name]}: {block['verdict']}" for name, block in metrics.items()]
    lines += [
        "",
        "Both runs are resampled with the same people; each verdict is about its score alone.",
    ]
    return "\n".join(lines)
