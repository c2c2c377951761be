"""Who is in the challenge's test recordings, told from file names alone: no audio is needed.

Nearly all test recordings of set B come from a person who is also in the training part, so a
look-up of the subject number scores well without hearing anything.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hb_ssl.data.file_names import UnknownName, parse_file_name, recording_key
from hb_ssl.data.groups import SIMULATOR_NUM_SAMPLES, assign_groups
from hb_ssl.data.recording import Recording
from hb_ssl.data.splits import read_split
from hb_ssl.errors import UserError
from hb_ssl.evaluation.workbook import SET_LABELS

# Minutes in which the simulator's recordings were made; no other recording falls into them.
SIMULATOR_STAMPS = (("201108011111", "201108011118"), ("201108222221", "201108222258"))


@dataclass(frozen=True)
class GroupFound:
    """Group name, and whether a training recording belongs to it."""

    group: str
    in_training: bool


def is_simulator_key(set_: str, key: str) -> bool:
    """Whether the time stamp of a set A recording is one of the simulator's."""
    return set_ == "a" and any(low <= key <= high for low, high in SIMULATOR_STAMPS)


def read_manifests(paths: Sequence[str | Path]) -> dict[str, str]:
    """The training recordings of several manifests together, see ``read_manifest``."""
    return {name: label for path in paths for name, label in read_manifest(path).items()}


def read_manifest(path: str | Path) -> dict[str, str]:
    """Names of the training recordings, each with the class that its name states.

    The validation part counts as training too: the model was stopped on it.

    Args:
        path: ``splits.json``, a run folder that holds one, or a CSV with a column ``recording_id``
            or ``file``.

    Returns:
        ``{"<set>/<file stem>": label}``.

    Raises:
        UserError: unreadable, or a name that is not a labelled recording of the challenge.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "splits.json"
    if path.suffix.lower() == ".csv":
        names = _names_of_csv(path)
    else:
        split = read_split(path)
        names = [name for part in ("train", "validation") for name in split.get(part, [])]
    found: dict[str, str] = {}
    for name in names:
        try:
            parsed = parse_file_name(Path(name).stem + ".wav")
        except UnknownName as error:
            raise UserError(
                f"{path}: '{name}' is not a labelled recording of the challenge; expected names "
                "such as b/normal__103_1305031931979_D1"
            ) from error
        if parsed.label is not None:
            found[f"{parsed.set}/{parsed.stem}"] = parsed.label
    if not found:
        raise UserError(f"{path}: names no training recording; expected the manifest of a training")
    return found


def _names_of_csv(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = list(reader.fieldnames or ())
            column = next((c for c in ("recording_id", "file") if c in header), None)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: can't be read as CSV ({error}); check the path") from error
    if column is None:
        raise UserError(f"{path}: has no column recording_id or file; expected a list of names")
    return [row[column] for row in rows]


def group_of_test(
    keys: Sequence[tuple[str, str]], manifest: Mapping[str, str]
) -> dict[tuple[str, str], GroupFound]:
    """The group (person, or session of set A) of every test recording.

    Args:
        keys: set and key of the test recordings.
        manifest: of ``read_manifest``.
    """
    test = {(set_, key): _named(set_, key, f"test {set_} {key}") for set_, key in keys}
    train = {name: _named(*_key_of(name), f"train {name}") for name in manifest}
    groups = assign_groups([*test.values(), *train.values()], [])
    trained = {groups[recording.recording_id].group for recording in train.values()}
    return {
        identity: GroupFound(group, group in trained)
        for identity, recording in test.items()
        if (group := groups[recording.recording_id].group)
    }


def subject_lookup(
    keys: Sequence[tuple[str, str]], manifest: Mapping[str, str], set_: str
) -> tuple[list[str], list[bool]]:
    """The commonest training class of the same person or session, for every test recording.

    One whose person is not in the training recordings gets the commonest class of the set.

    Returns:
        The answers, and whether the person was found.

    Raises:
        UserError: the manifest has no recording of the set.
    """
    own = {name: label for name, label in manifest.items() if name.startswith(set_)}
    labels = [label for label in own.values() if label in SET_LABELS[set_]]
    if not labels:
        raise UserError(
            f"the training manifest names no recording of set {set_.upper()}; expected the "
            "recordings that the predicting model learnt from, or give --set"
        )
    commonest = Counter(labels).most_common(1)[0][0]
    test = {(s, key): _named(s, key, f"test {s} {key}") for s, key in keys}
    train = {name: _named(*_key_of(name), f"train {name}") for name in own}
    groups = assign_groups([*test.values(), *train.values()], [])
    of_group: dict[str, Counter[str]] = defaultdict(Counter)
    for name, recording in train.items():
        of_group[groups[recording.recording_id].group][own[name]] += 1
    found = [of_group.get(groups[test[identity].recording_id].group) for identity in keys]
    answers = [counts.most_common(1)[0][0] if counts else commonest for counts in found]
    return answers, [counts is not None for counts in found]


def _key_of(name: str) -> tuple[str, str]:
    identity = recording_key(name)
    assert identity is not None  # read_manifest let it through
    return identity


def _named(set_: str, key: str, recording_id: str) -> Recording:
    """What a name alone says of a recording; ``recording_id`` keeps test and training apart."""
    parsed = parse_file_name(f"{key}.wav", (f"{set_.upper()}unlabelledtest",))
    return Recording(
        recording_id=f"{recording_id}/{key}",
        path="",
        set=set_,
        raw_label=None,
        noisy=False,
        subject=parsed.subject,
        site=parsed.site,
        timestamp=parsed.timestamp,
        sampling_rate=0,
        num_samples=SIMULATOR_NUM_SAMPLES if is_simulator_key(set_, key) else 0,
        content_hash="",
    )
