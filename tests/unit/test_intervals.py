"""Grouped and paired bootstrap on data whose truth is known."""

import time

import numpy as np
import pytest

from hb_ssl.errors import UserError
from hb_ssl.evaluation.intervals import grouped_bootstrap, paired_bootstrap
from hb_ssl.evaluation.metrics import score_recordings

LABELS = ["artifact", "extrahls", "murmur", "normal"]
METRICS = {
    "recording_uar",
    "recording_macro_f1",
    "recording_accuracy",
    "recording_problem_sensitivity",
    "recording_problem_specificity",
}


def random_rows(num_groups, per_group=1, accuracy=0.7, seed=0, shared=False):
    """Predictions right with probability ``accuracy``, drawn per group when ``shared``."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(num_groups):
        luck = rng.random()
        for take in range(per_group):
            label = LABELS[rng.integers(4)]
            right = (luck if shared else rng.random()) < accuracy
            other = LABELS[(LABELS.index(label) + rng.integers(1, 4)) % 4]
            rows.append(
                {"recording_id": f"{group}_{take}", "group": f"g{group}", "label": label}
                | {"prediction": label if right else other}
            )
    return rows


def width(result, metric="recording_accuracy"):
    return result[metric]["high"] - result[metric]["low"]


def test_value_equals_the_scores_and_lies_inside():
    rows = random_rows(40, per_group=3)
    result = grouped_bootstrap(rows, LABELS)
    scores = score_recordings(rows, LABELS)
    assert set(result) == METRICS
    for metric, block in result.items():
        assert block["value"] == pytest.approx(scores[metric]), metric
        assert block["low"] < block["value"] < block["high"]


def test_value_follows_the_rules_on_absent_classes():
    rows = [row for row in random_rows(60, accuracy=0.5) if row["label"] in ("murmur", "normal")]
    scores = score_recordings(rows, LABELS)
    for metric, block in grouped_bootstrap(rows, LABELS, num_resamples=50).items():
        assert block["value"] == pytest.approx(scores[metric]), metric


def test_classes_that_never_occur_leave_the_interval_defined():
    rows = [
        row | {"label": pair[0], "prediction": pair[1]}
        for i, row in enumerate(random_rows(40))
        for pair in [[("murmur", "murmur"), ("normal", "normal"), ("normal", "murmur")][i % 3]]
    ]
    for metric, block in grouped_bootstrap(rows, LABELS).items():
        if metric != "recording_problem_sensitivity":  # 1 in every resample
            assert 0 < block["low"] < block["value"] < block["high"] < 1, metric


def test_values_of_several_seeds_are_averaged_like_the_scores():
    rows = [row | {"seed": 0} for row in random_rows(30)]
    rows += [row | {"seed": 1} for row in random_rows(30, accuracy=0.4, seed=5)]
    scores = score_recordings(rows, LABELS)
    result = grouped_bootstrap(rows, LABELS, num_resamples=50)
    assert result["recording_uar"]["value"] == pytest.approx(scores["recording_uar"])


def test_copied_seeds_do_not_narrow_the_interval():
    rows = random_rows(30)
    once = grouped_bootstrap([row | {"seed": 0} for row in rows], LABELS)
    thrice = grouped_bootstrap([row | {"seed": s} for s in range(3) for row in rows], LABELS)
    assert width(thrice) == pytest.approx(width(once))


def test_interval_covers_the_truth_about_95_percent_of_the_time():
    covered = []
    for trial in range(200):
        rows = random_rows(60, per_group=3, accuracy=0.7, seed=trial, shared=True)
        block = grouped_bootstrap(rows, LABELS, num_resamples=200)["recording_accuracy"]
        covered.append(block["low"] <= 0.7 <= block["high"])
    assert 0.88 <= np.mean(covered) <= 0.99


def test_more_groups_narrow_the_interval():
    few = grouped_bootstrap(random_rows(25), LABELS)
    many = grouped_bootstrap(random_rows(400), LABELS)
    assert width(many) < 0.4 * width(few)  # about 1 / sqrt(16)


def test_grouping_is_wider_than_naive_on_correlated_recordings():
    rows = random_rows(40, per_group=8, shared=True)
    naive = [row | {"group": row["recording_id"]} for row in rows]
    ratio = width(grouped_bootstrap(rows, LABELS)) / width(grouped_bootstrap(naive, LABELS))
    assert 2.0 < ratio < 3.8  # sqrt(8) = 2.8 for identical recordings


def test_same_seed_same_interval():
    rows = random_rows(40)
    assert grouped_bootstrap(rows, LABELS, seed=3) == grouped_bootstrap(rows, LABELS, seed=3)
    assert grouped_bootstrap(rows[::-1], LABELS, seed=3) == grouped_bootstrap(rows, LABELS, seed=3)
    assert grouped_bootstrap(rows, LABELS, seed=4) != grouped_bootstrap(rows, LABELS, seed=3)


def test_one_group_gives_a_value_but_no_interval():
    rows = [row | {"group": "only"} for row in random_rows(20)]
    block = grouped_bootstrap(rows, LABELS)["recording_uar"]
    assert block["value"] is not None
    assert block["low"] is None and block["high"] is None


def test_undefined_scores_are_none():
    rows = [row | {"label": "normal"} for row in random_rows(20)]
    result = grouped_bootstrap(rows, LABELS)
    assert result["recording_problem_sensitivity"] == {"value": None, "low": None, "high": None}
    assert result["recording_problem_specificity"]["value"] is not None


def test_bootstrap_is_fast():
    rows = [row | {"seed": seed} for seed in range(5) for row in random_rows(250, per_group=2)]
    start = time.perf_counter()
    grouped_bootstrap(rows, LABELS)
    assert time.perf_counter() - start < 2.0


def test_rows_need_a_group():
    rows = [{"label": "normal", "prediction": "normal"}]
    with pytest.raises(UserError, match="group missing"):
        grouped_bootstrap(rows, LABELS)


def test_paired_bootstrap_finds_a_real_difference_and_names_it():
    worse = random_rows(150, accuracy=0.5)
    better = [
        row | {"prediction": row["label"]} if i % 3 == 0 else row for i, row in enumerate(worse)
    ]
    result = paired_bootstrap(better, worse, LABELS, names=("tuned", "frozen"))
    assert set(result) == METRICS
    block = result["recording_accuracy"]
    assert block["difference"] == pytest.approx(block["value_a"] - block["value_b"])
    assert 0 < block["low"] < block["difference"] < block["high"]
    assert block["verdict"].startswith("tuned scores higher than frozen (+0.")
    mirrored = paired_bootstrap(worse, better, LABELS, names=("frozen", "tuned"))
    assert mirrored["recording_accuracy"]["low"] == pytest.approx(-block["high"])
    assert mirrored["recording_accuracy"]["verdict"].startswith(
        "frozen scores lower than tuned (-0."
    )


def test_paired_bootstrap_shows_no_difference_between_equals():
    rows = random_rows(50)
    block = paired_bootstrap(rows, rows, LABELS)["recording_uar"]
    assert (block["difference"], block["low"], block["high"]) == (0.0, 0.0, 0.0)
    assert block["verdict"].startswith("no difference shown between A and B")


def test_pairing_is_narrower_than_the_two_intervals():
    worse = random_rows(100, per_group=3, accuracy=0.6, shared=True)
    better = [
        row | {"prediction": row["label"]} if i % 10 == 0 else row for i, row in enumerate(worse)
    ]
    paired = paired_bootstrap(better, worse, LABELS)
    assert width(paired) < 0.5 * width(grouped_bootstrap(worse, LABELS))


def test_pairs_may_differ_in_seeds_but_not_in_recordings():
    rows = random_rows(30)
    seeds = [row | {"seed": seed} for seed in range(2) for row in rows]
    assert paired_bootstrap(seeds, rows, LABELS)["recording_uar"]["difference"] == pytest.approx(0)
    for changed in (rows[1:], [rows[0] | {"group": "other"}, *rows[1:]]):
        with pytest.raises(UserError, match="lora and probe differ in recordings"):
            paired_bootstrap(changed, rows, LABELS, names=("lora", "probe"))


def test_pairs_with_one_group_are_undefined():
    rows = [row | {"group": "only"} for row in random_rows(20)]
    block = paired_bootstrap(rows, rows, LABELS)["recording_uar"]
    assert block["low"] is None
    assert block["verdict"].startswith("undefined")
