"""Checks the csv files of Kaggle's layout against the file names, which are what is trusted."""

import csv
import re
from collections import Counter
from pathlib import Path

from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError

LABEL_COLUMNS = ("dataset", "fname", "label", "sublabel")
TIMING_COLUMNS = ("fname", "cycle", "sound", "location")


def check_tables(folder: Path, files: list[Path], recordings: list[Recording]) -> list[str]:
    """Compares ``set_a.csv``, ``set_b.csv`` and ``set_a_timing.csv`` with the recordings.

    Args:
        folder: the listed folder.
        files: files in it, relative to it.
        recordings: the readable recordings.

    Returns:
        One line for each row without a file, file without a row, and disagreement.

    Raises:
        UserError: a csv that can't be read or has other columns.
    """
    problems: list[str] = []
    for path in files:
        if path.name in ("set_a.csv", "set_b.csv"):
            of_set = [r for r in recordings if r.set == path.stem[-1]]
            problems += _check_labels(folder / path, of_set)
        elif path.name == "set_a_timing.csv":
            problems += _check_timing(folder / path, [r for r in recordings if r.set == "a"])
    return problems


def match_key(name: str) -> str:
    """What a csv's file name and a real one have in common.

    ``set_b.csv`` writes ``Btraining_normal_Btraining_noisynormal_1_2_C.wav`` for
    ``normal_noisynormal_1_2_C.wav``, ``Bunlabelledtest_1_2_D.wav`` with one underscore for two,
    and some copies of ``set_a.csv`` write ``__201101051105.wav`` for a test file.
    """
    stem = re.sub(r"\.[A-Za-z]+$", "", name.replace("\\", "/").split("/")[-1]).lower()
    stem = re.sub(r"[ab](training|unlabelledtest)_", "", stem)
    return re.sub(r"_+", "_", stem).strip("_")


def _check_labels(path: Path, recordings: list[Recording]) -> list[str]:
    rows = _read_rows(path, LABEL_COLUMNS)
    by_key = {match_key(recording.recording_id): recording for recording in recordings}
    keys = Counter(match_key(row["fname"]) for row in rows)
    problems = [f"{path.name}: {key} has {n} rows" for key, n in keys.items() if n > 1]
    for row in rows:
        recording = by_key.get(match_key(row["fname"]))
        if recording is None:
            problems.append(f"{path.name}: {row['fname']} has a row but no file")
            continue
        stated = (row["label"] or "unlabelled", row["sublabel"].startswith("noisy"))
        if stated != (recording.raw_label or "unlabelled", recording.noisy):
            problems.append(
                f"{path.name}: {row['fname']} is {_words(*stated)} in the csv but "
                f"{_words(recording.raw_label or 'unlabelled', recording.noisy)} by its name, "
                "the name is used"
            )
    # Kaggle's set_a.csv has come with and without rows for the test files.
    with_tests = any(key in keys for key, r in by_key.items() if r.raw_label is None)
    problems += [
        f"{path.name}: {recording.recording_id} has no row"
        for key, recording in by_key.items()
        if key not in keys and (recording.raw_label is not None or with_tests)
    ]
    return problems


def _words(label: str, noisy: bool) -> str:
    return f"noisy {label}" if noisy else label


def _check_timing(path: Path, recordings: list[Recording]) -> list[str]:
    by_key = {match_key(recording.recording_id): recording for recording in recordings}
    problems = []
    missing: set[str] = set()
    for number, row in enumerate(_read_rows(path, TIMING_COLUMNS), start=2):
        recording = by_key.get(match_key(row["fname"]))
        if recording is None:
            missing.add(row["fname"])
        elif not row["location"].isdecimal() or int(row["location"]) >= recording.num_samples:
            problems.append(
                f"{path.name} line {number}: location '{row['location']}' is not a sample of "
                f"{recording.recording_id} ({recording.num_samples} samples)"
            )
        elif row["sound"] not in ("S1", "S2"):
            problems.append(f"{path.name} line {number}: sound '{row['sound']}' is not S1 or S2")
    return problems + [f"{path.name}: {name} has rows but no file" for name in sorted(missing)]


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            got = tuple(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: can't be read as csv ({error}); take it from the data set again or remove it"
        ) from error
    if not set(columns) <= set(got):
        raise UserError(
            f"{path}: has the columns {', '.join(got) or '(none)'}; expected {', '.join(columns)}, "
            "take it from the data set again or remove it"
        )
    return rows
