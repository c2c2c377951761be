"""Probabilities that mean what they say: scaling fitted on out-of-fold predictions.

Temperature and vector scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks",
sections 4.1 and 4.2). Every number reported here is cross-fitted: the scaling of a recording is
fitted on recordings of other people only.

Rows count as they occur unless ``balanced`` is asked for, so that calibrated probabilities hold at
the class frequencies of the data, which is what ECE measures. Balanced fitting makes them hold
where all classes are equally common; a model trained with class weights then keeps its decisions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

from hb_ssl.data.splits import Item, grouped_folds
from hb_ssl.errors import UserError
from hb_ssl.evaluation.intervals import bootstrap_statistic
from hb_ssl.evaluation.metrics import PROBABILITY_PREFIX, Row, check_rows, score_recordings
from hb_ssl.evaluation.verdict import SMALLEST, calibrate

METHODS = ("temperature", "vector")
NUM_BINS = 10
NUM_FOLDS = 5
MAX_UAR_LOSS = 0.01
BIAS_PRIOR = 1.0  # standard deviation of the Gaussian prior on every bias, in nats


def fit_scaling(
    probabilities: np.ndarray, label_ids: np.ndarray, method: str, balanced: bool = False
) -> dict[str, Any]:
    """Temperature (and biases) of the highest likelihood.

    Args:
        probabilities: ``[N, C]`` of recordings that the model did not learn from.
        label_ids: true classes ``[N]``.
        method: ``temperature`` (decisions stay) or ``vector`` (one bias a class besides).
        balanced: weigh every class the same instead of every recording.

    Returns:
        ``{"temperature", "bias"}`` for ``calibrate``; the biases sum to 0.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method '{method}': expected one of {', '.join(METHODS)}")
    num, num_classes = probabilities.shape
    counts = np.bincount(label_ids, minlength=num_classes)
    weights = 1 / counts[label_ids] if balanced else np.ones(num)
    weights = weights / weights.sum()
    log_p = np.log(np.maximum(probabilities, SMALLEST))
    true = np.eye(num_classes)[label_ids]
    free = num_classes if method == "vector" else 0

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        sharpness = np.exp(-parameters[0])
        bias = parameters[1:] if free else np.zeros(num_classes)
        logits = log_p * sharpness + bias
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        error = np.exp(logits - log_sum[:, None]) - true
        value = weights @ (log_sum - (logits * true).sum(axis=1))
        value += 0.5 * (bias @ bias) / BIAS_PRIOR**2 / num
        slope = -sharpness * (weights @ (error * log_p).sum(axis=1))
        slopes = weights @ error + bias / BIAS_PRIOR**2 / num
        return float(value), np.concatenate([[slope], slopes[:free]])

    # Between a hundredth and a hundredfold, so that a perfect or a useless model ends somewhere.
    bounds = [(-4.6, 4.6)] + [(None, None)] * free
    found = minimize(loss, np.zeros(1 + free), jac=True, method="L-BFGS-B", bounds=bounds).x
    bias = found[1:] - found[1:].mean() if free else np.zeros(num_classes)
    return {"temperature": float(np.exp(found[0])), "bias": [float(b) for b in bias]}


def probability_matrix(rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """The ``prob_<label>`` columns as ``[N, C]``."""
    return np.array([[float(row[PROBABILITY_PREFIX + name]) for name in labels] for row in rows])


def label_ids_of(rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """True classes ``[N]``."""
    return np.array([list(labels).index(row["label"]) for row in rows])


def folds_of_rows(rows: Sequence[Row], num_folds: int = NUM_FOLDS) -> np.ndarray:
    """A fold number for every row, ``[N]``: one for all rows of a group, in every seed.

    Raises:
        UserError: some class has fewer than two groups.
    """
    first = {row["recording_id"]: row for row in rows}
    items = [
        Item(name, row["label"], str(row.get("set", "")), str(row["group"]))
        for name, row in first.items()
    ]
    fold_of = dict(zip(first, fold_numbers(items, num_folds), strict=True))
    return np.array([fold_of[row["recording_id"]] for row in rows])


def fold_numbers(items: Sequence[Item], num_folds: int = NUM_FOLDS) -> np.ndarray:
    """The grouped fold of every item, ``[N]``; fewer folds where a class has fewer groups.

    Raises:
        UserError: some class has fewer than two groups.
    """
    groups_of: dict[str, set[str]] = {}
    for item in items:
        groups_of.setdefault(item.label, set()).add(item.group)
    fewest = min((len(groups) for groups in groups_of.values()), default=0)
    if fewest < 2:
        raise UserError(
            "cross-fitting needs two groups (subjects or sessions) of every class; expected the "
            "predictions of a cross-validation, not of a few recordings"
        )
    folds = grouped_folds(list(items), min(num_folds, fewest), seed=0)
    fold_of = {name: number for number, names in enumerate(folds) for name in names}
    return np.array([fold_of[item.recording_id] for item in items])


def crossfit_calibration(
    rows: Sequence[Row], labels: Sequence[str], method: str = "temperature", balanced: bool = False
) -> list[dict[str, Any]]:
    """Prediction rows with the probabilities that other people's recordings calibrate.

    Args:
        rows: out-of-fold rows, of any number of seeds.
        labels: label names of the task.
        method: see ``fit_scaling``.
        balanced: see ``fit_scaling``.

    Returns:
        The rows in their order, with new probabilities and the prediction that follows from them.

    Raises:
        UserError: rows that can't be scored, or too few groups.
    """
    check_rows(rows, labels, columns=("group", "recording_id"))
    probabilities, label_ids = probability_matrix(rows, labels), label_ids_of(rows, labels)
    fold = folds_of_rows(rows)
    calibrated = np.empty_like(probabilities)
    for number in np.unique(fold):
        others, own = fold != number, fold == number
        scaling = fit_scaling(probabilities[others], label_ids[others], method, balanced)
        calibrated[own] = calibrate(probabilities[own], scaling)
    return with_probabilities(rows, labels, calibrated)


def with_probabilities(
    rows: Sequence[Row], labels: Sequence[str], probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """The rows with probabilities ``[N, C]`` in place of their own, and the prediction of these."""
    return [
        {
            **row,
            "prediction": labels[int(own.argmax())],
            **{PROBABILITY_PREFIX + name: float(p) for name, p in zip(labels, own, strict=True)},
        }
        for row, own in zip(rows, probabilities, strict=True)
    ]


# ---- How far the probabilities are from the truth ------------------------------------------------


def reliability_bins(
    rows: Sequence[Row], labels: Sequence[str]
) -> tuple[list[dict[str, Any]], float]:
    """Bins of equal width of the highest probability, and the expected calibration error.

    ECE is the mean over predictions of ``|accuracy - confidence|`` of their bin (Guo et al. 2017,
    equation 5).

    Returns:
        ``low``, ``high``, ``n``, ``confidence`` and ``accuracy`` (``None`` in an empty bin) of
        ``NUM_BINS`` bins, and the ECE.
    """
    confidence = np.array([max(row[f"prob_{label}"] for label in labels) for row in rows])
    correct = np.array([row["prediction"] == row["label"] for row in rows], dtype=float)
    index = _bin_of(confidence)
    bins = []
    for number in range(NUM_BINS):
        inside = index == number
        filled = bool(inside.any())
        bins.append(
            {
                "low": number / NUM_BINS,
                "high": (number + 1) / NUM_BINS,
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()) if filled else None,
                "accuracy": float(correct[inside].mean()) if filled else None,
            }
        )
    return bins, calibration_error(confidence, correct)


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """ECE of confidences and 0/1 correctness ``[N]``, over ``NUM_BINS`` bins of equal width."""
    index = _bin_of(confidence)
    gap = np.bincount(index, weights=correct - confidence, minlength=NUM_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _bin_of(confidence: np.ndarray) -> np.ndarray:
    return np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)


def brier_score(probabilities: np.ndarray, label_ids: np.ndarray) -> float:
    """Mean squared distance of ``[N, C]`` from the truth, summed over classes (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[label_ids]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def log_loss(probabilities: np.ndarray, label_ids: np.ndarray) -> float:
    """Mean negative log-likelihood in nats."""
    own = probabilities[np.arange(len(label_ids)), label_ids]
    return float(-np.log(np.maximum(own, SMALLEST)).mean())


def calibration_scores(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    """ECE, Brier score and log loss of prediction rows, with 95 % intervals over groups.

    Returns:
        ``{"ece", "brier", "log_loss": {"value", "low", "high"}, "bins": [...]}``.
    """
    probabilities, label_ids = probability_matrix(rows, labels), label_ids_of(rows, labels)
    groups = [str(row["group"]) for row in rows]
    confidence = probabilities.max(axis=1)
    correct = np.array([row["prediction"] == row["label"] for row in rows], dtype=float)

    return {
        "ece": bootstrap_statistic(groups, lambda i: calibration_error(confidence[i], correct[i])),
        "brier": bootstrap_statistic(groups, lambda i: brier_score(probabilities[i], label_ids[i])),
        "log_loss": bootstrap_statistic(groups, lambda i: log_loss(probabilities[i], label_ids[i])),
        "bins": reliability_bins(rows, labels)[0],
    }


def choose_method(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """``vector`` where it calibrates better than ``temperature`` and costs no decision; see below.

    Biases fitted at the frequencies of the data move decisions towards the common classes. That is
    accepted up to ``MAX_UAR_LOSS`` of UAR, both measured out of fold.
    """
    blocks = {}
    for method in METHODS:
        calibrated = crossfit_calibration(rows, labels, method)
        uar = score_recordings(calibrated, labels)["recording_uar"]
        blocks[method] = (reliability_bins(calibrated, labels)[1], uar)
    (plain, plain_uar), (vector, vector_uar) = blocks["temperature"], blocks["vector"]
    return "vector" if vector < plain and vector_uar >= plain_uar - MAX_UAR_LOSS else "temperature"
