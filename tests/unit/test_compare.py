"""Comparing two runs, and the scores that it adds to the paired bootstrap."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hb_ssl.cli import main
from hb_ssl.evaluation.compare import auroc, compare_rows, probability_intervals
from hb_ssl.evaluation.intervals import bootstrap_difference, bootstrap_statistic
from hb_ssl.files import write_csv_atomic

LABELS = ["artifact", "murmur", "normal"]


def _rows(skill: float, seeds: int = 1, num: int = 240):
    rng = np.random.default_rng(1)
    rows = []
    for seed in range(seeds):
        for n in range(num):
            true = n % 3
            p = rng.dirichlet(np.ones(3)) * (1 - skill) + skill * np.eye(3)[true]
            rows.append(
                {
                    "recording_id": f"r{n}", "set": "ab"[n % 2], "group": f"g{n // 4}",
                    "simulator": int(n < 12), "label": LABELS[true],
                    "prediction": LABELS[int(p.argmax())], "num_windows": 1, "seed": seed,
                    **{f"prob_{name}": float(x) for name, x in zip(LABELS, p)},
                }
            )  # fmt: skip
    return rows


def test_auroc_is_sklearns():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 200) / 5, rng.random(200) < 0.3
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert np.isnan(auroc(scores, np.zeros(200, bool)))


def test_verdicts_of_a_better_an_equal_and_a_worse_run():
    good, poor = _rows(0.5), _rows(0.1)
    better = compare_rows(good, poor, LABELS, ("LoRA", "trees"))
    assert better["recording_uar"]["verdict"].startswith("LoRA scores higher than trees (+")
    assert better["recording_auroc_macro"]["verdict"].startswith("LoRA scores higher")
    worse = compare_rows(poor, good, LABELS, ("trees", "LoRA"))
    assert worse["recording_uar"]["verdict"].startswith("trees scores lower than LoRA")
    same = compare_rows(good, good, LABELS, ("one", "two"))
    for block in same.values():
        assert block["difference"] == block["low"] == block["high"] == 0
        assert block["verdict"].startswith("no difference shown")


def test_pairing_draws_the_same_groups_on_both_sides():
    values = np.random.default_rng(0).normal(size=60)
    groups = [f"g{n // 3}" for n in range(60)]
    shifted = bootstrap_difference(
        groups, lambda i: float(values[i].mean()) + 1, groups, lambda i: float(values[i].mean())
    )
    assert shifted["low"] == pytest.approx(1) and shifted["high"] == pytest.approx(1)
    alone = bootstrap_statistic(groups, lambda i: float(values[i].mean()))
    assert alone["high"] - alone["low"] > 0.1


def test_intervals_of_auroc_and_calibration_error_hold_the_value():
    for name, interval in probability_intervals(_rows(0.3, seeds=2), LABELS).items():
        assert interval["low"] < interval["value"] < interval["high"] or "ece" in name
        assert 0 < interval["value"] < 1


def test_command_compares_two_run_folders(tmp_path, capsys):
    write_csv_atomic(tmp_path / "good" / "predictions.csv", _rows(0.6, seeds=2))
    write_csv_atomic(tmp_path / "poor" / "predictions.csv", _rows(0.1))
    out = tmp_path / "difference.json"
    runs = [str(tmp_path / "good"), str(tmp_path / "poor")]
    assert main(["compare", *runs, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("UAR: good scores higher than poor (+") and "set B:" in text
    assert set(json.loads(out.read_text())) == {"overall", "set_a", "set_b", "without_simulator"}
    write_csv_atomic(tmp_path / "other" / "predictions.csv", _rows(0.1)[:60])
    assert main(["compare", runs[0], str(tmp_path / "other")]) == 2
    assert "differ in recordings" in capsys.readouterr().err
    assert main(["compare", runs[0], str(tmp_path / "none")]) == 2
    assert "expected the predictions.csv of a run" in capsys.readouterr().err
