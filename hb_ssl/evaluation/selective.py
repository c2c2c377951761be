"""Answering only where the model is sure: risk against coverage, and when to abstain.

Risk is the share of wrong answers among those given, coverage the share of recordings answered (El-
Yaniv and Wiener 2010, J. Mach. Learn. Res. 11:1605; Geifman and El-Yaniv 2017 for choosing a
threshold at a stated risk). The confidence is the highest calibrated probability, as ``inference``
uses it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hb_ssl.evaluation.calibration import (
    choose_method,
    fit_scaling,
    folds_of_rows,
    label_ids_of,
    probability_matrix,
    with_probabilities,
)
from hb_ssl.evaluation.intervals import bootstrap_statistic
from hb_ssl.evaluation.metrics import Row
from hb_ssl.evaluation.verdict import calibrate

RISK = 0.2  # wrong answers among those given
COVERAGE = 0.8
CURVE_POINTS = 50


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk ``[N]`` when the n surest are answered, n = 1 to N.

    Recordings of equal confidence are answered together: their risk is that of the whole tie.

    Args:
        confidence: ``[N]``.
        wrong: 1 for a wrong answer, ``[N]``.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last_of_tie = np.searchsorted(-ranked, -ranked, side="right") - 1
    num = np.arange(1, len(ranked) + 1)
    errors = np.cumsum(wrong[order].astype(float))
    return num[last_of_tie] / len(ranked), errors[last_of_tie] / num[last_of_tie]


def area_under_risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """AURC: the mean risk over all coverages (lower is better)."""
    return float(risk_coverage(confidence, wrong)[1].mean())


def threshold_for_risk(confidence: np.ndarray, wrong: np.ndarray, risk: float) -> float:
    """The lowest confidence to answer at so that at most ``risk`` of the answers are wrong.

    Returns:
        0 where even answering everything keeps the risk; 1 where no threshold does, so that
        nothing but certainty is answered.
    """
    coverage, risks = risk_coverage(confidence, wrong)
    allowed = np.flatnonzero(risks <= risk)
    if not len(allowed):
        return 1.0
    if coverage[allowed[-1]] == 1.0:
        return 0.0
    return float(np.sort(confidence)[::-1][allowed[-1]])


def uar_of(label_ids: np.ndarray, predicted_ids: np.ndarray) -> float:
    """Mean recall of the classes present; NaN without rows."""
    present = np.unique(label_ids)
    recalls = [(predicted_ids[label_ids == c] == c).mean() for c in present]
    return float(np.mean(recalls)) if recalls else float("nan")


def fit_calibration(
    rows: Sequence[Row], labels: Sequence[str], fitted_on: str, risk: float = RISK
) -> dict[str, Any]:
    """The ``calibration`` of ``preprocessing.json``, from out-of-fold rows.

    The model that gets it was trained on more recordings than each of the folds' models, so its
    confidence may differ a little; no data are left to fit on otherwise.

    Args:
        rows: out-of-fold rows of the recipe.
        labels: label names of the task.
        fitted_on: what the rows are, in words.
        risk: share of wrong answers to accept among those given.

    Returns:
        ``{"temperature", "bias", "abstain_below", "risk", "method", "fitted_on"}``.
    """
    method = choose_method(rows, labels)
    probabilities, label_ids = probability_matrix(rows, labels), label_ids_of(rows, labels)
    scaling = fit_scaling(probabilities, label_ids, method)
    calibrated = calibrate(probabilities, scaling)
    wrong = calibrated.argmax(axis=1) != label_ids
    threshold = threshold_for_risk(calibrated.max(axis=1), wrong, risk)
    return {**scaling, "abstain_below": threshold, "risk": risk, "method": method,
            "fitted_on": fitted_on}  # fmt: skip


def crossfit_abstention(
    rows: Sequence[Row], labels: Sequence[str], method: str, risk: float = RISK
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Calibrated rows and whether each is answered, both fitted on other people's recordings.

    Args:
        rows: out-of-fold rows.
        labels: label names of the task.
        method: of ``fit_scaling``.
        risk: as in ``fit_calibration``.

    Returns:
        The calibrated rows, and answered or not, ``[N]``.
    """
    probabilities, label_ids = probability_matrix(rows, labels), label_ids_of(rows, labels)
    fold = folds_of_rows(rows)
    calibrated = np.empty_like(probabilities)
    answered = np.zeros(len(rows), dtype=bool)
    for number in np.unique(fold):
        others, own = fold != number, fold == number
        scaling = fit_scaling(probabilities[others], label_ids[others], method)
        fitted = calibrate(probabilities[others], scaling)
        wrong = fitted.argmax(axis=1) != label_ids[others]
        threshold = threshold_for_risk(fitted.max(axis=1), wrong, risk)
        calibrated[own] = calibrate(probabilities[own], scaling)
        answered[own] = calibrated[own].max(axis=1) >= threshold
    return with_probabilities(rows, labels, calibrated), answered


def selective_scores(
    rows: Sequence[Row], labels: Sequence[str], method: str, risk: float = RISK
) -> dict[str, Any]:
    """What abstaining brings, out of fold.

    Args:
        rows: out-of-fold rows as the model gave them.
        labels: label names of the task.
        method: of ``fit_scaling``.
        risk: the stated risk.

    Returns:
        ``aurc``, ``uar_all``, ``uar_at_coverage`` and ``uar_gain`` (the surest ``COVERAGE`` of each
        seed answered), each with its 95 % interval; ``stated_risk`` with the ``risk``,
        ``coverage`` and ``uar`` that a threshold from other people's recordings gave; and the
        ``curve``, points ``{"coverage", "risk", "uar"}``.
    """
    calibrated, answered = crossfit_abstention(rows, labels, method, risk)
    label_ids = label_ids_of(calibrated, labels)
    probabilities = probability_matrix(calibrated, labels)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = predicted != label_ids
    groups = [str(row["group"]) for row in rows]
    seeds = np.array([str(row.get("seed")) for row in rows])

    def mean_over_seeds(index: np.ndarray, coverage: float) -> float:
        values = []
        for seed in np.unique(seeds):
            own = index[seeds[index] == seed]
            surest = own[np.argsort(-confidence[own], kind="stable")]
            surest = surest[: max(round(coverage * len(own)), 1)]
            values.append(uar_of(label_ids[surest], predicted[surest]))
        return float(np.mean(values))

    def given(index: np.ndarray) -> np.ndarray:
        return index[answered[index]]

    return {
        "method": method,
        "coverage": COVERAGE,
        "aurc": bootstrap_statistic(
            groups, lambda i: area_under_risk_coverage(confidence[i], wrong[i])
        ),
        "uar_all": bootstrap_statistic(groups, lambda i: mean_over_seeds(i, 1.0)),
        "uar_at_coverage": bootstrap_statistic(groups, lambda i: mean_over_seeds(i, COVERAGE)),
        "uar_gain": bootstrap_statistic(
            groups, lambda i: mean_over_seeds(i, COVERAGE) - mean_over_seeds(i, 1.0)
        ),
        "stated_risk": {
            "stated": risk,
            "risk": bootstrap_statistic(
                groups, lambda i: float(wrong[given(i)].mean()) if len(given(i)) else np.nan
            ),
            "coverage": bootstrap_statistic(groups, lambda i: float(answered[i].mean())),
            "uar": bootstrap_statistic(
                groups, lambda i: uar_of(label_ids[given(i)], predicted[given(i)])
            ),
        },
        "curve": _curve(confidence, wrong, label_ids, predicted),
    }


def _curve(
    confidence: np.ndarray, wrong: np.ndarray, label_ids: np.ndarray, predicted: np.ndarray
) -> list[dict[str, float]]:
    order = np.argsort(-confidence, kind="stable")
    points = []
    for share in np.linspace(1 / CURVE_POINTS, 1, CURVE_POINTS):
        surest = order[: max(round(share * len(order)), 1)]
        points.append(
            {
                "coverage": len(surest) / len(order),
                "risk": float(wrong[surest].mean()),
                "uar": uar_of(label_ids[surest], predicted[surest]),
            }
        )
    return points
