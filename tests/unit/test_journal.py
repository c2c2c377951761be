"""Batches that go on where they were killed: every row once, in order, of the right model."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hb_ssl.batch import picture_files
from hb_ssl.errors import UserError
from hb_ssl.journal import journal_of, model_files, resumable_rows

ABOUT = {"model": [["model.safetensors", 5, 7]], "runtime": "torch"}


def make_files(folder: Path, count: int = 5) -> list[Path]:
    files = [folder / f"{number} ♥.wav" for number in range(count)]
    for file in files:
        file.write_text(file.name)
    return files


class Classify:
    """Stands in for the network: says what each file holds, and remembers what it was asked."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def __call__(self, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
        for file in files:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(file.name)
            found = file.is_file()
            yield {
                "file": str(file),
                "decision": file.read_text() if found else "",
                "probability": 0.1 + len(self.asked) / 7,
                "error": "" if found else "no such file",
            }


def rows_of(
    table: Path, files: list[Path], classify: Classify, resume: bool = True, **about: Any
) -> list[dict[str, Any]]:
    return list(resumable_rows(table, files, classify, {**ABOUT, **about}, resume))


def interrupted(table: Path, files: list[Path], after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        rows_of(table, files, Classify(stop_after=after), resume=False)


@settings(max_examples=60, deadline=None)
@given(after=st.integers(0, 4), cut=st.integers(0, 400))
def test_every_row_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, after: int, cut: int
) -> None:
    """However many rows were kept, and wherever in a line the process was killed."""
    folder = tmp_path_factory.mktemp("batch")
    files = make_files(folder)
    whole = rows_of(folder / "whole.csv", files, Classify(), resume=False)
    table = folder / "killed.csv"
    interrupted(table, files, after)
    journal = journal_of(table)
    content = journal.read_bytes()
    journal.write_bytes(content[: max(len(content) - cut, 0)])
    again = Classify()
    rows = rows_of(table, files, again)
    assert [row["file"] for row in rows] == [row["file"] for row in whole]
    assert [row["decision"] for row in rows] == [row["decision"] for row in whole]
    assert len(again.asked) >= len(files) - after
    kept = len(files) - len(again.asked)
    assert rows[:kept] == whole[:kept]
    assert rows_of(table, files, Classify(stop_after=0)) == rows  # all of them are kept now


def test_without_resume_all_is_done_again(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    interrupted(tmp_path / "x.csv", files, 3)
    again = Classify()
    assert len(rows_of(tmp_path / "x.csv", files, again, resume=False)) == len(again.asked) == 5


def test_changed_new_and_unreadable_files_are_done_again(tmp_path: Path) -> None:
    files = [*make_files(tmp_path), tmp_path / "absent.wav", Path("nul\0byte.wav")]
    rows_of(tmp_path / "x.csv", files, Classify(), resume=False)
    files[1].write_text("another sound")
    files.insert(0, tmp_path / "new.wav")
    files[0].write_text("new")
    files.append(files[3])  # twice the same: both get the row
    again = Classify()
    rows = rows_of(tmp_path / "x.csv", files, again)
    assert again.asked == ["new.wav", files[2].name, "absent.wav", "nul\0byte.wav"]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert rows[2]["decision"] == "another sound"
    assert [bool(row["error"]) for row in rows] == [False] * 6 + [True, True, False]


def test_rows_of_another_model_are_never_mixed_in(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    interrupted(tmp_path / "x.csv", files, 3)
    with pytest.raises(UserError, match="begun with another model, runtime"):
        rows_of(tmp_path / "x.csv", files, Classify(), runtime="onnx")
    model = tmp_path / "model"
    (model / "adapter").mkdir(parents=True)
    (model / "adapter/weights").write_text("a")
    first = model_files(model)
    assert [name for name, *_ in first] == ["adapter/weights"]
    os.utime(model / "adapter/weights", ns=(1, 1))
    assert model_files(model) != first


@pytest.mark.parametrize("content", [b"[1]\n2\n", b"{\n", b"\xff\xfe\n", b'{"key": 1}\n[]\n'])
def test_a_damaged_journal_is_one_line(tmp_path: Path, content: bytes) -> None:
    files = make_files(tmp_path)
    journal_of(tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match="leave --resume out to begin again") as caught:
        rows_of(tmp_path / "x.csv", files, Classify())
    assert "\n" not in str(caught.value)
    assert len(rows_of(tmp_path / "x.csv", files, Classify(), resume=False)) == 5


def test_one_table_has_one_writer_and_a_place(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    first = resumable_rows(tmp_path / "x.csv", files, Classify(), ABOUT, False)
    next(first)
    with pytest.raises(UserError, match="another process is writing this table"):
        rows_of(tmp_path / "x.csv", files, Classify(), resume=False)
    assert len(list(first)) == 4
    for table, message in (
        (tmp_path, "is a folder"), (files[0] / "x.csv", "can't be written"),
        (Path("/proc/hb-ssl.csv"), "can't be written"),
    ):  # fmt: skip
        classify = Classify()
        with pytest.raises(UserError, match=message):
            rows_of(table, files, classify)
        assert classify.asked == [], "said before any work"


def test_each_file_gets_a_picture_of_its_own(tmp_path: Path) -> None:
    files = [Path(name) for name in ("a/x.wav", "b/x.wav", "x-2.wav", "b/x.wav", "c/y.flac")]
    pictures = picture_files(files, tmp_path)
    assert [pictures[file].name for file in dict.fromkeys(files)] == [
        "x.png", "x-2.png", "x-2-2.png", "y.png",
    ]  # fmt: skip
