"""How much of a score is the recording device, not the heart.

In PASCAL the device tells much of the class: set A (a phone) holds all artifacts, set B (a digital
stethoscope) all extrasystoles, and the two sound different. So a model may score by hearing which
device it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from hb_ssl.data.splits import Item, grouped_folds
from hb_ssl.errors import UserError
from hb_ssl.evaluation.calibration import label_ids_of
from hb_ssl.evaluation.intervals import bootstrap_statistic
from hb_ssl.evaluation.metrics import Row
from hb_ssl.evaluation.selective import uar_of

COMMON_BAND_HZ = (25.0, 195.0)  # what both devices keep: set B is low-passed near 195 Hz
NUM_FOLDS = 5
STRENGTH = 0.01  # inverse L2 penalty, as of the logistic baseline


def device_share(
    rows: Sequence[Row], device_rows: Sequence[Row], labels: Sequence[str]
) -> dict[str, Any]:
    """Which part of the UAR above guessing someone would reach who knows the device alone.

    Args:
        rows: the model's prediction rows.
        device_rows: the same recordings (and seeds), in the same order, answered from the set only.
        labels: label names of the task.

    Returns:
        ``chance``, ``model_uar``, ``device_uar``, ``share`` with its 95 % interval (0 to 1; None
        for a model no better than guessing) and ``sentence``.

    Raises:
        UserError: the rows are not of the same recordings.
    """
    keys = [[(r["recording_id"], r.get("seed")) for r in part] for part in (rows, device_rows)]
    if keys[0] != keys[1]:
        raise UserError("the model's and the device's rows differ; expected the same recordings")
    true = label_ids_of(rows, labels)
    names = list(labels)
    of_model = np.array([names.index(row["prediction"]) for row in rows])
    of_device = np.array([names.index(row["prediction"]) for row in device_rows])
    chance = 1 / len(np.unique(true))

    def share(index: np.ndarray) -> float:
        gained = uar_of(true[index], of_model[index]) - chance
        known = uar_of(true[index], of_device[index]) - chance
        return float(np.clip(known / gained, 0, 1)) if gained > 0 else np.nan

    found = bootstrap_statistic([str(row["group"]) for row in rows], share)
    model_uar, device_uar = uar_of(true, of_model), uar_of(true, of_device)
    result: dict[str, Any] = {
        "chance": chance, "model_uar": model_uar, "device_uar": device_uar, "share": found,
    }  # fmt: skip
    if len({row["set"] for row in rows}) < 2:
        sentence = (
            "All test recordings come from one device, so knowing the device tells nothing about "
            "the class and explains no part of the score."
        )
    elif found["value"] is None:
        sentence = (
            f"The model's UAR of {model_uar:.3f} is no better than guessing ({chance:.3f}); "
            f"knowing the device alone gives {device_uar:.3f}."
        )
    else:
        sure = (
            f" (95 % interval {found['low']:.0%} to {found['high']:.0%})"
            if found["low"] is not None and found["high"] is not None
            else ""
        )
        sentence = (
            f"Guessing gives a UAR of {chance:.3f}, knowing the device alone {device_uar:.3f}, "
            f"this model {model_uar:.3f}: the device alone explains {found['value']:.0%}{sure} of "
            "what the model scores above guessing."
        )
    return {**result, "sentence": sentence}


def shared_items(items: Sequence[Item]) -> np.ndarray:
    """Which items are of a class that both sets hold, ``[N]``; artifacts are never among them."""
    of_set = {s: {item.label for item in items if item.set == s} for s in ("a", "b")}
    shared = (of_set["a"] & of_set["b"]) - {"artifact"}
    return np.array([item.label in shared for item in items], dtype=bool)


def device_probe(features: np.ndarray, items: Sequence[Item]) -> dict[str, Any]:
    """How well the device can be told from features, out of fold; 0.5 is guessing.

    Only recordings of classes that both sets hold take part, so that the class can't stand in for
    the device.

    Args:
        features: ``[N, F]``: embeddings or hand-made features.
        items: the N recordings.

    Returns:
        ``{"balanced_accuracy": {"value", "low", "high"}, "n", "labels"}``.

    Raises:
        UserError: one set is missing, or there are too few groups.
    """
    features, items = _shared(features, items)
    sets = np.array([item.set for item in items])
    is_b = (sets == "b").astype(int)
    predicted = np.zeros(len(items), dtype=int)
    # Every fold needs both devices, so the device is the class to spread.
    spread = [Item(i.recording_id, i.set, i.label, i.group) for i in items]
    for train, test in _folds(spread):
        predicted[test] = _logistic().fit(features[train], is_b[train]).predict(features[test])
    groups = [item.group for item in items]
    found = bootstrap_statistic(groups, lambda i: uar_of(is_b[i], predicted[i]))
    labels = sorted({item.label for item in items})
    return {"balanced_accuracy": found, "n": len(items), "labels": labels}


def cross_device(features: np.ndarray, items: Sequence[Item]) -> dict[str, Any]:
    """UAR of a logistic regression across devices, on the classes that both hold.

    Returns:
        ``a_to_b``, ``b_to_a`` (trained on all of one set, tested on all of the other), ``within_a``
        and ``within_b`` (cross-validated inside one set, for comparison), each with its interval;
        ``labels`` and ``chance``.

    Raises:
        UserError: one set is missing, or there are too few groups.
    """
    features, items = _shared(features, items)
    sets = np.array([item.set for item in items])
    labels = sorted({item.label for item in items})
    true = np.array([labels.index(item.label) for item in items])
    result: dict[str, Any] = {"labels": labels, "chance": 1 / len(labels)}
    for source, target in (("a", "b"), ("b", "a")):
        test = np.flatnonzero(sets == target)
        model = _logistic().fit(features[sets == source], true[sets == source])
        result[f"{source}_to_{target}"] = _uar_interval(
            items, test, true[test], model.predict(features[test])
        )
        predicted = np.zeros(len(test), dtype=int)
        for train_part, test_part in _folds([items[i] for i in test]):
            model = _logistic().fit(features[test[train_part]], true[test[train_part]])
            predicted[test_part] = model.predict(features[test[test_part]])
        result[f"within_{target}"] = _uar_interval(items, test, true[test], predicted)
    return result


def _shared(features: np.ndarray, items: Sequence[Item]) -> tuple[np.ndarray, list[Item]]:
    chosen = shared_items(items)
    kept = [item for item, use in zip(items, chosen, strict=True) if use]
    if len({item.label for item in kept}) < 2:
        raise UserError(
            "the two devices share fewer than two classes here; expected recordings of set A and "
            "set B (label mode merge or drop)"
        )
    return features[chosen], kept


def _folds(items: Sequence[Item]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and test positions of grouped folds, as many as the rarest class has groups."""
    groups: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(item.label, set()).add(item.group)
    num = min(NUM_FOLDS, *(len(names) for names in groups.values()))
    folds = grouped_folds(list(items), num, seed=0)
    fold_of = {name: number for number, names in enumerate(folds) for name in names}
    fold = np.array([fold_of[item.recording_id] for item in items])
    return [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(num)]


def _uar_interval(
    items: Sequence[Item], test: np.ndarray, true: np.ndarray, predicted: np.ndarray
) -> dict[str, float | None]:
    groups = [items[i].group for i in test]
    return bootstrap_statistic(groups, lambda i: uar_of(true[i], predicted[i]))


def _logistic() -> Pipeline:
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), model)
