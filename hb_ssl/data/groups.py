"""Groups of recordings that must stay on one side of every split."""

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from hb_ssl.data.duplicates import Duplicate
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError

SESSION_GAP_SECONDS = 30 * 60  # set A names no subject: close time stamps stand for one person

# 40 recordings of set A (2011-08-01 11:11 to 11:18, 2011-08-22 22:21 to 22:58) have exactly this
# many samples and beat like a machine, almost surely a simulator. No other recording has.
SIMULATOR_NUM_SAMPLES = 349_958

# The same sound stands under these set B subject numbers (for 101 only in an unlabelled file), so
# they are one person. Said here too so that it holds where those files are not part of the list.
SAME_SUBJECTS = (("101", "103", "146"),)


@dataclass(frozen=True)
class Group:
    """Which recordings belong together.

    Attributes:
        group: readable name, e.g. ``b-subject-12``, ``a-session-201104021355``, ``a-simulator``.
        simulator: the recording is one of the 40 of the simulator block.
    """

    group: str
    simulator: bool


def assign_groups(recordings: list[Recording], duplicates: list[Duplicate]) -> dict[str, Group]:
    """Groups recordings that may come from one person or hold the same sound.

    Joined, and joined again where two rules meet: recordings of one set B subject; set A
    recordings made at most 30 minutes apart, one after another; the simulator block; duplicates.
    A set A time stamp that lost digits still names a day and joins all of that day.

    Args:
        recordings: labelled and unlabelled; the order does not matter.
        duplicates: pairs of these recordings.

    Returns:
        The group of every recording_id.

    Raises:
        UserError: a recording_id occurs twice, or a duplicate names an unknown recording.
    """
    ordered = sorted(recordings, key=lambda r: r.recording_id)
    parent = {r.recording_id: r.recording_id for r in ordered}
    if len(parent) != len(ordered):
        raise UserError(
            f"{len(ordered)} recordings have {len(parent)} different recording_ids; expected "
            "unique ids, list the folder again"
        )

    def root(recording_id: str) -> str:
        while parent[recording_id] != recording_id:
            parent[recording_id] = parent[parent[recording_id]]
            recording_id = parent[recording_id]
        return recording_id

    for ids in _linked(ordered):
        for other in ids[1:]:
            parent[root(other)] = root(ids[0])
    for duplicate in duplicates:
        for recording_id in (duplicate.first, duplicate.second):
            if recording_id not in parent:
                raise UserError(
                    f"duplicate pair names {recording_id}, which is not among the recordings; "
                    "expected pairs found in the same list"
                )
        parent[root(duplicate.second)] = root(duplicate.first)

    members: dict[str, list[Recording]] = defaultdict(list)
    for recording in ordered:
        members[root(recording.recording_id)].append(recording)
    groups = {}
    for component in members.values():
        name = _group_name(component)
        for recording in component:
            groups[recording.recording_id] = Group(name, _is_simulator(recording))
    return {recording_id: groups[recording_id] for recording_id in sorted(groups)}


def _is_simulator(recording: Recording) -> bool:
    return recording.set == "a" and recording.num_samples == SIMULATOR_NUM_SAMPLES


def _linked(recordings: list[Recording]) -> list[list[str]]:
    """Lists of recording ids that belong together for what their names and headers say."""
    links: dict[str, list[str]] = defaultdict(list)
    person = {number: numbers[0] for numbers in SAME_SUBJECTS for number in numbers}
    for recording in recordings:
        if recording.subject is not None:
            subject = person.get(recording.subject, recording.subject)
            links[f"{recording.set} subject {subject}"].append(recording.recording_id)
        if _is_simulator(recording):
            links["simulator"].append(recording.recording_id)
    linked = list(links.values())

    in_a = [r for r in recordings if r.set == "a"]
    stamped = sorted((r.timestamp, r.recording_id) for r in in_a if r.timestamp is not None)
    for (earlier, first), (later, second) in pairwise(stamped):
        if later - earlier <= SESSION_GAP_SECONDS:
            linked.append([first, second])
    for recording in in_a:
        day = re.search(r"(\d{8})\d*$", recording.recording_id)
        if recording.timestamp is None and day:
            same_day = [r for t, r in stamped if _stamp(t).startswith(day[1])]
            linked.append([recording.recording_id, *same_day])
    return linked


def _group_name(members: list[Recording]) -> str:
    """A name from the group's content; unique, since no two groups share what it is made of."""
    parts = []
    subjects = {r.subject for r in members if r.subject is not None}
    stamps = [r.timestamp for r in members if r.set == "a" and r.timestamp is not None]
    if any(_is_simulator(r) for r in members):
        parts.append("a-simulator")
    elif stamps:
        parts.append(f"a-session-{_stamp(min(stamps))}")
    if subjects:
        parts.append("b-subject-" + "+".join(sorted(subjects, key=lambda s: (len(s), s))))
    if not parts:
        parts.append("recording-" + min(r.recording_id for r in members).replace("/", "-"))
    return "+".join(parts)


def _stamp(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y%m%d%H%M")
