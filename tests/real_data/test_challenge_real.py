"""Who is in the challenge's test recordings: facts that the leak-aware scores rest on."""

from pathlib import Path

import pytest

from hb_ssl.data.file_names import recording_key
from hb_ssl.data.groups import SIMULATOR_NUM_SAMPLES
from hb_ssl.data.pascal import RecordingList, list_recordings
from hb_ssl.evaluation.pascal_leaks import group_of_test, is_simulator_key

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def listed(pascal_dir: Path) -> RecordingList:
    return list_recordings(pascal_dir)


def _keys(listed: RecordingList, labelled: bool) -> list[tuple[str, str]]:
    return [
        recording_key(r.recording_id)
        for r in listed.recordings
        if (r.raw_label is not None) == labelled
    ]


def test_every_test_recording_has_a_key_of_its_own(listed: RecordingList) -> None:
    keys = _keys(listed, False)
    assert None not in keys and len(set(keys)) == len(keys)
    assert sum(set_ == "a" for set_, _ in keys) == 52
    assert sum(set_ == "b" for set_, _ in keys) == 195


def test_seven_of_195_set_b_test_recordings_come_from_strangers(listed: RecordingList) -> None:
    manifest = {r.recording_id: r.raw_label for r in listed.recordings if r.raw_label}
    found = group_of_test(_keys(listed, False), manifest)
    strangers = [key for (set_, key), own in found.items() if set_ == "b" and not own.in_training]
    assert len(strangers) == 7


def test_simulator_time_stamps_are_those_of_its_recordings(listed: RecordingList) -> None:
    for recording in listed.recordings:
        key = recording_key(recording.recording_id)
        by_length = recording.set == "a" and recording.num_samples == SIMULATOR_NUM_SAMPLES
        assert is_simulator_key(*key) == by_length, recording.recording_id
