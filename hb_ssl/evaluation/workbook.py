"""Reference labels and predictions of the challenge's test recordings, read and checked.

The challenge published one workbook. Its sheets "Dataset A" and "Dataset B" hold 0/1 predictions
in one column a class beside each file name and, further down in the same columns, the reference.
"""

import csv
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hb_ssl.data.file_names import recording_key
from hb_ssl.data.recording import LABEL_MODES
from hb_ssl.errors import UserError

REFERENCE_ROWS = {"a": (55, 106), "b": (198, 392)}  # first and last row in the sheet, from 1
SHEETS = {"a": "Dataset A", "b": "Dataset B"}
SET_LABELS = {"a": LABEL_MODES["set_a"], "b": LABEL_MODES["set_b"]}
_SPELLINGS = {
    "artifact": r"(is)?art[ei]facts?",
    "normal": r"(is)?normals?",
    "murmur": r"(is)?murmurs?",
    "extrahls": r"extra(heart)?(hl?s|sounds?)|ehs",
    "extrastole": r"extra(sy)?stoles?",
}
SAVE_AGAIN = (
    "save it again as .xlsx with a spreadsheet program, or give the labels as file,label CSV"
)


@dataclass(frozen=True)
class ReferenceRow:
    """One line of the reference.

    Attributes:
        key: the digits of the file name, e.g. ``201101091156`` or ``181_1308052613891_A``.
        set: ``a`` or ``b``.
        label: as the challenge names it.
        where: file (and sheet) and row, for messages.
    """

    key: str
    set: str
    label: str
    where: str


def read_reference(path: str | Path, sets: Sequence[str] = ("a", "b")) -> list[ReferenceRow]:
    """Reads the true labels from the challenge's workbook or from a CSV ``file,label``.

    A CSV may hold one set; a workbook must hold every set asked for.

    Args:
        path: ``.xlsx`` or ``.csv``.
        sets: which sets to read.

    Returns:
        One row a line of the reference, a key listed twice twice.

    Raises:
        UserError: a file that can't be read, or a row that is no labelled recording.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the challenge's workbook or a CSV")
    if path.suffix.lower() == ".xlsx":
        return _read_workbook(path, sets)
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path}: expected an .xlsx workbook or a .csv file; {SAVE_AGAIN}")
    rows = []
    for where, record in _csv_records(path, ("file",), "label"):
        set_, key = _key_or_error(record["file"], where)
        rows.append(ReferenceRow(key, set_, label_of_set(record["label"], set_, where), where))
    return [row for row in rows if row.set in sets]


def read_challenge_predictions(
    path: str | Path, sets: Sequence[str] = ("a", "b")
) -> dict[tuple[str, str], str]:
    """Reads ``file,prediction`` (more columns don't matter), as ``hb-ssl predict --csv`` writes.

    A column ``recording_id`` will do for ``file``.

    Returns:
        Set and key of every recording to the predicted label.

    Raises:
        UserError: an unknown name, a label that the set does not have, no prediction, or two rows
            for one recording.
    """
    path = Path(path)
    found: dict[tuple[str, str], str] = {}
    lines: dict[tuple[str, str], str] = {}
    for where, record in _csv_records(path, ("file", "recording_id"), "prediction"):
        name = record.get("file") or record.get("recording_id") or ""
        identity = _key_or_error(name, where)
        if identity[0] not in sets:
            continue
        if not record["prediction"].strip():
            reason = f" ({record['error']})" if record.get("error") else ""
            raise UserError(
                f"{where}: {name} has no prediction{reason}; expected one for every recording"
            )
        if identity in found:
            raise UserError(
                f"{where}: {name} is listed twice, first in {lines[identity]}; expected one "
                "prediction a recording, remove one of the rows"
            )
        found[identity] = label_of_set(record["prediction"], identity[0], where)
        lines[identity] = where.rpartition(": ")[2]
    return found


def label_of_set(text: str, set_: str, where: str) -> str:
    """The challenge's label behind any of its spellings.

    Raises:
        UserError: not a class of this set.
    """
    label = _spelled(text, set_)
    if label is None:
        raise UserError(
            f"{where}: '{text}' is not a class of set {set_.upper()}; expected one of "
            f"{', '.join(SET_LABELS[set_])} (use a model trained with label_mode set_{set_})"
        )
    return label


def _spelled(text: str, set_: str) -> str | None:
    letters = re.sub(r"[^a-z]", "", text.lower())
    matching = (name for name in SET_LABELS[set_] if re.fullmatch(_SPELLINGS[name], letters))
    return next(matching, None)


def _key_or_error(name: str, where: str) -> tuple[str, str]:
    identity = recording_key(name)
    if identity is None:
        raise UserError(
            f"{where}: '{name}' is not a recording of the challenge; expected a name such as "
            "201101091156.aiff or Bunlabelledtest__181_1308052613891_A.wav"
        )
    return identity


def _csv_records(
    path: Path, names: Sequence[str], label: str
) -> Iterable[tuple[str, dict[str, str]]]:
    """Rows with where they stand; one of ``names`` and ``label`` must be columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = list(reader.fieldnames or ())
            records = list(reader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: can't be read as CSV ({error}); write it again") from error
    if label not in header or not any(name in header for name in names):
        raise UserError(
            f"{path}: has the column(s) {', '.join(header) or '(none)'}; expected "
            f"{' or '.join(names)}, and {label}"
        )
    if not records:
        raise UserError(f"{path}: holds a header but no rows; expected one row a recording")
    return [(f"{path}: line {line}", record) for line, record in enumerate(records, start=2)]


# ---- The workbook --------------------------------------------------------------------------------


def _read_workbook(path: Path, sets: Sequence[str]) -> list[ReferenceRow]:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    # openpyxl lets through whatever its zip and XML readers raise on a damaged file.
    try:
        book = openpyxl.load_workbook(path, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError,
            SyntaxError, TypeError, AttributeError) as error:  # fmt: skip
        raise UserError(f"{path}: can't be read as a workbook ({error}); {SAVE_AGAIN}") from error
    by_name = {re.sub(r"\s+", " ", name).strip().lower(): name for name in book.sheetnames}
    rows = []
    for set_ in sets:
        name = by_name.get(SHEETS[set_].lower())
        if name is None:
            raise UserError(
                f"{path}: has the sheet(s) {', '.join(book.sheetnames)}; expected "
                f"'{SHEETS[set_]}' (to score one set alone give --set)"
            )
        cells = [list(row) for row in book[name].iter_rows(values_only=True)]
        rows += _sheet_reference(cells, set_, f"{path}: sheet '{name}'")
    return rows


def _sheet_reference(cells: list[list[Any]], set_: str, where: str) -> list[ReferenceRow]:
    first, last = REFERENCE_ROWS[set_]
    if len(cells) < last:
        raise UserError(
            f"{where}: has {len(cells)} rows; expected the reference in rows {first} to {last}, "
            "take the workbook as the challenge published it"
        )
    columns = _class_columns(cells[: first - 1], set_, where)
    name_column = _name_column(cells, set_, where)
    rows = []
    for number in range(first, last + 1):
        row, here = cells[number - 1], f"{where}: row {number}"
        found = [label for label, column in columns.items() if _is_one(row[column], here)]
        if len(found) != 1:
            raise UserError(
                f"{here}: {row[name_column]} has {len(found)} classes marked with 1; expected one "
                f"of {', '.join(columns)}"
            )
        identity = recording_key(str(row[name_column]))
        assert identity is not None
        rows.append(ReferenceRow(identity[1], set_, found[0], here))
    return rows


def _class_columns(above: list[list[Any]], set_: str, where: str) -> dict[str, int]:
    """Column of every class, from the lowest row above the reference that names them all.

    Tables of results further right may name the classes again: the leftmost column is meant, and
    the check that every reference row has exactly one 1 would show it if it were not.
    """
    for row in reversed(above):
        named: dict[str, int] = {}
        for column, cell in enumerate(row):
            label = _spelled(cell, set_) if isinstance(cell, str) else None
            if label is not None:
                named.setdefault(label, column)
        if len(named) == len(SET_LABELS[set_]):
            return {label: named[label] for label in SET_LABELS[set_]}
    raise UserError(
        f"{where}: no row above the reference names the classes; expected a heading with "
        f"{', '.join(SET_LABELS[set_])}"
    )


def _name_column(cells: list[list[Any]], set_: str, where: str) -> int:
    """The column that holds a file name of the set in every reference row and in none below."""
    first, last = REFERENCE_ROWS[set_]
    rows = cells[first - 1 : last]

    def is_name(cell: Any) -> bool:
        found = recording_key(str(cell)) if cell is not None else None
        return found is not None and found[0] == set_

    counts = [sum(is_name(row[column]) for row in rows) for column in range(len(rows[0]))]
    best = max(range(len(counts)), key=lambda column: counts[column])
    if counts[best] < len(rows):
        bad = next(n for n, row in enumerate(rows, start=first) if not is_name(row[best]))
        raise UserError(
            f"{where}: row {bad} has '{cells[bad - 1][best]}' where a file name of set "
            f"{set_.upper()} is expected; the reference fills rows {first} to {last}, take the "
            "workbook as the challenge published it"
        )
    if len(cells) > last and is_name(cells[last][best]):
        raise UserError(
            f"{where}: row {last + 1} holds a file name too; expected the reference in rows "
            f"{first} to {last} only, so rows were moved: take the workbook as published"
        )
    return best


def _is_one(cell: Any, where: str) -> bool:
    text = "" if cell is None else str(cell).strip()
    try:
        value = float(text) if text else 0.0
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise UserError(f"{where}: holds '{cell}' in a class column; expected 0 or 1")
    return value == 1.0
