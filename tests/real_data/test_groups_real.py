"""Duplicates, groups and folds of the real PASCAL recordings."""

from collections import Counter, defaultdict

import pytest

from hb_ssl.data.duplicates import contradictory_duplicates, find_duplicates
from hb_ssl.data.groups import assign_groups
from hb_ssl.data.pascal import list_recordings
from hb_ssl.data.recording import task_label
from hb_ssl.data.splits import (
    Item,
    check_no_leak,
    grouped_folds,
    inner_validation,
    train_validation_test,
)

pytestmark = pytest.mark.real_data

SIMULATOR = "a-simulator"
PERSON = "b-subject-101+103+146"
# All pairs in the data: 4 of set A, then 6 that make subjects 103 and 146 (and 101) one person,
# then 3 more of set A that lie in one session anyway. Found by listening machines, not by name.
PAIRS = {
    ("a/extrahls__201104021355", "a/murmur__201104021355"),
    ("a/murmur__201106141148", "a/normal__201106141148"),
    ("a/Aunlabelledtest__201012172010", "a/artifact__201012172012"),
    ("a/Aunlabelledtest__201101241434", "a/extrahls__201101241433"),
    ("a/Aunlabelledtest__201106031556", "a/artifact__201106031558"),
    ("a/extrahls__201104270458", "a/extrahls__201104270459"),
    ("b/Bunlabelledtest__101_1305030823364_D", "b/normal_noisynormal_146_1306778707532_D"),
    ("b/Bunlabelledtest__103_1305031931979_C", "b/normal__146_1306778707532_D1"),
    ("b/Bunlabelledtest__146_1306778707532_D31", "b/normal__103_1305031931979_D3"),
    ("b/normal__103_1305031931979_B", "b/normal__146_1306778707532_D1"),
    ("b/normal__103_1305031931979_D1", "b/normal__146_1306778707532_D2"),
    ("b/normal__103_1305031931979_D2", "b/normal__146_1306778707532_D4"),
    ("b/normal__103_1305031931979_D3", "b/normal__146_1306778707532_D3"),
}


@pytest.fixture(scope="module")
def listed(pascal_dir):
    recordings = list_recordings(pascal_dir).recordings
    duplicates = find_duplicates(recordings)  # about a minute without the cache
    return recordings, duplicates, assign_groups(recordings, duplicates)


def items_of(listed, label_mode: str) -> list[Item]:
    recordings, duplicates, groups = listed
    left_out = contradictory_duplicates(recordings, duplicates)
    rows = [(r, task_label(r.raw_label, r.set, label_mode)) for r in recordings]
    return [
        Item(r.recording_id, label, r.set, groups[r.recording_id].group)
        for r, label in rows
        if label is not None and r.recording_id not in left_out
    ]


def test_exactly_the_known_pairs_are_found(listed):
    _, duplicates, _ = listed
    assert {(d.first, d.second) for d in duplicates} == PAIRS
    assert min(d.correlation for d in duplicates) > 0.998


def test_lengths_of_known_stretches(listed):
    found = {(d.first, d.second): d for d in listed[1]}
    long = found[
        "b/Bunlabelledtest__101_1305030823364_D", "b/normal_noisynormal_146_1306778707532_D"
    ]
    assert long.shared_seconds == pytest.approx(20.59, abs=0.05)
    contained = found["a/murmur__201106141148", "a/normal__201106141148"]
    assert contained.shared_seconds == pytest.approx(253_544 / 44_100, abs=0.02)
    assert contained.offset_seconds == pytest.approx(-0.2173, abs=1e-3)


def test_contradictory_recordings(listed):
    recordings, duplicates, _ = listed
    assert contradictory_duplicates(recordings, duplicates) == {
        "a/extrahls__201104021355",
        "a/murmur__201104021355",
        "a/murmur__201106141148",
        "a/normal__201106141148",
    }


def test_simulator_is_one_group_of_forty(listed):
    _, _, groups = listed
    assert sum(group.simulator for group in groups.values()) == 40
    assert {group.group for group in groups.values() if group.simulator} == {SIMULATOR}
    assert sum(group.group == SIMULATOR for group in groups.values()) == 40


def test_three_subject_numbers_are_one_person(listed):
    recordings, _, groups = listed
    of = defaultdict(set)
    for recording in recordings:
        of[recording.subject].add(groups[recording.recording_id].group)
    assert of["101"] == of["103"] == of["146"] == {PERSON}
    assert all(len(names) == 1 for subject, names in of.items() if subject is not None)


def test_labelled_groups_per_class_and_set(listed):
    recordings, _, groups = listed
    names = defaultdict(set)
    for r in recordings:
        if r.raw_label:
            names[r.set, r.raw_label].add(groups[r.recording_id].group)
    assert {key: len(found) for key, found in names.items()} == {
        ("a", "artifact"): 36,
        ("a", "extrahls"): 16,
        ("a", "murmur"): 10,
        ("a", "normal"): 27,
        ("b", "extrastole"): 39,
        ("b", "murmur"): 37,
        ("b", "normal"): 122,
    }
    in_b = {groups[r.recording_id].group for r in recordings if r.set == "b" and r.raw_label}
    assert len(in_b) == 165 - 2  # 165 subjects, of whom 101, 103 and 146 are one person


@pytest.mark.parametrize("label_mode", ["merge", "drop", "set_a", "set_b"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_folds_hold_every_class_and_pass_the_leak_gate(listed, label_mode, seed):
    recordings, duplicates, groups = listed
    items = items_of(listed, label_mode)
    strata = {item.recording_id: (item.label, item.set) for item in items}
    totals = Counter(strata.values())
    folds = grouped_folds(items, 5, seed)
    hashes = {r.recording_id: r.content_hash for r in recordings}
    check_no_leak({f"fold {i}": fold for i, fold in enumerate(folds)}, groups, duplicates, hashes)
    for fold in folds:
        counts = Counter(strata[r] for r in fold)
        assert set(counts) == set(totals)
        if all(groups[r].group != SIMULATOR for r in fold):
            for stratum in totals:
                if stratum != ("murmur", "a"):  # the simulator block takes most of it
                    assert abs(counts[stratum] / totals[stratum] - 0.2) < 0.1, stratum
        train = [item for item in items if item.recording_id not in set(fold)]
        for part in inner_validation(train, 0.15, seed):
            assert {strata[r][0] for r in part} == {item.label for item in items}


@pytest.mark.parametrize("label_mode", ["merge", "set_a"])
def test_train_validation_test_keeps_the_simulator_in_train(listed, label_mode):
    recordings, duplicates, groups = listed
    items = items_of(listed, label_mode)
    split = train_validation_test(items, 0.15, 0.2, 0)
    hashes = {r.recording_id: r.content_hash for r in recordings}
    check_no_leak(split, groups, duplicates, hashes)
    assert any(groups[r].group == SIMULATOR for r in split["train"])
    assert len(split["test"]) / len(items) == pytest.approx(0.2, abs=0.05)
