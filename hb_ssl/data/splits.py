"""Splits that keep groups whole, their files, and the gate that no leak passes."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hb_ssl.data.duplicates import Duplicate
from hb_ssl.data.groups import Group
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic

NUM_TRIALS = 40  # random orders tried for one split; the best balanced one is kept
SHOWN = 5  # leaks named in an error


class LeakError(UserError):
    """Something stands on two sides of a split."""


@dataclass(frozen=True)
class Item:
    """A recording that takes part in a task.

    Attributes:
        recording_id: see ``Recording``.
        label: the task's label.
        set: ``a`` or ``b``.
        group: recordings of one group never part.
    """

    recording_id: str
    label: str
    set: str
    group: str


def grouped_folds(items: list[Item], num_folds: int, seed: int) -> list[list[str]]:
    """Folds with groups whole and every (label, set) spread as evenly as the groups allow.

    The result depends on the items and the seed only, not on their order.

    Args:
        items: recordings of the task.
        num_folds: 2 or more.
        seed: of the random choices.

    Returns:
        Sorted recording ids of every fold; every class is in every fold.

    Raises:
        UserError: a class has fewer groups than folds, or the groups can't be spread so that
            every fold has every class.
    """
    if num_folds < 2:
        raise UserError(f"num_folds {num_folds}: expected 2 or more")
    return _assign(items, [1 / num_folds] * num_folds, seed)


def train_validation_test(
    items: list[Item], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[str]]:
    """One split into ``train``, ``validation`` and ``test``; see ``grouped_folds``.

    Args:
        items: recordings of the task.
        validation_fraction: share of the recordings of every (label, set) to aim at; 0: none.
        test_fraction: as above.
        seed: of the random choices.

    Raises:
        UserError: a fraction out of range, or a class with fewer groups than parts.
    """
    train_fraction = 1 - validation_fraction - test_fraction
    if min(validation_fraction, test_fraction) < 0 or not train_fraction > 0:
        raise UserError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction}: "
            "expected neither below 0 and their sum below 1"
        )
    shares = {"train": train_fraction, "validation": validation_fraction, "test": test_fraction}
    wanted = {part: share for part, share in shares.items() if share}
    parts = dict(zip(wanted, _assign(items, list(wanted.values()), seed)))
    return {part: parts.get(part, []) for part in shares}


def inner_validation(items: list[Item], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Splits the training part of a fold into (train, validation) ids; see ``grouped_folds``.

    Raises:
        UserError: ``fraction`` is not inside [0, 1), or a class has fewer than two groups.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation fraction {fraction}: expected at least 0 and less than 1")
    if not fraction:
        return [item.recording_id for item in items], []
    train, validation = _assign(items, [1 - fraction, fraction], seed)
    return train, validation


def _assign(items: list[Item], shares: Sequence[float], seed: int) -> list[list[str]]:
    """Spreads groups over parts that aim at ``shares`` of every (label, set).

    Groups are placed greedily, those that hold most of some (label, set) first, where the squared
    deviation from the aim grows least; the best of ``NUM_TRIALS`` orders is kept. On PASCAL this
    balances better than scikit-learn's StratifiedGroupKFold, which knows neither uneven shares
    nor that every class must be in every fold.
    """
    _check_items(items, len(shares))
    names = sorted({item.group for item in items})
    strata = sorted({(item.label, item.set) for item in items})
    row = {name: i for i, name in enumerate(names)}
    column = {stratum: i for i, stratum in enumerate(strata)}
    counts = np.zeros((len(names), len(strata)))  # recordings of each group in each stratum
    for item in items:
        counts[row[item.group], column[item.label, item.set]] += 1
    labels = sorted({label for label, _ in strata})
    of_label = np.array([[label == s[0] for s in strata] for label in labels], float)
    has_label = counts @ of_label.T > 0
    totals = counts.sum(axis=0)
    aims = np.outer(shares, totals)
    weight = 1 / (aims * totals)  # a rare stratum counts like a common one
    biggest = (counts / totals).max(axis=1)
    spreadable = (counts > 0).sum(axis=0) >= len(shares)

    rng = np.random.default_rng(seed)
    best: tuple[tuple[int, int, float], np.ndarray] | None = None
    for _ in range(NUM_TRIALS):
        order = rng.permutation(len(names))
        order = order[np.argsort(-biggest[order], kind="stable")]
        parts = np.zeros((len(shares), len(strata)))
        chosen = np.zeros(len(names), int)
        to_come = has_label.sum(axis=0)  # groups of each label not yet placed
        for group in order:
            growth = (counts[group] * (2 * (parts - aims) + counts[group]) * weight).sum(axis=1)
            lacks = parts @ of_label.T == 0
            urgent = has_label[group] & (to_come <= lacks.sum(axis=0))
            growth -= 1e6 * (lacks & urgent).sum(axis=1)  # else some part would miss the class
            to_come -= has_label[group]
            # Rounding makes equal parts differ in the last bits; take the first of the equal ones.
            part = int(np.argmax(growth <= growth.min() + 1e-9))
            parts[part] += counts[group]
            chosen[group] = part
        score = (
            int((parts @ of_label.T == 0).sum()),
            int((parts[:, spreadable] == 0).sum()),
            round(float((((parts - aims) ** 2) * weight).sum()), 9),
        )
        if best is None or score < best[0]:
            best = score, chosen
    assert best is not None
    if best[0][0]:
        raise UserError(
            f"the groups of {len(items)} recordings can't be spread over {len(shares)} parts so "
            "that every part has every class; ask for fewer folds or drop the rarest class"
        )
    ids: list[list[str]] = [[] for _ in shares]
    for item in sorted(items, key=lambda i: i.recording_id):
        ids[best[1][row[item.group]]].append(item.recording_id)
    return ids


def _check_items(items: list[Item], num_parts: int) -> None:
    if not items:
        raise UserError("no recordings to split; expected labelled recordings")
    repeated = [r for r, n in sorted(Counter(i.recording_id for i in items).items()) if n > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is listed twice; expected every recording once")
    groups: dict[str, set[str]] = defaultdict(set)
    for item in items:
        groups[item.label].add(item.group)
    few = [f"{label} has {len(g)}" for label, g in sorted(groups.items()) if len(g) < num_parts]
    if few:
        raise UserError(
            f"{num_parts} parts need {num_parts} groups (subjects or sessions) of every class, but "
            f"{' and '.join(few)}; ask for fewer parts, add recordings or leave the class out"
        )


def check_no_leak(
    parts: dict[str, list[str]],
    groups: dict[str, Group],
    duplicates: list[Duplicate],
    content_hashes: dict[str, str],
) -> None:
    """The leak gate: passes only if no two parts share anything.

    Args:
        parts: recording ids by part name (``train``, ``test``, ``fold 0``, ...).
        groups: group of every recording of the source.
        duplicates: pairs that share sound.
        content_hashes: SHA-256 of every recording's file.

    Raises:
        LeakError: a recording, a group, a duplicate pair or an equal file stands on two sides, a
            recording is listed twice, or a recording is unknown.
    """
    listed = [(recording_id, part) for part in sorted(parts) for recording_id in parts[part]]
    unknown = sorted({r for r, _ in listed if r not in groups or r not in content_hashes})
    if unknown:
        raise LeakError(
            f"{_list_some('unknown recording', unknown)}; expected recordings of this source, so "
            "use the source that the split was made for"
        )
    sides: dict[str, set[str]] = defaultdict(set)
    group_sides: dict[str, set[str]] = defaultdict(set)
    hash_sides: dict[str, set[str]] = defaultdict(set)
    hash_ids: dict[str, set[str]] = defaultdict(set)
    for recording_id, part in listed:
        sides[recording_id].add(part)
        group_sides[groups[recording_id].group].add(part)
        hash_sides[content_hashes[recording_id]].add(part)
        hash_ids[content_hashes[recording_id]].add(recording_id)
    times = Counter(recording_id for recording_id, _ in listed)
    pairs = [
        f"{d.first} ({_join(sides[d.first])}) = {d.second} ({_join(sides[d.second])})"
        for d in duplicates
        if d.first in sides and d.second in sides and len(sides[d.first] | sides[d.second]) > 1
    ]
    leaks = {
        "recording on two sides": _on_two_sides(sides),
        "recording listed twice on one side": [
            r for r in sorted(times) if len(sides[r]) < times[r] and len(sides[r]) == 1
        ],
        "group on two sides": _on_two_sides(group_sides),
        "duplicate pair on two sides": sorted(pairs),
        "equal file on two sides": sorted(
            f"{' = '.join(sorted(hash_ids[h]))} ({_join(found)})"
            for h, found in hash_sides.items()
            if len(found) > 1
        ),
    }
    found = [_list_some(kind, names) for kind, names in leaks.items() if names]
    if found:
        raise LeakError(
            f"the split leaks: {'; '.join(found)}; expected every group, duplicate and file on one "
            "side only, make the split again with this version"
        )


def _on_two_sides(sides: dict[str, set[str]]) -> list[str]:
    return [f"{name} ({_join(sides[name])})" for name in sorted(sides) if len(sides[name]) > 1]


def _join(parts: set[str]) -> str:
    return " and ".join(sorted(parts))


def _list_some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{kind}: {len(names)}, {', '.join(names[:SHOWN])}{more}"


def write_split(
    path: str | Path,
    split: dict[str, list[str]],
    groups: dict[str, Group],
    content_hashes: dict[str, str],
    metadata: dict[str, Any],
) -> None:
    """Writes a split as JSON that names every recording, its group and its file's hash by part.

    Args:
        path: the file.
        split: recording ids by part.
        groups: group of every recording.
        content_hashes: SHA-256 of every recording's file.
        metadata: what made the split (seed, label mode, source, ...); JSON values.

    Raises:
        UserError: the file can't be written.
    """
    parts = {
        part: [
            {"recording_id": r, "group": groups[r].group, "content_hash": content_hashes[r]}
            for r in sorted(ids)
        ]
        for part, ids in split.items()
    }
    write_json_atomic(path, {"metadata": metadata, "parts": parts})


def read_split(path: str | Path) -> dict[str, list[str]]:
    """Reads the recording ids by part from a file of ``write_split``.

    Raises:
        UserError: the file is missing or is not a split.
    """
    return {
        part: [recording_id for recording_id, _ in rows] for part, rows in _read_parts(path).items()
    }


def split_hashes(path: str | Path, parts: Sequence[str]) -> set[str]:
    """SHA-256 of the files that a split names in some of its parts.

    Raises:
        UserError: as ``read_split``.
    """
    rows = [row for part, rows in _read_parts(path).items() if part in parts for row in rows]
    return {content_hash for _, content_hash in rows if content_hash is not None}


def _read_parts(path: str | Path) -> dict[str, list[tuple[str, str | None]]]:
    """Recording id and file hash, if the file names it, of every row by part."""
    content = read_json(path)
    try:
        return {
            part: [(str(row["recording_id"]), row.get("content_hash")) for row in rows]
            for part, rows in content["parts"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not a split file; expected the splits.json of a run, "
            "{'parts': {part: [{'recording_id': ...}, ...]}}"
        ) from error
