from datetime import UTC, datetime

import pytest

from hb_ssl.data.duplicates import Duplicate
from hb_ssl.data.groups import SIMULATOR_NUM_SAMPLES, assign_groups
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError


def in_a(stamp: str, label: str | None = "normal", num_samples: int = 40_000) -> Recording:
    """A set A recording; ``stamp`` is yyyymmddhhmm, or a shorter one that lost digits."""
    when = datetime.strptime(stamp, "%Y%m%d%H%M").replace(tzinfo=UTC) if len(stamp) == 12 else None
    return Recording(
        recording_id=f"a/{label or 'Aunlabelledtest'}__{stamp}",
        path="",
        set="a",
        raw_label=label,
        noisy=False,
        subject=None,
        site=None,
        timestamp=when.timestamp() if when else None,
        sampling_rate=44_100,
        num_samples=num_samples,
        content_hash="",
    )


def in_b(subject: str | None, take: str, label: str | None = "normal") -> Recording:
    return Recording(
        recording_id=f"b/{label or 'Bunlabelledtest'}__{subject}_{take}",
        path="",
        set="b",
        raw_label=label,
        noisy=False,
        subject=subject,
        site="A",
        timestamp=1.3e9,
        sampling_rate=4000,
        num_samples=20_000,
        content_hash="",
    )


def names(recordings: list[Recording], *pairs: tuple[Recording, Recording]) -> list[str]:
    """Group names in the order of ``recordings``; the order given must not matter."""
    duplicates = [
        Duplicate(*sorted((a.recording_id, b.recording_id)), 1.0, 0.0, 3.0) for a, b in pairs
    ]
    groups = assign_groups(recordings, duplicates)
    assert groups == assign_groups(recordings[::-1], duplicates[::-1])
    assert sorted(groups) == sorted(r.recording_id for r in recordings)
    return [groups[r.recording_id].group for r in recordings]


def test_one_subject_is_one_group_whatever_the_label():
    recordings = [in_b("7", "1"), in_b("7", "2", "murmur"), in_b("7", "3", None), in_b("8", "1")]
    assert names(recordings) == ["b-subject-7"] * 3 + ["b-subject-8"]


def test_subjects_known_to_be_one_person_join_without_duplicates():
    recordings = [in_b("103", "1"), in_b("101", "1"), in_b("146", "1"), in_b("102", "1")]
    assert names(recordings) == ["b-subject-101+103+146"] * 3 + ["b-subject-102"]


def test_missing_subject_is_not_a_subject():
    one, two = in_b(None, "1"), in_b(None, "2")
    assert names([one, two]) == ["recording-b-normal__None_1", "recording-b-normal__None_2"]


def test_sessions_chain_at_most_thirty_minutes_apart():
    stamps = ["201104021300", "201104021330", "201104021400", "201104021431", "201104030000"]
    assert names([in_a(stamp) for stamp in stamps]) == ["a-session-201104021300"] * 3 + [
        "a-session-201104021431",
        "a-session-201104030000",
    ]


def test_sessions_cross_midnight_and_new_year():
    recordings = [in_a("201012312350"), in_a("201101010010", "murmur")]
    assert names(recordings) == ["a-session-201012312350"] * 2


def test_two_labels_of_one_minute_are_one_session():
    recordings = [in_a("201104021355", "extrahls"), in_a("201104021355", "murmur")]
    assert names(recordings) == ["a-session-201104021355"] * 2


def test_simulator_block_is_one_group_over_days_and_needs_the_exact_length():
    recordings = [
        in_a("201108011111", "normal", SIMULATOR_NUM_SAMPLES),
        in_a("201108222221", "murmur", SIMULATOR_NUM_SAMPLES),
        in_a("201108222225", None, SIMULATOR_NUM_SAMPLES),
        in_a("201109010000", "murmur", SIMULATOR_NUM_SAMPLES - 1),
    ]
    assert names(recordings) == ["a-simulator"] * 3 + ["a-session-201109010000"]
    flags = [group.simulator for group in assign_groups(recordings, []).values()]
    assert sorted(flags) == [False, True, True, True]


def test_simulator_flag_stays_with_the_recording():
    machine = in_a("201108011111", "normal", SIMULATOR_NUM_SAMPLES)
    person = in_a("201108011125")
    groups = assign_groups([machine, person], [])
    assert {group.group for group in groups.values()} == {"a-simulator"}
    assert groups[machine.recording_id].simulator
    assert not groups[person.recording_id].simulator


def test_duplicates_join_transitively_over_subjects_sessions_and_sets():
    one, two, three = in_b("1", "x"), in_b("2", "x"), in_b("20", "x")
    session = [in_a("201101010000"), in_a("201101010010")]
    recordings = [one, two, three, *session, in_b("3", "x")]
    pairs = [(one, three), (three, two), (two, session[1])]
    joined = "a-session-201101010000+b-subject-1+2+20"
    assert names(recordings, *pairs) == [joined] * 5 + ["b-subject-3"]


def test_stamp_that_lost_digits_joins_its_day():
    lost = in_a("20110501548", None)
    recordings = [in_a("201105010100"), in_a("201105011626"), lost, in_a("201105021626")]
    assert names(recordings) == ["a-session-201105010100"] * 3 + ["a-session-201105021626"]


def test_stamp_that_lost_digits_on_a_day_of_its_own():
    assert names([in_a("2011040239", None), in_a("201104030239")]) == [
        "recording-a-Aunlabelledtest__2011040239",
        "a-session-201104030239",
    ]


def test_duplicate_of_an_unknown_recording_fails():
    with pytest.raises(UserError, match="b/ghost"):
        assign_groups([in_b("1", "x")], [Duplicate("b/ghost", "b/normal__1_x", 1.0, 0.0, 3.0)])


def test_repeated_recording_id_fails():
    with pytest.raises(UserError, match="unique"):
        assign_groups([in_b("1", "x"), in_b("1", "x")], [])


def test_nothing_gives_nothing():
    assert assign_groups([], []) == {}
