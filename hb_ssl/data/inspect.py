"""The data card: what is in a list of recordings, and what a model could cheat with."""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hb_ssl.data.pascal import RecordingList
from hb_ssl.data.recording import LABEL_MODES, Recording

if TYPE_CHECKING:
    from hb_ssl.data.duplicates import Duplicate
    from hb_ssl.data.groups import Group

WIDTH = 80


def inspect_recordings(
    recording_list: RecordingList,
    duplicates: "Sequence[Duplicate] | None" = None,
    groups: "Mapping[str, Group] | None" = None,
) -> dict[str, Any]:
    """Summarises recordings as a dict that can be written as JSON (``data_card.json``).

    Args:
        recording_list: from ``list_recordings``.
        duplicates: from ``find_duplicates``; ``None`` leaves that part out.
        groups: from ``assign_groups``, by recording id; ``None`` leaves that part out.

    Returns:
        Counts, durations (seconds), sampling rates (Hz), shortcuts and problems.
    """
    recordings = recording_list.recordings
    labelled = [r for r in recordings if r.raw_label is not None]
    card: dict[str, Any] = {
        "folder": recording_list.folder,
        "synthetic": recording_list.synthetic,
        "num_recordings": len(recordings),
        "num_labelled": len(labelled),
        "total_seconds": round(sum(r.duration_seconds for r in recordings), 3),
        "classes": _class_rows(recordings),
        "label_modes": {
            mode: _sorted_counts(label for _, label in recording_list.labelled(mode))
            for mode in LABEL_MODES
        },
        "subjects": _subject_counts(recordings),
        "sampling_rates": {
            set_: _sorted_counts(str(r.sampling_rate) for r in recordings if r.set == set_)
            for set_ in sorted({r.set for r in recordings})
        },
        "shortcuts": _shortcuts(recording_list),
        "problems": list(recording_list.problems),
    }
    if duplicates is not None:
        card["duplicates"] = _duplicate_rows(recordings, duplicates)
    if groups is not None:
        card["groups"] = _group_facts(labelled, groups)
    return card


def _sorted_counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _class_rows(recordings: list[Recording]) -> list[dict[str, Any]]:
    """One row for each set and label (unlabelled last), with duration quantiles."""
    by_class: dict[tuple[str, bool, str], list[Recording]] = defaultdict(list)
    for r in recordings:
        by_class[r.set, r.raw_label is None, r.raw_label or "unlabelled"].append(r)
    rows = []
    for (set_, _, label), members in sorted(by_class.items()):
        durations = [r.duration_seconds for r in members]
        names = ("min", "q25", "median", "q75", "max")
        quantiles = np.quantile(durations, [0, 0.25, 0.5, 0.75, 1])
        rows.append(
            {
                "set": set_,
                "label": label,
                "recordings": len(members),
                "noisy": sum(r.noisy for r in members),
                "subjects": len({r.subject for r in members if r.subject is not None}),
                "seconds": round(sum(durations), 3),
                "duration_seconds": {
                    name: round(float(value), 3) for name, value in zip(names, quantiles)
                },
            }
        )
    return rows


def _subject_counts(recordings: list[Recording]) -> dict[str, int]:
    with_subject = [r for r in recordings if r.subject is not None]
    known = {r.subject for r in with_subject if r.raw_label is not None}
    unlabelled = [r for r in with_subject if r.raw_label is None]
    return {
        "labelled": len(known),
        "unlabelled": len({r.subject for r in unlabelled}),
        "unlabelled_recordings": len(unlabelled),
        "unlabelled_recordings_of_unseen_subjects": sum(r.subject not in known for r in unlabelled),
    }


def _majority_accuracy(keys_and_labels: Iterable[tuple[Any, str]]) -> float | None:
    """Share that is right when every key answers with its most frequent label."""
    by_key: dict[Any, Counter[str]] = defaultdict(Counter)
    for key, label in keys_and_labels:
        by_key[key][label] += 1
    total = sum(counts.total() for counts in by_key.values())
    right = sum(max(counts.values()) for counts in by_key.values())
    return round(right / total, 4) if total else None


def _shortcuts(recording_list: RecordingList) -> dict[str, Any]:
    """What names the class without listening; see the keys' sentences in ``format_inspection``."""
    labelled = [r for r in recording_list.recordings if r.raw_label is not None]
    lengths: dict[str, Counter[float]] = defaultdict(Counter)
    for r in labelled:
        lengths[f"{r.set} {r.raw_label}"][round(r.duration_seconds, 1)] += 1
    common = {name: counts.most_common(1)[0] for name, counts in sorted(lengths.items())}
    sets_of = {
        label: sorted({r.set for r in labelled if r.raw_label == label})
        for label in sorted({r.raw_label for r in labelled if r.raw_label})
    }
    of_subject: dict[str, set[str | None]] = defaultdict(set)
    for r in labelled:
        if r.subject is not None:
            of_subject[r.subject].add(r.raw_label)
    return {
        "accuracy_of_set_alone": {
            mode: _majority_accuracy((r.set, label) for r, label in recording_list.labelled(mode))
            for mode in LABEL_MODES
        },
        "labels_in_one_set": {label: s[0] for label, s in sets_of.items() if len(s) == 1},
        "commonest_duration": {
            name: {"seconds": seconds, "recordings": number, "of": lengths[name].total()}
            for name, (seconds, number) in common.items()
        },
        "subjects_with_several_labels": sum(len(labels) > 1 for labels in of_subject.values()),
        "subjects_with_one_label": sum(len(labels) == 1 for labels in of_subject.values()),
    }


def _duplicate_rows(
    recordings: list[Recording], duplicates: "Sequence[Duplicate]"
) -> list[dict[str, Any]]:
    labels = {r.recording_id: r.raw_label for r in recordings}
    rows = []
    for pair in duplicates:
        first, second = labels.get(pair.first), labels.get(pair.second)
        rows.append(
            {
                "first": pair.first,
                "second": pair.second,
                "correlation": round(float(pair.correlation), 6),
                "offset_seconds": round(float(pair.offset_seconds), 4),
                "shared_seconds": round(float(pair.shared_seconds), 4),
                "labels_disagree": None not in (first, second) and first != second,
            }
        )
    return rows


def _group_facts(labelled: list[Recording], groups: "Mapping[str, Group]") -> dict[str, Any]:
    """Group sizes among the labelled recordings, which are what is split."""
    sizes = Counter(groups[r.recording_id].group for r in labelled)
    sizes_of_sizes = Counter(sizes.values())
    simulator = [r for r in labelled if groups[r.recording_id].simulator]
    return {
        "num_groups": len(sizes),
        "largest": dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:5]),
        "groups_by_size": {str(size): sizes_of_sizes[size] for size in sorted(sizes_of_sizes)},
        "simulator_recordings": len(simulator),
        "simulator_labels": _sorted_counts(f"{r.set} {r.raw_label}" for r in simulator),
    }


def format_inspection(card: Mapping[str, Any]) -> str:
    """The data card as plain text, at most 80 columns (paths and ids are never broken)."""
    minutes = card["total_seconds"] / 60
    lines = [
        "SYNTHETIC DATA: simulated, not recorded from people"
        if card["synthetic"]
        else "Recordings",
        f"  folder      {card['folder']}",
        f"  recordings  {card['num_recordings']} ({card['num_labelled']} labelled), "
        f"{minutes:.1f} minutes",
    ]
    for set_, rates in card["sampling_rates"].items():
        shown = ", ".join(f"{rate} Hz ({number})" for rate, number in rates.items())
        lines.append(f"  set {set_.upper()}       {shown}")
    lines += ["", "Classes (durations in seconds)", *_class_table(card["classes"])]
    lines += ["", "Label modes"]
    for mode, counts in card["label_modes"].items():
        shown = ", ".join(f"{label} {number}" for label, number in counts.items())
        lines.append(f"  {mode:<6} {sum(counts.values()):>4}  {shown or '(no recording)'}")
    subjects = card["subjects"]
    lines += [
        "",
        "Subjects (set B)",
        f"  {subjects['labelled']} in the labelled recordings, {subjects['unlabelled']} in the "
        "unlabelled",
        f"  {subjects['unlabelled_recordings_of_unseen_subjects']} of "
        f"{subjects['unlabelled_recordings']} unlabelled recordings are of unseen subjects",
        "",
        "Shortcuts (what names the class without listening)",
        *_shortcut_lines(card["shortcuts"]),
    ]
    if "duplicates" in card:
        lines += ["", "Shared audio", *_duplicate_lines(card["duplicates"])]
    if "groups" in card:
        lines += ["", "Groups (labelled recordings)", *_group_lines(card["groups"])]
    lines += ["", f"Problems: {len(card['problems']) or 'none'}"]
    lines += [f"  - {problem}" for problem in card["problems"]]
    return "\n".join(_wrapped(line) for line in lines) + "\n"


def _wrapped(line: str) -> str:
    """Folds a long line under its own indent; one long word (a path) stays whole."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _class_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"  {'set':<4}{'label':<12}{'files':>6}{'noisy':>7}{'subjects':>10}"
        f"{'min':>7}{'q25':>7}{'median':>8}{'q75':>7}{'max':>7}"
    ]
    for row in rows:
        d = row["duration_seconds"]
        lines.append(
            f"  {row['set'].upper():<4}{row['label']:<12}{row['recordings']:>6}{row['noisy']:>7}"
            f"{row['subjects']:>10}{d['min']:>7.2f}{d['q25']:>7.2f}{d['median']:>8.2f}"
            f"{d['q75']:>7.2f}{d['max']:>7.2f}"
        )
    return lines


def _shortcut_lines(shortcuts: Mapping[str, Any]) -> list[str]:
    lines = []
    for mode in ("merge", "drop"):
        accuracy = shortcuts["accuracy_of_set_alone"][mode]
        if accuracy is not None:
            lines.append(f"  knowing only the set: {accuracy:.1%} right (label mode {mode})")
    for label, set_ in shortcuts["labels_in_one_set"].items():
        lines.append(f"  {label} is only in set {set_.upper()}")
    for name, common in shortcuts["commonest_duration"].items():
        # Most classes have some commonest length; only a dominating one gives the class away.
        if common["recordings"] > common["of"] / 2:
            set_, label = name.split()
            lines.append(
                f"  {common['recordings']} of {common['of']} {label} (set {set_.upper()}) last "
                f"{common['seconds']:.1f} s"
            )
    one, several = shortcuts["subjects_with_one_label"], shortcuts["subjects_with_several_labels"]
    if one + several:
        lines.append(f"  {one} of {one + several} subjects have one label only")
    return lines or ["  (no labelled recording)"]


def _duplicate_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        lines += [
            f"  {row['first']}",
            f"  {row['second']}",
            f"      {row['shared_seconds']:.1f} s shared, r = {row['correlation']:.4f}"
            + ("; THE LABELS DISAGREE" if row["labels_disagree"] else ""),
        ]
    return lines or ["  none"]


def _group_lines(facts: Mapping[str, Any]) -> list[str]:
    largest = ", ".join(f"{name} ({size})" for name, size in facts["largest"].items())
    lines = [f"  {facts['num_groups']} groups; largest: {largest}"]
    if facts["simulator_recordings"]:
        shown = ", ".join(f"{name} {n}" for name, n in facts["simulator_labels"].items())
        lines.append(f"  {facts['simulator_recordings']} recordings of a simulator: {shown}")
    return lines
