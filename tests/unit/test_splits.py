import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hb_ssl.data.duplicates import Duplicate
from hb_ssl.data.groups import Group
from hb_ssl.data.splits import (
    Item,
    LeakError,
    check_no_leak,
    grouped_folds,
    inner_validation,
    read_split,
    train_validation_test,
    write_split,
)
from hb_ssl.errors import UserError

LABELS = ("artifact", "extrahls", "murmur", "normal")


def make_items(sizes: dict[tuple[str, str], list[int]]) -> list[Item]:
    """One group of one (label, set) for every size."""
    return [
        Item(f"{set_}/{label}-{group}-{take}", label, set_, f"{set_}-{label}-{group}")
        for (label, set_), group_sizes in sizes.items()
        for group, size in enumerate(group_sizes)
        for take in range(size)
    ]


@st.composite
def item_lists(draw) -> list[Item]:
    """Items whose every class has at least five groups, and some groups of mixed classes."""
    sizes = st.lists(st.integers(1, 6), min_size=5, max_size=9)
    items = make_items({(label, "b"): draw(sizes) for label in LABELS[:3]})
    mixed = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=20))
    items += [Item(f"a/mixed-{i}", LABELS[k], "a", f"mixed-{g}") for i, (g, k) in enumerate(mixed)]
    return items


few = settings(max_examples=15, deadline=None)


def assert_sound(items: list[Item], parts: list[list[str]]) -> None:
    listed = [recording_id for part in parts for recording_id in part]
    assert sorted(listed) == sorted(item.recording_id for item in items)
    sides = defaultdict(set)
    by_id = {item.recording_id: item for item in items}
    for number, part in enumerate(parts):
        assert part == sorted(part)
        for recording_id in part:
            sides[by_id[recording_id].group].add(number)
        assert {by_id[r].label for r in part} == {item.label for item in items}
    assert all(len(numbers) == 1 for numbers in sides.values())


@few
@given(item_lists(), st.integers(2, 5), st.integers(0, 2**31), st.randoms())
def test_folds_hold_everything_once_with_groups_whole(items, num_folds, seed, random):
    folds = grouped_folds(items, num_folds, seed)
    assert len(folds) == num_folds
    assert_sound(items, folds)
    shuffled = list(items)
    random.shuffle(shuffled)
    assert grouped_folds(shuffled, num_folds, seed) == folds


@few
@given(
    item_lists(), st.floats(0.02, 0.45), st.floats(0.02, 0.45), st.integers(0, 1000), st.randoms()
)
def test_train_validation_test_is_sound(items, validation, test, seed, random):
    split = train_validation_test(items, validation, test, seed)
    assert list(split) == ["train", "validation", "test"]
    assert_sound(items, list(split.values()))
    shuffled = list(items)
    random.shuffle(shuffled)
    assert train_validation_test(shuffled, validation, test, seed) == split


@few
@given(item_lists(), st.floats(0.05, 0.5), st.integers(0, 1000))
def test_inner_validation_is_sound(items, fraction, seed):
    train, validation = inner_validation(items, fraction, seed)
    assert_sound(items, [train, validation])


@few
@given(item_lists(), st.integers(0, 1000))
def test_produced_splits_pass_the_leak_gate(items, seed):
    split = train_validation_test(items, 0.2, 0.2, seed)
    groups = {item.recording_id: Group(item.group, False) for item in items}
    check_no_leak(split, groups, [], {r: r for r in groups})


def test_seeds_give_different_folds():
    items = make_items({(label, "b"): [2] * 20 for label in LABELS})
    assert len({json.dumps(grouped_folds(items, 5, seed)) for seed in range(4)}) == 4


def test_equal_groups_are_spread_evenly_by_label_and_set():
    items = make_items({(label, set_): [1] * 10 for label in LABELS for set_ in "ab"})
    of = {item.recording_id: (item.label, item.set) for item in items}
    for fold in grouped_folds(items, 5, 0):
        assert set(Counter(of[r] for r in fold).values()) == {2}


def test_one_huge_group_does_not_take_the_class_from_other_folds():
    items = make_items({("murmur", "a"): [29, *[1] * 8], ("normal", "a"): [1] * 30})
    of = {item.recording_id: item.label for item in items}
    counts = sorted(Counter(of[r] for r in fold)["murmur"] for fold in grouped_folds(items, 5, 1))
    assert counts == [2, 2, 2, 2, 29]


def test_fractions_are_met():
    items = make_items({(label, "b"): [1, 2, 3] * 20 for label in LABELS})
    split = train_validation_test(items, 0.15, 0.2, 0)
    shares = {part: len(ids) / len(items) for part, ids in split.items()}
    assert shares == pytest.approx({"train": 0.65, "validation": 0.15, "test": 0.2}, abs=0.02)


def test_small_fraction_still_holds_a_class_of_three_groups():
    items = make_items({("murmur", "b"): [1] * 3, ("normal", "b"): [1] * 200})
    of = {item.recording_id: item.label for item in items}
    for ids in train_validation_test(items, 0.05, 0.05, 0).values():
        assert {of[r] for r in ids} == {"murmur", "normal"}


def hash_seed_folds() -> list[list[str]]:
    items = make_items({(label, s): [1, 3, 2, 1, 5, 2] for label in LABELS for s in "ab"})
    return grouped_folds(items, 3, 7)


def test_result_does_not_depend_on_the_hash_seed():
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    code = "from tests.unit.test_splits import *; print(json.dumps(hash_seed_folds()))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": other},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(printed) == hash_seed_folds()


def test_too_few_groups_names_the_classes():
    items = make_items({("extrahls", "a"): [9, 9], ("murmur", "b"): [4], ("normal", "b"): [1] * 9})
    with pytest.raises(UserError, match=r"3 groups .* extrahls has 2 and murmur has 1; ask"):
        grouped_folds(items, 3, 0)
    with pytest.raises(UserError, match="extrahls has 2"):
        train_validation_test(items, 0.2, 0.2, 0)
    with pytest.raises(UserError, match="murmur has 1"):
        inner_validation(items, 0.2, 0)


def test_groups_that_no_assignment_can_spread_fail():
    labels = (("x", "y"), ("y", "z"), ("x", "z"))
    items = [Item(f"{g}-{n}", n, "a", f"g{g}") for g, pair in enumerate(labels) for n in pair]
    with pytest.raises(UserError, match="can't be spread over 2 parts"):
        grouped_folds(items, 2, 0)


@pytest.mark.parametrize(
    "fractions", [(0, 1), (0.5, 0.5), (-0.1, 0.2), (float("nan"), 0.1), (0.1, float("nan"))]
)
def test_fractions_out_of_range(fractions):
    items = make_items({("murmur", "b"): [1] * 9})
    with pytest.raises(UserError, match="sum below 1"):
        train_validation_test(items, *fractions, 0)


def test_a_share_of_zero_leaves_the_part_empty():
    items = make_items({("murmur", "b"): [1] * 9, ("normal", "b"): [1] * 9})
    everyone = sorted(item.recording_id for item in items)
    split = train_validation_test(items, 0, 0, 0)
    assert sorted(split["train"]) == everyone and split["validation"] == split["test"] == []
    split = train_validation_test(items, 0, 0.3, 0)
    assert sorted(split["train"] + split["test"]) == everyone and split["test"]
    assert inner_validation(items, 0, 0) == ([item.recording_id for item in items], [])


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_inner_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match="less than 1"):
        inner_validation(make_items({("murmur", "b"): [1] * 9}), fraction, 0)


def test_bad_items():
    item = Item("a/x", "murmur", "a", "g")
    with pytest.raises(UserError, match="no recordings"):
        grouped_folds([], 2, 0)
    with pytest.raises(UserError, match="a/x is listed twice"):
        grouped_folds([item, item], 2, 0)
    with pytest.raises(UserError, match="num_folds 1"):
        grouped_folds([item], 1, 0)


# The leak gate: a clean split, then one leak of each kind.
GROUPS = {f"r{i}": Group(f"g{i // 2}", False) for i in range(8)}
HASHES = {f"r{i}": f"hash{i}" for i in range(8)}
CLEAN = {"train": ["r0", "r1", "r2", "r3"], "validation": ["r4", "r5"], "test": ["r6", "r7"]}
WITHIN = [Duplicate("r0", "r2", 1.0, 0.0, 2.0)]


def test_clean_split_passes():
    check_no_leak(CLEAN, GROUPS, WITHIN, HASHES)
    check_no_leak({"train": [], "test": []}, GROUPS, WITHIN, HASHES)


def test_duplicate_of_a_recording_outside_the_split_is_no_leak():
    check_no_leak({"train": ["r0"]}, GROUPS, WITHIN, HASHES)


def leak(parts=CLEAN, groups=GROUPS, duplicates=(), hashes=HASHES) -> str:
    with pytest.raises(LeakError) as caught:
        check_no_leak(parts, groups, list(duplicates), hashes)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_recording_on_two_sides():
    assert "recording on two sides: 1, r0 (test and train)" in leak(
        {**CLEAN, "test": ["r6", "r7", "r0"]}
    )


def test_recording_twice_on_one_side():
    message = leak({**CLEAN, "test": ["r6", "r6"]})
    assert "listed twice on one side: 1, r6;" in message
    assert "two sides" not in message


def test_group_on_two_sides():
    message = leak({"train": ["r0"], "test": ["r1"]})
    assert "group on two sides: 1, g0 (test and train)" in message
    assert "recording on" not in message


def test_duplicate_pair_on_two_sides():
    message = leak(duplicates=[*WITHIN, Duplicate("r3", "r6", 1.0, 0.0, 2.0)])
    assert "duplicate pair on two sides: 1, r3 (train) = r6 (test);" in message


def test_equal_file_on_two_sides():
    message = leak(hashes={**HASHES, "r5": "same", "r7": "same"})
    assert "equal file on two sides: 1, r5 = r7 (test and validation);" in message


def test_unknown_recordings():
    assert "unknown recording: 1, ghost" in leak({**CLEAN, "test": ["ghost"]})
    assert "unknown recording: 1, r7" in leak(hashes={k: v for k, v in HASHES.items() if k != "r7"})
    assert "unknown recording: 1, r7" in leak(groups={k: v for k, v in GROUPS.items() if k != "r7"})


def test_many_leaks_name_five_and_count_all():
    ids = [f"r{i}" for i in range(8)]
    message = leak({"train": ids, "test": ids})
    assert "recording on two sides: 8, r0 (test and train), r1" in message
    assert "r4 (test and train) and 3 more" in message
    assert "r5 (" not in message
    assert "group on two sides: 4" in message


@few
@given(item_lists(), st.integers(0, 100), st.data())
def test_moving_or_copying_any_recording_of_a_shared_group_is_caught(items, seed, data):
    split = train_validation_test(items, 0.2, 0.2, seed)
    groups = {item.recording_id: Group(item.group, False) for item in items}
    sizes = Counter(item.group for item in items)
    movable = sorted(r for r in split["train"] if sizes[groups[r].group] > 1)
    if not movable:
        return
    moved = data.draw(st.sampled_from(movable))
    broken = {**split, "test": [*split["test"], moved]}
    if data.draw(st.booleans()):
        broken["train"] = [r for r in split["train"] if r != moved]
    with pytest.raises(LeakError, match="group on two sides: 1"):
        check_no_leak(broken, groups, [], {r: r for r in groups})


def test_split_file_round_trip(tmp_path):
    path = tmp_path / "run" / "splits.json"
    write_split(path, CLEAN, GROUPS, HASHES, {"seed": 3})
    assert read_split(path) == CLEAN
    content = json.loads(path.read_text())
    assert content["metadata"] == {"seed": 3}
    assert content["parts"]["test"][0] == {
        "recording_id": "r6",
        "group": "g3",
        "content_hash": "hash6",
    }
    assert [p.name for p in path.parent.iterdir()] == ["splits.json"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "3", '{"parts": ["a"]}', '{"parts": {"a": ["r1"]}}', '{"parts": {"a": 1}}'],
)
def test_unreadable_split_file(tmp_path, content):
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(UserError, match="splits.json"):
        read_split(path)


def test_missing_split_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_split(tmp_path / "none.json")
