"""Calibration and abstention on predictions whose truth is known."""

import numpy as np
import pytest

from hb_ssl.errors import UserError
from hb_ssl.evaluation.calibration import (
    brier_score,
    calibration_error,
    calibration_scores,
    choose_method,
    crossfit_calibration,
    fit_scaling,
    folds_of_rows,
    label_ids_of,
    log_loss,
    probability_matrix,
    reliability_bins,
)
from hb_ssl.evaluation.intervals import bootstrap_statistic
from hb_ssl.evaluation.selective import (
    area_under_risk_coverage,
    crossfit_abstention,
    fit_calibration,
    risk_coverage,
    selective_scores,
    threshold_for_risk,
    uar_of,
)
from hb_ssl.evaluation.verdict import calibrate

LABELS = ["artifact", "murmur", "normal"]


def _softmax(logits):
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def _rows(num=900, temperature=1.0, bias=(0.0, 0.0, 0.0), seed=0, seeds=1):
    """Truth drawn from ``softmax(logits)``; the model states ``softmax(temperature * (l - b))``."""
    rng = np.random.default_rng(seed)
    rows = []
    for repeat in range(seeds):
        logits = 2 * rng.normal(size=(num, 3))
        true = [rng.choice(3, p=p) for p in _softmax(logits)]
        stated = _softmax(temperature * (logits - np.array(bias)))
        rows += [
            {
                "recording_id": f"r{n}", "set": "ab"[n % 2], "group": f"g{n // 3}", "simulator": 0,
                "label": LABELS[t], "prediction": LABELS[int(p.argmax())], "seed": repeat,
                **{f"prob_{name}": float(x) for name, x in zip(LABELS, p)},
            }
            for n, (t, p) in enumerate(zip(true, stated))
        ]  # fmt: skip
        rng = np.random.default_rng(seed)
    return rows


def test_calibrate_is_softmax_of_scaled_logarithms():
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    assert calibrate(p, {"temperature": 1.0, "bias": [0, 0, 0]}) == pytest.approx(p)
    squared = p**2 / (p**2).sum(axis=1, keepdims=True)
    assert calibrate(p, {"temperature": 0.5, "bias": [0, 0, 0]}) == pytest.approx(squared)
    tilted = p * [1, np.e, 1] / (p * [1, np.e, 1]).sum(axis=1, keepdims=True)
    assert calibrate(p, {"temperature": 1.0, "bias": [0, 1, 0]}) == pytest.approx(tilted)
    assert calibrate(p[0], {"temperature": 2.0, "bias": [0, 0, 0]}).shape == (3,)
    certain = calibrate(np.array([1.0, 0.0, 0.0]), {"temperature": 3.0, "bias": [0, 0, 0]})
    assert np.isfinite(certain).all() and certain.sum() == pytest.approx(1)


@pytest.mark.parametrize("broken", [{"temperature": 0.0, "bias": [0] * 3}, {"temperature": 1.0}])
def test_calibration_of_another_model_is_refused(broken):
    with pytest.raises(UserError, match="expected a temperature above 0 and 3 biases"):
        calibrate(np.full(3, 1 / 3), broken)


def test_temperature_is_recovered_and_decisions_stay():
    rows = _rows(3000, temperature=2.5)
    p, y = probability_matrix(rows, LABELS), label_ids_of(rows, LABELS)
    found = fit_scaling(p, y, "temperature")
    assert found["temperature"] == pytest.approx(2.5, rel=0.1) and found["bias"] == [0, 0, 0]
    assert (calibrate(p, found).argmax(axis=1) == p.argmax(axis=1)).all()
    assert log_loss(calibrate(p, found), y) < log_loss(p, y)


def test_vector_scaling_recovers_biases_and_balanced_fitting_leaves_the_prior_out():
    true_bias = np.array([1.0, -0.5, -0.5])
    rows = _rows(4000, bias=true_bias)
    p, y = probability_matrix(rows, LABELS), label_ids_of(rows, LABELS)
    assert fit_scaling(p, y, "vector")["bias"] == pytest.approx(true_bias, abs=0.2)
    rare = [row for n, row in enumerate(rows) if row["label"] != "artifact" or n % 8 == 0]
    p, y = probability_matrix(rare, LABELS), label_ids_of(rare, LABELS)
    as_it_occurs, balanced = (fit_scaling(p, y, "vector", b)["bias"] for b in (False, True))
    # A class kept at an eighth loses about log 8; weighing classes the same undoes it.
    assert true_bias[0] - as_it_occurs[0] == pytest.approx(np.log(8) * 2 / 3, abs=0.35)
    assert balanced[0] > as_it_occurs[0] + 0.7


def test_crossfit_lowers_the_error_and_never_fits_on_a_person_it_scores():
    rows = _rows(1200, temperature=3.0, seeds=2)
    before, after = calibration_scores(rows, LABELS), None
    calibrated = crossfit_calibration(rows, LABELS)
    after = calibration_scores(calibrated, LABELS)
    assert before["ece"]["value"] > 0.1 and after["ece"]["value"] < 0.05
    assert after["brier"]["value"] < before["brier"]["value"]
    assert after["ece"]["low"] <= after["ece"]["value"] <= after["ece"]["high"] + 0.02
    fold = folds_of_rows(rows)
    of_group = {}
    for row, number in zip(rows, fold, strict=True):
        of_group.setdefault(row["group"], set()).add(number)
    assert all(len(numbers) == 1 for numbers in of_group.values())
    # What a person's recordings say can't change their own calibration.
    own = fold == 0
    turned = [
        {**row, "label": "artifact"} if mine and row["label"] == "normal" else row
        for row, mine in zip(rows, own, strict=True)
    ]
    assert folds_of_rows(rows)[own].tolist() == [0] * int(own.sum())
    first = [r for r, mine in zip(calibrated, own, strict=True) if mine]
    refit = fit_scaling(
        probability_matrix([r for r, mine in zip(turned, own, strict=True) if not mine], LABELS),
        label_ids_of([r for r, mine in zip(turned, own, strict=True) if not mine], LABELS),
        "temperature",
    )
    mine = [r for r, m in zip(rows, own, strict=True) if m]
    expected = calibrate(probability_matrix(mine, LABELS), refit)
    assert probability_matrix(first, LABELS) == pytest.approx(expected)


def test_too_few_people_are_refused():
    rows = [{**row, "group": "one"} for row in _rows(30)]
    with pytest.raises(UserError, match="two groups"):
        crossfit_calibration(rows, LABELS)


def test_vector_is_chosen_only_where_it_costs_no_decision():
    assert choose_method(_rows(1500, bias=(2.0, -1.0, -1.0)), LABELS) == "vector"
    assert choose_method(_rows(1500, temperature=3.0), LABELS) in ("temperature", "vector")
    # Class-weighted training: stated at equal frequencies, but one class is rare.
    rows = _rows(3000)
    rare = [r for n, r in enumerate(rows) if r["label"] == "normal" or n % 10 == 0]
    assert choose_method(rare, LABELS) == "temperature"


def test_error_brier_and_bins_by_hand():
    confidence = np.array([0.95, 0.95, 0.65, 0.65])
    correct = np.array([1.0, 1.0, 1.0, 0.0])
    # Bins 0.9-1.0: |1 - 0.95| x 2/4; 0.6-0.7: |0.5 - 0.65| x 2/4.
    assert calibration_error(confidence, correct) == pytest.approx(0.025 + 0.075)
    p, y = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3]]), np.array([0, 2])
    assert brier_score(p, y) == pytest.approx((0.06 + 0.04 + 0.25 + 0.49) / 2)
    assert log_loss(p, y) == pytest.approx(-(np.log(0.8) + np.log(0.3)) / 2)
    rows = _rows(200)
    bins, error = reliability_bins(rows, LABELS)
    assert sum(b["n"] for b in bins) == 200
    own = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"]) / 200
    assert error == pytest.approx(own)


def test_risk_coverage_by_hand_with_ties():
    confidence = np.array([0.9, 0.8, 0.8, 0.4])
    wrong = np.array([0, 1, 0, 1])
    coverage, risk = risk_coverage(confidence, wrong)
    assert coverage.tolist() == [0.25, 0.75, 0.75, 1.0]
    assert risk == pytest.approx([0, 1 / 3, 1 / 3, 1 / 2])
    assert area_under_risk_coverage(confidence, wrong) == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert threshold_for_risk(confidence, wrong, 0.5) == 0.0
    assert threshold_for_risk(confidence, wrong, 0.4) == 0.8
    assert threshold_for_risk(confidence, wrong, 0.1) == 0.9
    assert threshold_for_risk(confidence, np.ones(4), 0.1) == 1.0
    assert uar_of(np.array([0, 0, 2]), np.array([0, 1, 2])) == pytest.approx(0.75)


def test_abstaining_keeps_the_stated_risk_and_raises_the_uar():
    rows = _rows(1500, temperature=2.0, seeds=2)
    scores = selective_scores(rows, LABELS, "temperature", risk=0.1)
    assert scores["stated_risk"]["risk"]["value"] == pytest.approx(0.1, abs=0.03)
    assert 0.2 < scores["stated_risk"]["coverage"]["value"] < 0.95
    assert scores["uar_gain"]["value"] > 0.04
    low, high = scores["uar_gain"]["low"], scores["uar_gain"]["high"]
    assert low < scores["uar_gain"]["value"] < high
    assert scores["curve"][-1]["coverage"] == 1
    assert scores["curve"][-1]["uar"] == pytest.approx(scores["uar_all"]["value"], abs=0.01)
    _, answered = crossfit_abstention(rows, LABELS, "temperature", risk=1.0)
    assert answered.all()


def test_calibration_of_a_model_has_the_agreed_keys():
    found = fit_calibration(_rows(600), LABELS, "made-up rows", risk=0.15)
    assert {"temperature", "bias", "abstain_below", "risk", "fitted_on"} <= set(found)
    assert len(found["bias"]) == 3 and 0 <= found["abstain_below"] <= 1


def test_bootstrap_of_a_statistic_resamples_whole_groups():
    values = np.repeat(np.arange(10.0), 5)
    groups = [f"g{int(v)}" for v in values]
    interval = bootstrap_statistic(groups, lambda i: float(values[i].mean()))
    assert interval["value"] == 4.5
    spread = interval["high"] - interval["low"]
    assert spread == pytest.approx(2 * 1.96 * values.std() / np.sqrt(10), rel=0.15)
    alone = bootstrap_statistic(["g"] * 4, lambda i: 1.0)
    assert alone == {"value": 1.0, "low": None, "high": None}
