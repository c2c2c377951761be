"""Writes a simulated data set in the layout of the PASCAL recordings on Kaggle."""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from tqdm import tqdm

from hb_ssl.data.synthetic import Subject, draw_subject, simulate_recording
from hb_ssl.errors import UserError
from hb_ssl.files import (
    cache_folder,
    folder_written_whole,
    read_json,
    write_csv_atomic,
    write_json_atomic,
)

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1  # raise it whenever the same seed gives other audio
MARKER = "SYNTHETIC.json"
MIN_RECORDINGS = 20  # two of each class in each set
GROUPS_PER_CLASS = 8  # subjects a class at least, where it has that many recordings
# Share of the recordings by set and class: PASCAL's order of frequency, its extremes evened out so
# that a small data set still holds enough subjects of each class.
CLASS_SHARES = {
    ("a", "artifact"): 0.12,
    ("a", "extrahls"): 0.11,
    ("a", "murmur"): 0.12,
    ("a", "normal"): 0.12,
    ("b", "extrastole"): 0.12,
    ("b", "murmur"): 0.16,
    ("b", "normal"): 0.25,
}
UNLABELLED_SHARE = 0.05  # of all recordings, half in each set
NOISY_SHARES = {"murmur": 0.3, "normal": 0.375}  # of set B, as in PASCAL
SITES = ("A", "B", "C", "D", "B1", "D1", "A1", "C1")


@dataclass(frozen=True)
class _Plan:
    """One recording to write: where it belongs and what is in it."""

    set: str
    label: str
    unlabelled: bool
    subject: int  # a session of set A, a person of set B
    take: int  # number among the subject's recordings
    noisy: bool


def default_synthetic_folder(seed: int, num_recordings: int) -> Path:
    """Folder in the cache for a data set."""
    return cache_folder() / f"synthetic-v{GENERATOR_VERSION}-{num_recordings}-seed{seed}"


def write_synthetic_dataset(folder: str | Path, num_recordings: int = 160, seed: int = 0) -> Path:
    """Simulates recordings and writes them like the Kaggle copy of PASCAL.

    The folder gets ``set_a/`` (44.1 kHz phone), ``set_b/`` (4 kHz stethoscope), their CSV files and
    ``SYNTHETIC.json`` with the generator's version, the arguments and the truth of every file. It
    appears whole or not at all. A data set that is there already with the same arguments is kept.

    Args:
        folder: where to write; must be missing, empty, or hold the same data set.
        num_recordings: recordings in total, one in twenty of them unlabelled.
        seed: 0 or above; equal arguments give equal files.

    Returns:
        The folder.

    Raises:
        UserError: bad arguments, other content in the folder, or a folder that can't be written.
    """
    if num_recordings < MIN_RECORDINGS:
        raise UserError(
            f"{num_recordings} synthetic recordings: expected at least {MIN_RECORDINGS}, so that "
            "every class has two"
        )
    if seed < 0:
        raise UserError(f"seed {seed}: expected 0 or above")
    folder = Path(folder)
    arguments = {
        "generator_version": GENERATOR_VERSION,
        "num_recordings": num_recordings,
        "seed": seed,
    }
    if _holds_same_data(folder, arguments):
        logger.info("Using the synthetic recordings in %s", folder)
        return folder
    with folder_written_whole(folder) as temporary:
        _write_files(temporary, arguments)
    logger.info("Wrote %d synthetic recordings to %s", num_recordings, folder)
    return folder


def _holds_same_data(folder: Path, arguments: dict[str, int]) -> bool:
    """False if the folder is free; raises ``UserError`` if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MARKER).is_file():
        raise UserError(
            f"{folder}: exists and holds no synthetic data set; expected a new or empty folder, "
            "choose another one"
        )
    found = read_json(folder / MARKER)
    found_arguments = {key: found.get(key) for key in arguments}
    if found_arguments != arguments:
        raise UserError(
            f"{folder}: holds synthetic recordings made with {json.dumps(found_arguments)}; "
            f"expected {json.dumps(arguments)}, choose another folder or delete this one"
        )
    missing = [name for name in found["files"] if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of its recordings are missing, such as {missing[0]}; "
            "delete the folder to write it again"
        )
    return True


def _write_files(folder: Path, arguments: dict[str, int]) -> None:
    plan_rng, subject_rng, audio_rng = np.random.default_rng(arguments["seed"]).spawn(3)
    plans = _plan_recordings(arguments["num_recordings"], plan_rng)
    stems = _file_stems(plans, plan_rng)
    subjects = _draw_subjects(plans, subject_rng)
    truths: dict[str, Any] = {}
    rows: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
    order = sorted(range(len(plans)), key=lambda i: (plans[i].set, stems[i]))
    for index, rng in tqdm(
        list(zip(order, audio_rng.spawn(len(plans)))), desc="Simulating recordings", disable=None
    ):
        plan, name = plans[index], f"set_{plans[index].set}/{stems[index]}.wav"
        rate, device = (44_100, "phone") if plan.set == "a" else (4000, "stethoscope")
        waveform, truth = simulate_recording(
            plan.label,
            _draw_duration(plan, rng),
            rate,
            rng,
            device,
            subject=subjects.get((plan.set, plan.subject)),
            noisy=plan.noisy,
        )
        (folder / name).parent.mkdir(exist_ok=True)
        sf.write(folder / name, waveform, rate, subtype="PCM_16")
        truths[name] = {"subject": f"{plan.set}{plan.subject}", **truth.to_dict()}
        label = "" if plan.unlabelled else plan.label
        sublabel = f"noisy{label}" if plan.noisy and label else ""
        rows[plan.set].append(
            {"dataset": plan.set, "fname": name, "label": label, "sublabel": sublabel}
        )
    for set_, set_rows in rows.items():
        write_csv_atomic(folder / f"set_{set_}.csv", set_rows)
    write_json_atomic(folder / MARKER, {**arguments, "files": truths})


def _plan_recordings(num_recordings: int, rng: np.random.Generator) -> list[_Plan]:
    """Shares the recordings out over classes and subjects; subjects are numbered per set."""
    each = max(round(num_recordings * UNLABELLED_SHARE / 2), 1)
    num_unlabelled = {"a": each, "b": each}
    num_labelled = num_recordings - sum(num_unlabelled.values())
    exact = np.array(list(CLASS_SHARES.values())) * num_labelled
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: num_labelled - counts.sum()]] += 1

    plans: list[_Plan] = []
    next_subject = {"a": 0, "b": 0}
    for (set_, label), count in zip(CLASS_SHARES, counts):
        num_subjects = min(int(count), max(GROUPS_PER_CLASS, int(count) // 2))
        num_noisy = round(count * NOISY_SHARES.get(label, 0)) if set_ == "b" else 0
        noisy = rng.permutation(np.arange(count) < num_noisy)
        for i in range(count):
            subject = next_subject[set_] + i % num_subjects
            plans.append(_Plan(set_, label, False, subject, i // num_subjects, bool(noisy[i])))
        next_subject[set_] += num_subjects
    # Unlabelled files of set B come from the labelled subjects, as nearly all do in PASCAL; those
    # of set A from sessions of their own.
    people = sorted({(p.subject, p.label) for p in plans if p.set == "b"})
    for pick in rng.permutation(len(people))[: num_unlabelled["b"]]:
        person, label = people[pick]
        take = sum(p.set == "b" and p.subject == person for p in plans)
        plans.append(_Plan("b", label, True, person, take, bool(rng.random() < 0.3)))
    labels_a = [label for set_, label in CLASS_SHARES if set_ == "a"]
    for i in range(num_unlabelled["a"]):
        label = labels_a[int(rng.integers(len(labels_a)))]
        plans.append(_Plan("a", label, True, next_subject["a"] + i, 0, False))
    return plans


def _draw_subjects(plans: list[_Plan], rng: np.random.Generator) -> dict[tuple[str, int], Subject]:
    """The subject behind each (set, number); artifacts have none."""
    labels = {(p.set, p.subject): p.label for p in plans if p.label != "artifact"}
    return {
        key: draw_subject(label, child)
        for (key, label), child in zip(labels.items(), rng.spawn(len(labels)))
    }


def _file_stems(plans: list[_Plan], rng: np.random.Generator) -> list[str]:
    """File names in PASCAL's patterns, in the order of ``plans``.

    Set A has only time stamps: sessions are hours apart, a session's recordings minutes. All lie
    in 2012, clear of the sessions of 2011 that the real data is known for.
    """
    sessions = rng.permutation(1 + max(p.subject for p in plans if p.set == "a"))
    people = rng.permutation(1 + max(p.subject for p in plans if p.set == "b"))
    start = datetime(2012, 1, 1, 6, 30, tzinfo=UTC)
    stems = []
    for plan in plans:
        if plan.set == "a":
            moment = start + timedelta(hours=7 * int(sessions[plan.subject]), minutes=2 * plan.take)
            prefix = "Aunlabelledtest" if plan.unlabelled else plan.label
            stems.append(f"{prefix}__{moment:%Y%m%d%H%M}")
            continue
        number = 301 + int(people[plan.subject])  # the real data uses 101 to 300
        stamp = int(start.timestamp() * 1000) + 4_000_123 * int(people[plan.subject])
        if plan.unlabelled:
            prefix = "Bunlabelledtest__"
        else:
            prefix = f"{plan.label}_noisy{plan.label}_" if plan.noisy else f"{plan.label}__"
        round_, site = divmod(plan.take, len(SITES))
        stems.append(f"{prefix}{number}_{stamp + round_}_{SITES[site]}")
    return stems


def _draw_duration(plan: _Plan, rng: np.random.Generator) -> float:
    """Seconds: PASCAL's artifacts last exactly 9.0 s; set B varies more than set A."""
    if plan.label == "artifact":
        return 9.0
    if plan.set == "a":
        return round(float(rng.uniform(5.5, 9.0)), 2)
    median = 5.5 if plan.noisy else 4.5
    return round(float(np.clip(rng.lognormal(np.log(median), 0.45), 2.2, 12.0)), 2)
