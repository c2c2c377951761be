"""Confidence intervals of recording scores: a bootstrap over groups (subjects or sessions).

Recordings of one subject resemble each other, so resampling single recordings would give intervals
that are too narrow; resampling whole groups keeps what belongs together (Efron and Tibshirani 1993,
"An Introduction to the Bootstrap", chapter 8; Field and Welsh 2007, J. R. Stat. Soc. B 69:369).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hb_ssl.errors import UserError
from hb_ssl.evaluation.heart_sound_metric import PROBLEM_LABELS
from hb_ssl.evaluation.metrics import Row, check_rows

CONFIDENCE = 0.95


def grouped_bootstrap(
    rows: Sequence[Row], labels: Sequence[str], num_resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """95 % percentile intervals of the recording scores, resampling groups with replacement.

    Rows of several cross-validation seeds are scored seed by seed and averaged; a resample draws
    the same groups in every seed, since more seeds bring no new subjects. A resample scores the
    classes it holds. The interval covers the choice of test subjects only, not the variation from
    training on other subjects.

    Args:
        rows: one dict a recording (and seed) with ``group``, ``label``, ``prediction`` and
            optionally ``seed``.
        labels: label names of the task.
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``{metric: {"value", "low", "high"}}`` for ``recording_uar``, ``recording_macro_f1``,
        ``recording_accuracy``, ``recording_problem_sensitivity`` and
        ``recording_problem_specificity``. An undefined score is None; with fewer than two groups
        there is nothing to resample, and ``low`` and ``high`` are None.

    Raises:
        UserError: no rows, a missing column, or a label outside ``labels``.
    """
    counts, _ = _confusion_by_group(rows, labels)
    values = _mean_scores(counts.sum(axis=0)[None], labels)
    weights = _group_weights(len(counts), num_resamples, seed)
    resampled = _mean_scores(_resampled_counts(counts, weights), labels)
    return {
        name: {"value": _number(values[name][0]), **_interval(resampled[name], len(counts))}
        for name in values
    }


def bootstrap_statistic(
    groups: Sequence[str],
    statistic: Callable[[np.ndarray], float],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float | None]:
    """95 % percentile interval of any statistic of rows, resampling groups with replacement.

    Args:
        groups: group of every row, ``[N]``.
        statistic: takes row numbers (a row drawn twice is in there twice) and gives a number, NaN
            where it is undefined.
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``{"value", "low", "high"}``, as ``grouped_bootstrap`` gives for one metric.
    """
    members = _members(groups)
    values = [
        statistic(np.concatenate([members[g] for g in draw]))
        for draw in _draws(len(members), num_resamples, seed)
    ]
    value = _number(statistic(np.arange(len(groups))))
    return {"value": value, **_interval(np.array(values, dtype=float), len(members))}


def bootstrap_difference(
    groups_a: Sequence[str],
    statistic_a: Callable[[np.ndarray], float],
    groups_b: Sequence[str],
    statistic_b: Callable[[np.ndarray], float],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float | None]:
    """As ``bootstrap_statistic``, of a difference a - b: both sides draw the same groups.

    Returns:
        ``{"value_a", "value_b", "difference", "low", "high"}``.
    """
    members_a, members_b = _members(groups_a), _members(groups_b)
    differences = [
        statistic_a(np.concatenate([members_a[g] for g in draw]))
        - statistic_b(np.concatenate([members_b[g] for g in draw]))
        for draw in _draws(len(members_a), num_resamples, seed)
    ]
    value_a = statistic_a(np.arange(len(groups_a)))
    value_b = statistic_b(np.arange(len(groups_b)))
    return {
        "value_a": _number(value_a),
        "value_b": _number(value_b),
        "difference": _number(value_a - value_b),
        **_interval(np.array(differences, dtype=float), len(members_a)),
    }


def _members(groups: Sequence[str]) -> list[np.ndarray]:
    """Row numbers of every group, groups in sorted order."""
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return [np.flatnonzero(group_of == number) for number in range(len(names))]


def _draws(num_groups: int, num_resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(num_groups, size=(num_resamples, num_groups))


def paired_bootstrap(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    labels: Sequence[str],
    num_resamples: int = 1000,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> dict[str, dict[str, Any]]:
    """95 % interval of the score difference a - b of two models on the same recordings.

    Every resample draws the same groups for both models, so that what makes a subject easy or hard
    for both cancels. The models may differ in their number of seeds.

    Args:
        rows_a: prediction rows of the first model, see ``grouped_bootstrap``; also
            ``recording_id``.
        rows_b: of the second.
        labels: label names of the task.
        num_resamples: bootstrap resamples.
        seed: of the resampling.
        names: what the verdict calls the models.

    Returns:
        ``{metric: {"value_a", "value_b", "difference", "low", "high", "verdict"}}``. Each verdict
        is about its metric alone; no correction for looking at several.

    Raises:
        UserError: see ``grouped_bootstrap``; also when the two don't hold the same recordings with
            the same labels and groups.
    """
    for rows in (rows_a, rows_b):
        check_rows(rows, labels, columns=("group", "recording_id"))
    _check_same_recordings(rows_a, rows_b, names)
    counts_a, groups = _confusion_by_group(rows_a, labels)
    counts_b, _ = _confusion_by_group(rows_b, labels)
    weights = _group_weights(len(groups), num_resamples, seed)
    values_a = _mean_scores(counts_a.sum(axis=0)[None], labels)
    values_b = _mean_scores(counts_b.sum(axis=0)[None], labels)
    resampled_a = _mean_scores(_resampled_counts(counts_a, weights), labels)
    resampled_b = _mean_scores(_resampled_counts(counts_b, weights), labels)
    result: dict[str, dict[str, Any]] = {}
    for name in values_a:
        difference = _number(values_a[name][0] - values_b[name][0])
        interval = _interval(resampled_a[name] - resampled_b[name], len(groups))
        result[name] = {
            "value_a": _number(values_a[name][0]),
            "value_b": _number(values_b[name][0]),
            "difference": difference,
            **interval,
            "verdict": verdict_of(difference, interval["low"], interval["high"], names),
        }
    return result


def _confusion_by_group(rows: Sequence[Row], labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Confusion counts ``[G, S, C, C]`` (group, seed, true, predicted) and the sorted groups."""
    check_rows(rows, labels, columns=("group",))
    groups = sorted({str(row["group"]) for row in rows})
    group_index = {group: i for i, group in enumerate(groups)}
    seed_index: dict[Any, int] = {}
    for row in rows:
        seed_index.setdefault(row.get("seed"), len(seed_index))
    label_index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(groups), len(seed_index), len(labels), len(labels)))
    for row in rows:
        cell = (label_index[row["label"]], label_index[row["prediction"]])
        counts[(group_index[str(row["group"])], seed_index[row.get("seed")], *cell)] += 1
    return counts, groups


def _group_weights(num_groups: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each group, ``[R, G]``; every row sums to G."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples {num_resamples}: expected at least 1")
    rng = np.random.default_rng(seed)
    probabilities = np.full(num_groups, 1 / num_groups)
    return rng.multinomial(num_groups, probabilities, size=num_resamples).astype(float)


def _resampled_counts(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of ``[G, S, C, C]`` over groups: ``[R, S, C, C]``."""
    flat = weights @ counts.reshape(len(counts), -1)
    return flat.reshape(len(weights), *counts.shape[1:])


def _mean_scores(confusion: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores ``[R]`` of confusion counts ``[R, S, C, C]``, averaged over seeds; NaN if undefined.

    The rules are those of ``heart_sound_metric``.
    """
    support = confusion.sum(axis=-1)
    predicted = confusion.sum(axis=-2)
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    present = support > 0
    problem = np.isin(list(labels), PROBLEM_LABELS)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: undefined, NaN on purpose
        recall = np.where(present, correct / support, 0.0)
        f1 = np.where(present, 2 * correct / (support + predicted), 0.0)
        num_present = present.sum(axis=-1)
        true_positive = confusion[..., problem, :][..., problem].sum(axis=(-2, -1))
        true_negative = confusion[..., ~problem, :][..., ~problem].sum(axis=(-2, -1))
        scores = {
            "recording_uar": recall.sum(axis=-1) / num_present,
            "recording_macro_f1": f1.sum(axis=-1) / num_present,
            "recording_accuracy": correct.sum(axis=-1) / support.sum(axis=-1),
            "recording_problem_sensitivity": true_positive / support[..., problem].sum(axis=-1),
            "recording_problem_specificity": true_negative / support[..., ~problem].sum(axis=-1),
        }
    return {name: values.mean(axis=-1) for name, values in scores.items()}


def _interval(values: np.ndarray, num_groups: int) -> dict[str, float | None]:
    """Percentile interval of resampled scores ``[R]``, over the resamples that define the score."""
    defined = values[~np.isnan(values)]
    if num_groups < 2 or not len(defined):
        return {"low": None, "high": None}
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return {"low": float(low), "high": float(high)}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _check_same_recordings(
    rows_a: Sequence[Row], rows_b: Sequence[Row], names: tuple[str, str]
) -> None:
    keys = []
    for rows in (rows_a, rows_b):
        keys.append({(row["recording_id"], row["label"], str(row["group"])) for row in rows})
    differing = sorted(keys[0] ^ keys[1])
    if differing:
        raise UserError(
            f"{names[0]} and {names[1]} differ in recordings, labels or groups ({len(differing)} "
            f"entries, the first is {differing[0]}); expected predictions of the same splits"
        )


def verdict_of(
    difference: float | None, low: float | None, high: float | None, names: tuple[str, str]
) -> str:
    """What an interval of a difference says, in words; ``names`` are the two models'."""
    if difference is None or low is None or high is None:
        return "undefined: too few groups or classes to compare"
    numbers = f"{difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
    if low > 0:
        return f"{names[0]} scores higher than {names[1]} ({numbers})"
    if high < 0:
        return f"{names[0]} scores lower than {names[1]} ({numbers})"
    return f"no difference shown between {names[0]} and {names[1]} ({numbers})"
