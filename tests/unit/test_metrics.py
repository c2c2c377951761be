"""Scores against values worked out by hand."""

import csv
import math
import socket

import numpy as np
import pytest

from hb_ssl.errors import UserError
from hb_ssl.evaluation.metrics import (
    labels_of,
    load_metric,
    read_predictions,
    score_by_part,
    score_recordings,
)
from hb_ssl.evaluation.verdict import pool_windows

LABELS = ["artifact", "extrahls", "murmur", "normal"]
TRUE = ["artifact", "extrahls", "murmur", "murmur", "normal", "normal", "normal", "normal"]
PREDICTED = ["artifact", "murmur", "murmur", "normal", "normal", "normal", "normal", "extrahls"]


def rows_of(true, predicted, **columns):
    rows = [
        {"recording_id": f"r{i}", "set": "a", "group": f"g{i}", "simulator": 0}
        | {"label": label, "prediction": prediction}
        for i, (label, prediction) in enumerate(zip(true, predicted))
    ]
    return [row | columns for row in rows]


def with_probabilities(rows, probabilities, labels=LABELS):
    return [
        row | {f"prob_{label}": value for label, value in zip(labels, values)}
        for row, values in zip(rows, probabilities)
    ]


def test_hand_computed_scores():
    scores = score_recordings(rows_of(TRUE, PREDICTED), LABELS)
    assert scores["n"] == 8
    assert scores["recording_accuracy"] == pytest.approx(5 / 8)
    assert scores["recording_uar"] == pytest.approx((1 + 0 + 1 / 2 + 3 / 4) / 4)
    # F1 = 2 TP / (true + predicted): artifact 2/2, extrahls 0, murmur 2/4, normal 6/8.
    assert scores["recording_macro_f1"] == pytest.approx((1 + 0 + 2 / 4 + 6 / 8) / 4)
    # Problems: extrahls taken for murmur counts as found, one murmur is missed.
    assert scores["recording_problem_sensitivity"] == pytest.approx(2 / 3)
    # Others: the artifact and three normals are right, one normal is called extrahls.
    assert scores["recording_problem_specificity"] == pytest.approx(4 / 5)
    assert scores["recording_per_class"]["normal"] == {
        "precision": pytest.approx(3 / 4),
        "recall": pytest.approx(3 / 4),
        "f1": pytest.approx(3 / 4),
        "support": 4,
    }
    assert scores["recording_confusion_matrix"] == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
        [0, 1, 0, 3],
    ]
    assert scores["recording_auroc_macro"] is None
    assert scores["recording_problem_auroc"] is None


def test_absent_classes_are_left_out_of_the_means_but_cost_recall():
    rows = rows_of(["murmur", "murmur", "normal"], ["murmur", "artifact", "normal"])
    scores = score_recordings(rows, LABELS)
    assert scores["recording_uar"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["recording_macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    per_class = scores["recording_per_class"]
    assert per_class["artifact"] == {"precision": 0.0, "recall": None, "f1": None, "support": 0}
    assert per_class["extrahls"]["precision"] is None
    # The murmur called an artifact is a missed problem.
    assert scores["recording_problem_sensitivity"] == pytest.approx(1 / 2)


def test_present_class_that_is_never_predicted_scores_zero():
    scores = score_recordings(rows_of(["murmur", "normal"], ["normal", "normal"]), LABELS)
    assert scores["recording_per_class"]["murmur"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
    }


@pytest.mark.parametrize(
    ("label", "undefined", "defined"),
    [("normal", "sensitivity", "specificity"), ("murmur", "specificity", "sensitivity")],
)
def test_one_class_only_gives_none_and_never_nan(label, undefined, defined):
    rows = with_probabilities(rows_of([label] * 3, [label] * 3), [[0.1, 0.2, 0.3, 0.4]] * 3)
    scores = score_recordings(rows, LABELS)
    assert scores["recording_uar"] == scores["recording_macro_f1"] == 1.0
    assert scores[f"recording_problem_{undefined}"] is None
    assert scores[f"recording_problem_{defined}"] == 1.0
    assert scores["recording_auroc_macro"] is None
    assert scores["recording_problem_auroc"] is None
    numbers = [value for value in scores.values() if isinstance(value, float)]
    assert not any(math.isnan(value) for value in numbers)


def test_auroc_counts_ties_half_and_sums_the_problem_labels():
    probabilities = [
        [0.1, 0.3, 0.4, 0.2],  # murmur: problem 0.7
        [0.1, 0.1, 0.4, 0.4],  # murmur: problem 0.5
        [0.1, 0.1, 0.4, 0.4],  # normal: problem 0.5
        [0.1, 0.2, 0.1, 0.6],  # normal: problem 0.3
    ]
    rows = rows_of(["murmur", "murmur", "normal", "normal"], ["murmur"] * 2 + ["normal"] * 2)
    scores = score_recordings(with_probabilities(rows, probabilities), LABELS)
    # Of 4 (problem, other) pairs 3 are ordered and 1 ties.
    assert scores["recording_problem_auroc"] == pytest.approx(3.5 / 4)
    # Murmur: 2 pairs ordered, 2 tied. Normal: 0.4 0.6 against 0.2 0.4: 3 ordered, 1 tied.
    assert scores["recording_auroc_macro"] == pytest.approx((3 / 4 + 3.5 / 4) / 2)


def test_extrastole_is_a_problem_and_window_level_is_named():
    labels = ["extrastole", "murmur", "normal"]
    scores = score_recordings(
        rows_of(["extrastole", "normal"], ["murmur", "normal"]), labels, "window"
    )
    assert scores["window_problem_sensitivity"] == 1.0
    assert scores["window_uar"] == pytest.approx(1 / 2)
    assert not any(name.startswith("recording_") for name in scores)


def test_agrees_with_sklearn_on_random_predictions():
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    true = rng.choice(LABELS, 60, p=[0.1, 0.2, 0.3, 0.4])
    probabilities = rng.dirichlet(np.ones(4), 60)
    predicted = np.array(LABELS)[probabilities.argmax(axis=1)]
    scores = score_recordings(with_probabilities(rows_of(true, predicted), probabilities), LABELS)
    assert scores["recording_uar"] == pytest.approx(balanced_accuracy_score(true, predicted))
    assert scores["recording_macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    expected = roc_auc_score(true, probabilities, multi_class="ovr", labels=LABELS)
    assert scores["recording_auroc_macro"] == pytest.approx(expected)


def test_seeds_are_scored_one_by_one_and_averaged():
    first = rows_of(["murmur", "normal", "normal"], ["murmur", "normal", "normal"], seed=0)
    second = rows_of(["murmur", "normal", "normal"], ["normal", "normal", "murmur"], seed=1)
    scores = score_recordings(first + second, LABELS)
    assert scores["n"] == 3
    assert scores["recording_uar"] == pytest.approx((1 + 1 / 4) / 2)
    assert scores["recording_per_class"]["normal"]["recall"] == pytest.approx(3 / 4)
    assert scores["recording_per_class"]["artifact"]["recall"] is None


def test_parts_score_their_own_classes_and_empty_parts_are_left_out():
    set_a = rows_of(["artifact", "murmur"], ["artifact", "normal"])
    set_a[1] |= {"simulator": 1}
    set_b = rows_of(["murmur", "normal"], ["murmur", "normal"], set="b")
    parts = score_by_part(set_a + set_b, LABELS)
    assert list(parts) == ["overall", "set_a", "set_b", "without_simulator"]
    assert parts["set_a"]["recording_uar"] == pytest.approx(1 / 2)
    assert parts["set_b"]["recording_uar"] == 1.0
    assert parts["without_simulator"]["recording_uar"] == 1.0
    assert [block["n"] for block in parts.values()] == [4, 2, 2, 3]
    assert list(score_by_part(set_b, LABELS)) == ["overall", "set_b", "without_simulator"]


def test_metric_loads_and_adds_batches_without_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    metric = load_metric()
    for predicted in (0, 1):
        metric.add_batch(predictions=[predicted], references=[1])
    assert metric.compute(labels=["murmur", "normal"])["accuracy"] == 0.5


def test_two_loaded_metrics_do_not_mix():
    first, second = load_metric(), load_metric()
    first.add_batch(predictions=[0], references=[0])
    second.add_batch(predictions=[1], references=[0])
    assert first.compute(labels=LABELS)["accuracy"] == 1.0
    assert second.compute(labels=LABELS)["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": [4], "references": [0]}, "outside 0 to 3"),
        ({"predictions": [0], "references": [0], "prediction_scores": [[0.5, 0.5]]}, "shape"),
    ],
)
def test_metric_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_metric().compute(labels=LABELS, **arguments)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no prediction rows"),
        ([{"label": "normal"}], "prediction missing"),
        (rows_of(["normal"], ["extrastole"]), "'extrastole'"),
        ([row | {"prob_normal": 1.0} for row in rows_of(["normal"], ["normal"])], "prob_artifact"),
    ],
)
def test_bad_rows_are_named(rows, message):
    with pytest.raises(UserError, match=message):
        score_recordings(rows, LABELS)


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def prediction_rows():
    rows = rows_of(["murmur", "normal"], ["murmur", "murmur"], num_windows=2, seed=1, fold=0)
    return with_probabilities(rows, [[0, 0, 0.75, 0.25], [0.0, 0.0, 0.5, 0.5]])


def test_predictions_survive_a_round_trip(tmp_path):
    rows = read_predictions(write_csv(tmp_path / "p.csv", prediction_rows()))
    assert rows == prediction_rows()
    assert isinstance(rows[0]["simulator"], int)
    assert labels_of(rows) == LABELS
    assert score_by_part(rows, LABELS)["overall"]["recording_uar"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob_murmur": "much"}, "line 3: prob_murmur 'much'"),
        ({"prob_murmur": "nan"}, "line 3: prob_murmur 'nan'"),
        ({"prob_murmur": "1.5"}, "line 3: prob_murmur '1.5'"),
        ({"simulator": "no"}, "line 3: simulator 'no'"),
        ({"label": "extrastole"}, "line 3: label 'extrastole'"),
        ({"recording_id": "r0"}, "line 3: recording 'r0' is listed twice"),
    ],
)
def test_broken_values_are_named_with_their_line(tmp_path, change, message):
    rows = prediction_rows()
    rows[1] |= change
    with pytest.raises(UserError, match=message):
        read_predictions(write_csv(tmp_path / "p.csv", rows))


def test_same_recording_in_two_seeds_is_fine(tmp_path):
    rows = prediction_rows()
    rows[1] |= {"recording_id": "r0", "seed": 2}
    assert len(read_predictions(write_csv(tmp_path / "p.csv", rows))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recording_id, set, group, simulator, label, prediction missing"),
        ("recording_id,set,group,simulator,label,prediction\n", "prob_<label> missing"),
        ("recording_id,set,group,simulator,label,prediction,prob_normal\n", "no rows"),
        (
            "recording_id,set,group,simulator,label,prediction,prob_normal\nr0,a,g,0,normal\n",
            "line 2: number of fields",
        ),
        (b"\xff\xfe\x00", "can't be read as CSV"),
    ],
)
def test_files_that_are_no_predictions_are_refused(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_predictions(path)


def test_missing_predictions_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "none.csv")


def test_pooling_is_softmax_of_mean_logits():
    pooled = pool_windows(np.array([[0.0, math.log(4)], [0.0, 0.0]]))
    np.testing.assert_allclose(pooled, [1 / 3, 2 / 3])  # mean log odds: log 2
    single = pool_windows(np.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(single, np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())


def test_pooling_ignores_a_shift_and_does_not_overflow():
    logits = np.random.default_rng(0).normal(size=(5, 4))
    shifted = logits + np.array([[0.0], [500.0], [-500.0], [1e4], [3.0]])
    np.testing.assert_allclose(pool_windows(shifted), pool_windows(logits), rtol=1e-9)


def test_pooling_needs_windows():
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        pool_windows(np.zeros((0, 4)))
