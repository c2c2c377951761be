"""The real PASCAL recordings: counts, names and the facts the design rests on."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hb_ssl.data.inspect import format_inspection, inspect_recordings
from hb_ssl.data.pascal import RecordingList, list_recordings

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def pascal(pascal_dir) -> RecordingList:
    return list_recordings(pascal_dir)


def test_counts(pascal):
    recordings = pascal.recordings
    assert len(recordings) == 832
    assert Counter((r.set, r.raw_label) for r in recordings) == {
        ("a", "artifact"): 40,
        ("a", "extrahls"): 19,
        ("a", "murmur"): 34,
        ("a", "normal"): 31,
        ("a", None): 52,
        ("b", "extrastole"): 46,
        ("b", "murmur"): 95,
        ("b", "normal"): 320,
        ("b", None): 195,
    }
    assert Counter(r.raw_label for r in recordings if r.noisy) == {"murmur": 29, "normal": 120}
    assert len(pascal.labelled("merge")) == 585
    assert {(r.set, r.sampling_rate) for r in recordings} == {("a", 44100), ("b", 4000)}
    assert not pascal.synthetic


def test_the_csv_files_agree_and_nothing_is_left_out(pascal):
    assert pascal.problems == []


def test_ids_are_the_file_names(pascal):
    ids = [r.recording_id for r in pascal.recordings]
    assert ids == sorted(set(ids))
    assert all(Path(r.path).stem == r.recording_id.split("/")[1] for r in pascal.recordings)
    assert all(Path(r.path).is_absolute() for r in pascal.recordings)


def test_subjects_and_time_stamps(pascal):
    set_b = [r for r in pascal.recordings if r.set == "b"]
    assert len({r.subject for r in set_b if r.raw_label}) == 165
    assert all(r.subject and r.site and r.timestamp for r in set_b)
    assert {r.site[0] for r in set_b if r.site} == set("ABCDEF")
    set_a = [r for r in pascal.recordings if r.set == "a"]
    assert all(r.subject is None and r.site is None for r in set_a)
    # Two unlabelled names lack digits.
    assert [r.recording_id for r in set_a if r.timestamp is None] == [
        "a/Aunlabelledtest__2011040239",
        "a/Aunlabelledtest__20110501548",
    ]
    assert sum(r.num_samples == 349_958 for r in set_a) == 40


def test_shortcut_facts(pascal):
    card = inspect_recordings(pascal)
    shortcuts = card["shortcuts"]
    assert shortcuts["accuracy_of_set_alone"]["drop"] == 0.6679
    assert shortcuts["commonest_duration"]["a artifact"] == {
        "seconds": 9.0,
        "recordings": 40,
        "of": 40,
    }
    assert shortcuts["labels_in_one_set"] == {"artifact": "a", "extrahls": "a", "extrastole": "b"}
    assert card["subjects"]["unlabelled_recordings_of_unseen_subjects"] == 7
    assert "66.8% right" in format_inspection(card)


def test_the_challenges_folders_give_the_same_list(pascal, tmp_path):
    """Rebuilds the layout that the challenge's zips unpack to, with its odd folder names."""
    folders = {
        ("a", "extrahls"): "Atraining_extrahs/Atraining_extrahls",
        ("b", "extrastole"): "Btraining_extrasystole/Btraining_extrastole",
        ("b", "normal"): "Btraining_normal/Training B Normal",
    }
    for r in pascal.recordings:
        if r.raw_label is None:
            folder = f"{r.set.upper()}unlabelledtest"
        else:
            plain = f"{r.set.upper()}training_{r.raw_label}"
            folder = folders.get((r.set, r.raw_label), plain)
            folder += f"/Btraining_noisy{r.raw_label}" if r.noisy else ""
        stem = Path(r.path).stem
        name = stem[next(i for i, letter in enumerate(stem) if letter.isdigit()) :]
        target = tmp_path / folder / f"{name}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(r.path)
    again = list_recordings(tmp_path)
    assert again.problems == []
    assert [replace(r, path="") for r in again.recordings] == [
        replace(r, path="") for r in pascal.recordings
    ]
