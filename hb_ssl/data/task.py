"""From a data source to a classification task: labels, groups, duplicates, splits."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hb_ssl.config import DataConfig
from hb_ssl.data.duplicates import Duplicate, contradictory_duplicates, find_duplicates
from hb_ssl.data.groups import Group, assign_groups
from hb_ssl.data.inspect import inspect_recordings
from hb_ssl.data.pascal import RecordingList, list_recordings
from hb_ssl.data.recording import LABEL_MODES, Recording, task_label
from hb_ssl.data.sources import resolve_source
from hb_ssl.data.splits import Item, check_no_leak, read_split, train_validation_test
from hb_ssl.data.synthetic_dataset import default_synthetic_folder, write_synthetic_dataset
from hb_ssl.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeartSoundTask:
    """Labelled recordings of one task, ready to be split.

    Attributes:
        source: where the recordings come from; ``synthetic`` sources are named so everywhere.
        synthetic: the recordings are simulated.
        label_mode: ``merge``, ``drop``, ``set_a`` or ``set_b``.
        labels: class names in label-id order.
        items: the labelled recordings that take part.
        recordings: every recording of the source by id, unlabelled ones included.
        groups: group of every recording.
        duplicates: pairs of recordings that share audio.
        dropped: ``{"recording_id", "reason"}`` of recordings left out on purpose.
        data_card: counts and problems, for the report.
    """

    source: str
    synthetic: bool
    label_mode: str
    labels: list[str]
    items: list[Item]
    recordings: dict[str, Recording]
    groups: dict[str, Group]
    duplicates: list[Duplicate]
    dropped: list[dict[str, str]]
    data_card: dict[str, Any]

    def label_id(self, recording_id: str) -> int:
        return self.labels.index(self._label_of[recording_id])

    @property
    def _label_of(self) -> dict[str, str]:
        return {item.recording_id: item.label for item in self.items}

    def check_split(self, split: dict[str, list[str]]) -> None:
        """The leak gate (see ``check_no_leak``)."""
        hashes = {r: recording.content_hash for r, recording in self.recordings.items()}
        check_no_leak(split, self.groups, self.duplicates, hashes)


def load_recordings(source: str, num_synthetic: int, seed: int = 0) -> RecordingList:
    """Lists the recordings of a source; ``synthetic`` is simulated first if need be.

    Raises:
        UserError: see ``resolve_source`` and ``list_recordings``.
    """
    if source == "synthetic":
        folder = default_synthetic_folder(seed, num_synthetic)
        write_synthetic_dataset(folder, num_recordings=num_synthetic, seed=seed)
        logger.warning("Using %d SYNTHETIC recordings, as asked (source: synthetic)", num_synthetic)
        return list_recordings(folder)
    return list_recordings(resolve_source(source))


def prepare_task(
    source: str, label_mode: str, num_synthetic: int = 160, keep_contradictions: bool = False
) -> HeartSoundTask:
    """Reads a source, finds duplicates and groups, and picks the recordings of a task.

    Raises:
        UserError: the source is unusable or holds fewer than two classes of the task.
    """
    listed = load_recordings(source, num_synthetic)
    recordings = {r.recording_id: r for r in listed.recordings}
    duplicates = find_duplicates(listed.recordings)
    groups = assign_groups(listed.recordings, duplicates)
    contradictions = (
        set() if keep_contradictions else contradictory_duplicates(listed.recordings, duplicates)
    )
    items, dropped = [], []
    for recording in listed.recordings:
        label = task_label(recording.raw_label, recording.set, label_mode)
        if label is None:
            continue
        if recording.recording_id in contradictions:
            reason = "shares its audio with a recording of another label"
            dropped.append({"recording_id": recording.recording_id, "reason": reason})
            continue
        group = groups[recording.recording_id].group
        items.append(Item(recording.recording_id, label, recording.set, group))
    present = {item.label for item in items}
    if len(present) < 2:
        raise UserError(
            f"{source}: has {len(items)} labelled recordings of {len(present)} class(es) for label "
            f"mode '{label_mode}'; expected {', '.join(LABEL_MODES[label_mode])}"
        )
    return HeartSoundTask(
        source=source,
        synthetic=listed.synthetic,
        label_mode=label_mode,
        labels=[label for label in LABEL_MODES[label_mode] if label in present],
        items=items,
        recordings=recordings,
        groups=groups,
        duplicates=duplicates,
        dropped=dropped,
        data_card=inspect_recordings(listed, duplicates, groups),
    )


def prepare_task_from(config: DataConfig) -> HeartSoundTask:
    """``prepare_task`` with the values of a config."""
    return prepare_task(
        config.source, config.label_mode, config.num_synthetic, config.keep_contradictions
    )


def choose_split(task: HeartSoundTask, config: DataConfig, seed: int) -> dict[str, list[str]]:
    """Train, validation and test recording ids, past the leak gate.

    Raises:
        UserError: a given split file does not fit the task.
        LeakError: a group, a duplicate or a recording stands on two sides.
    """
    if config.split_file:
        split = {part: list(ids) for part, ids in read_split(Path(config.split_file)).items()}
        _check_parts(config.split_file, split, task)
    else:
        split = train_validation_test(
            task.items, config.validation_fraction, config.test_fraction, seed
        )
    task.check_split(split)
    return split


def _check_parts(path: str, split: dict[str, list[str]], task: HeartSoundTask) -> None:
    if set(split) != {"train", "validation", "test"}:
        raise UserError(
            f"{path}: has parts {', '.join(sorted(split))}; expected train, validation and test"
        )
    known = {item.recording_id for item in task.items}
    unknown = [r for ids in split.values() for r in ids if r not in known]
    if unknown:
        raise UserError(
            f"{path}: names {len(unknown)} recordings that are not in this task (first: "
            f"{unknown[0]}); use the source and label_mode that it was made with"
        )
