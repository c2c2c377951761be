"""The official scorer, against cases worked out by hand and workbooks of the published layout."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from hb_ssl.cli import main
from hb_ssl.data.file_names import recording_key
from hb_ssl.errors import UserError
from hb_ssl.evaluation.pascal_leaks import is_simulator_key, read_manifest
from hb_ssl.evaluation.pascal_scorer import challenge_scores, format_challenge_scores, score_pascal
from hb_ssl.evaluation.workbook import SET_LABELS, read_reference

# Rows are true classes: artifact, extrahls, murmur, normal.
CONFUSION_A = np.array([[8, 0, 1, 1], [1, 3, 1, 1], [0, 2, 6, 2], [1, 0, 2, 11]])
# extrastole, murmur, normal.
CONFUSION_B = np.array([[2, 1, 3], [1, 6, 3], [2, 3, 15]])


def test_every_score_of_set_a_by_hand():
    scores = challenge_scores(CONFUSION_A, "a")
    assert scores["precision_artifact"] == pytest.approx(8 / 10)
    assert scores["precision_extrahls"] == pytest.approx(3 / 5)
    assert scores["precision_murmur"] == pytest.approx(6 / 10)
    assert scores["precision_normal"] == pytest.approx(11 / 15)
    assert scores["total_precision"] == pytest.approx(0.8 + 0.6 + 0.6 + 11 / 15)
    assert scores["artifact_sensitivity"] == pytest.approx(8 / 10)
    # 3 + 6 + 11 of the 30 others got their own class.
    assert scores["artifact_specificity"] == pytest.approx(20 / 30)
    assert scores["artifact_youden"] == pytest.approx(0.8 + 20 / 30 - 1)
    assert scores["problem_sensitivity"] == pytest.approx(9 / 16)
    assert scores["problem_precision"] == pytest.approx(9 / 15)
    by_hand = 1.81 * 0.6 * 0.5625 / (0.81 * 0.6 + 0.5625)
    assert scores["problem_f_score"] == pytest.approx(by_hand)
    assert scores["problem_f_score"] == pytest.approx(0.58262, abs=1e-5)


def test_every_score_of_set_b_by_hand():
    scores = challenge_scores(CONFUSION_B, "b")
    assert scores["precision_extrastole"] == pytest.approx(2 / 5)
    assert scores["precision_murmur"] == pytest.approx(6 / 10)
    assert scores["precision_normal"] == pytest.approx(15 / 21)
    assert scores["total_precision"] == pytest.approx(0.4 + 0.6 + 15 / 21)
    assert scores["problem_sensitivity"] == pytest.approx(8 / 16)
    assert scores["problem_specificity"] == pytest.approx(15 / 20)
    assert scores["problem_youden"] == pytest.approx(0.25)
    # odds 1 and 3: sqrt(3)/pi * (0 + 0.4771)
    assert scores["discriminant_power"] == pytest.approx(0.551329 * 0.477121, abs=1e-5)


def test_sheet_compatible_changes_the_f_score_alone():
    right, sheet = (challenge_scores(CONFUSION_A, "a", flag) for flag in (False, True))
    assert sheet["problem_f_score"] == pytest.approx(right["problem_f_score"] * 0.81 / 1.81)
    del right["problem_f_score"], sheet["problem_f_score"]
    assert right == sheet
    assert challenge_scores(CONFUSION_B, "b") == challenge_scores(CONFUSION_B, "b", True)


def test_perfect_and_degenerate_answers():
    perfect = challenge_scores(np.diag([5, 6, 7, 8]), "a")
    assert perfect["total_precision"] == 4
    assert perfect["artifact_youden"] == perfect["problem_f_score"] == 1
    assert challenge_scores(np.diag([5, 6, 7]), "b")["discriminant_power"] == math.inf
    all_normal = np.zeros((3, 3))
    all_normal[:, 2] = [4, 5, 6]
    scores = challenge_scores(all_normal, "b")
    assert math.isnan(scores["precision_murmur"])
    assert scores["total_precision"] == pytest.approx(6 / 15)
    assert scores["problem_sensitivity"] == 0 and scores["problem_youden"] == 0
    assert math.isnan(challenge_scores(np.zeros((4, 4)), "a")["artifact_sensitivity"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("201101091156.aiff", ("a", "201101091156")),
        ("__201101091156.wav", ("a", "201101091156")),
        ("set_a/Aunlabelledtest__201101091156.wav", ("a", "201101091156")),
        ("181_1308052613891_A.aiff", ("b", "181_1308052613891_A")),
        ("181_1308052613891_A.AIF", ("b", "181_1308052613891_A")),
        ("Bunlabelledtest_176_1307988171173_C1.wav", ("b", "176_1307988171173_C1")),
        ("Bunlabelledtest__176_1307988171173_C_1.wav", ("b", "176_1307988171173_C1")),
        ("heart.wav", None),
        ("Artifact", None),
        ("", None),
    ],
)
def test_all_naming_forms_give_one_key(name, expected):
    assert recording_key(name) == expected


# ---- Workbooks with the layout of the published one ----------------------------------------------


def _keys(set_: str) -> list[str]:
    if set_ == "a":
        return [f"2011030{1 + n // 24}{n % 24:02d}15" for n in range(52)]
    return [f"{101 + n // 3}_13050{n:08d}_{'ABC'[n % 3]}" for n in range(195)]


def _labels(set_: str) -> list[str]:
    names = SET_LABELS[set_]
    return [names[n % len(names)] for n in range(len(_keys(set_)))]


HEADINGS = {
    "a": ("Artifact", "Extra Heart Sound", "Murmur", "Normal"),
    "b": ("Extrasystole", "Murmur", "Normal"),
}


def _workbook(path: Path, change=lambda book: None, columns=(2, 3, 4, 5)) -> Path:
    """Predictions (empty here) above, the reference below in the same columns."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for set_, title, first in (("a", "Dataset A", 55), ("b", "Dataset B", 198)):
        sheet = book.create_sheet(title)
        sheet.cell(1, 1, "File name")
        for column, heading in zip(columns, HEADINGS[set_]):
            sheet.cell(1, column, heading)
            sheet.cell(1, column + 8, f"{heading}")  # results further right name the classes too
        ending = ".aiff" if set_ == "a" else ".aif"
        for number, (key, label) in enumerate(zip(_keys(set_), _labels(set_), strict=True)):
            sheet.cell(2 + number, 1, key + ending)
            sheet.cell(first + number, 1, key + ending)
            for column, name in zip(columns, SET_LABELS[set_]):
                sheet.cell(first + number, column, int(name == label))
        sheet.cell(400, 1, "Total precision")
    change(book)
    book.save(path)
    return path


def _predictions(path: Path, change=lambda rows: rows, sets=("a", "b")) -> Path:
    """Right answers but for every fifth, in the names of Kaggle's folder."""
    rows = []
    for set_ in sets:
        names = SET_LABELS[set_]
        for number, (key, label) in enumerate(zip(_keys(set_), _labels(set_), strict=True)):
            answer = names[(names.index(label) + (number % 5 == 0)) % len(names)]
            name = f"{set_.upper()}unlabelledtest__{key}.wav"
            rows.append({"file": name, "prediction": answer, "error": "", "prob_normal": 0.5})
    rows = change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_workbook_is_scored_like_the_same_labels_in_a_csv(tmp_path):
    book = _workbook(tmp_path / "sheet.xlsx")
    predictions = _predictions(tmp_path / "answers.csv")
    with (tmp_path / "labels.csv").open("w") as file:
        file.write("file,label\n")
        for set_ in "ab":
            for key, label in zip(_keys(set_), _labels(set_), strict=True):
                file.write(f"{key}.aiff,{label}\n")
    of_sheet = score_pascal(book, predictions)
    of_csv = score_pascal(tmp_path / "labels.csv", predictions)
    assert of_sheet["sets"] == of_csv["sets"]
    block = of_sheet["sets"]["a"]["all"]
    assert (block["n"], of_sheet["sets"]["b"]["all"]["n"]) == (52, 195)
    assert block["accuracy"] == pytest.approx(41 / 52)
    assert np.sum(block["confusion_matrix"]) == 52
    low, high = block["intervals"]["total_precision"].values()
    assert low < block["scores"]["total_precision"] < high
    assert "total precision" in format_challenge_scores(of_sheet)


def test_class_columns_are_found_by_their_headings(tmp_path):
    shuffled = _workbook(tmp_path / "sheet.xlsx", columns=(6, 3, 5, 2))
    rows = read_reference(shuffled)
    assert [row.label for row in rows] == _labels("a") + _labels("b")


def test_double_key_counts_once_or_as_in_the_sheet(tmp_path):
    """The published sheet lists one B key twice, so another recording has no row."""

    def same_label(book):
        sheet = book["Dataset B"]
        sheet.cell(198 + 3, 1, sheet.cell(198, 1).value)  # both are extrastole

    book = _workbook(tmp_path / "sheet.xlsx", same_label)
    predictions = _predictions(tmp_path / "answers.csv")
    once = score_pascal(book, predictions)
    assert once["sets"]["b"]["all"]["n"] == 194
    assert any("listed in row 198 and row 201" in note for note in once["notes"])
    assert any("102_1305000000003_A" in note and "not scored" in note for note in once["notes"])
    assert score_pascal(book, predictions, sheet_compatible=True)["sets"]["b"]["all"]["n"] == 195


def test_double_key_with_two_labels_is_an_error_but_for_the_sheet(tmp_path):
    def other_label(book):
        sheet = book["Dataset B"]
        sheet.cell(199, 1, sheet.cell(198, 1).value)

    book = _workbook(tmp_path / "sheet.xlsx", other_label)
    predictions = _predictions(tmp_path / "answers.csv")
    with pytest.raises(UserError, match="row 198 and row 199 as extrastole and murmur; remove"):
        score_pascal(book, predictions)
    assert score_pascal(book, predictions, sheet_compatible=True)["sets"]["b"]["all"]["n"] == 195


def _cell(sheet, row, column, value):
    return lambda book: book[sheet].__setitem__(f"{chr(64 + column)}{row}", value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda book: book.remove(book["Dataset B"]), "expected 'Dataset B'"),
        (lambda book: book["Dataset A"].delete_rows(2, 400), "has 1 rows; expected the reference"),
        (lambda book: book["Dataset A"].delete_rows(3), "row 106 has 'None' where a file name"),
        (lambda book: book["Dataset B"].insert_rows(3), "row 198 has 'None' where a file name"),
        (lambda book: book["Dataset A"].delete_rows(1), "no row above the reference names"),
        (_cell("Dataset A", 60, 1, "heart.aiff"), "row 60 has 'heart.aiff' where a file name"),
        (_cell("Dataset A", 60, 1, "181_1308052613891_A.aiff"), "where a file name of set A"),
        (_cell("Dataset A", 107, 1, "201101091156.aiff"), "row 107 holds a file name too"),
        (_cell("Dataset B", 200, 2, "yes"), "row 200: holds 'yes' in a class column"),
        (_cell("Dataset B", 198, 2, None), "row 198: .* has 0 classes marked"),
        (_cell("Dataset B", 198, 3, 1), "row 198: .* has 2 classes marked"),
    ],
)
def test_malformed_workbook_is_explained(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_reference(_workbook(tmp_path / "sheet.xlsx", change))


def test_files_that_are_no_workbook(tmp_path):
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04 not a workbook")
    with pytest.raises(UserError, match="can't be read as a workbook"):
        read_reference(tmp_path / "sheet.xlsx")
    (tmp_path / "sheet.xls").write_bytes(b"\xd0\xcf")
    with pytest.raises(UserError, match="save it again as .xlsx"):
        read_reference(tmp_path / "sheet.xls")
    with pytest.raises(UserError, match="no such file"):
        read_reference(tmp_path / "none.xlsx")


def _without(name):
    return lambda rows: [row for row in rows if name not in row["file"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[5:],
            "5 of the 52 set A recordings .* no prediction \\(first: 2011030100",
        ),
        (lambda rows: [*rows, rows[0]], "line 249: .* is listed twice, first in line 2"),
        (lambda rows: [*rows, {**rows[0], "file": "me.wav"}], "'me.wav' is not a recording of the"),
        (
            lambda rows: [*rows, {**rows[0], "file": "201001010101.wav"}],
            "1 set A recordings are not in the reference \\(first: 201001010101\\)",
        ),
        (_without("Bunlabelledtest"), "no prediction for set B; .* or give --set a"),
        (_without("Aunlabelledtest"), "no prediction for set A; .* or give --set b"),
        (
            lambda rows: [{**row, "prediction": "extrahls"} for row in rows],
            "'extrahls' is not a class of set B",
        ),
        (
            lambda rows: [{**rows[0], "prediction": "", "error": "is empty"}, *rows[1:]],
            "has no prediction \\(is empty\\)",
        ),
        (
            lambda rows: [{"name": row["file"], "prediction": "normal"} for row in rows],
            "has the column\\(s\\) name, prediction; expected file or recording_id, and prediction",
        ),
    ],
)
def test_wrong_predictions_are_explained(tmp_path, change, message):
    book = _workbook(tmp_path / "sheet.xlsx")
    with pytest.raises(UserError, match=message):
        score_pascal(book, _predictions(tmp_path / "answers.csv", change))


def test_one_set_alone_is_scored_when_asked_for(tmp_path):
    book = _workbook(tmp_path / "sheet.xlsx")
    predictions = _predictions(tmp_path / "answers.csv", sets=("b",))
    assert list(score_pascal(book, predictions, sets=("b",))["sets"]) == ["b"]
    (tmp_path / "labels.csv").write_text("file,label\n201101091156.aiff,normal\n")
    with pytest.raises(UserError, match="no recording of set B; give --set a"):
        score_pascal(tmp_path / "labels.csv", predictions)


def _small_case(tmp_path: Path) -> tuple[Path, Path, Path]:
    truth = {
        "101_1305030823364_A": "murmur",  # trained as 103, which is the same person
        "150_1306776721273_C": "normal",  # trained
        "999_1306776721273_D": "extrastole",  # never seen
    }
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{key}.aif,{label}\n" for key, label in truth.items())
    )
    (tmp_path / "answers.csv").write_text(
        "file,prediction\n" + "".join(f"Bunlabelledtest__{key}.wav,normal\n" for key in truth)
    )
    train = [
        "b/murmur__103_1305031931979_D1",
        "b/normal__150_1306776721273_B",
        "b/normal__160_1306776721273_B",
    ]
    parts = {"train": train[:2], "validation": train[2:], "test": ["b/normal__999_1305031931979_A"]}
    content = {part: [{"recording_id": r} for r in ids] for part, ids in parts.items()}
    (tmp_path / "splits.json").write_text(json.dumps({"parts": content}))
    return tmp_path / "labels.csv", tmp_path / "answers.csv", tmp_path


def test_leak_aware_scores_and_subject_lookup(tmp_path):
    labels, answers, run = _small_case(tmp_path)
    result = score_pascal(labels, answers, ("b",), train_manifests=[run])
    blocks = result["sets"]["b"]
    assert blocks["all"]["n"] == 3 and blocks["all"]["accuracy"] == pytest.approx(1 / 3)
    assert blocks["unseen_groups"]["n"] == 1 and blocks["unseen_groups"]["accuracy"] == 0
    # The person's other recordings answer the first two; the stranger gets the commonest class.
    assert blocks["subject_lookup"]["found"] == 2
    assert blocks["subject_lookup"]["accuracy"] == pytest.approx(2 / 3)
    assert any("2 of 3 recordings come from" in note for note in result["notes"])
    assert "no-audio baseline" in format_challenge_scores(result)


def test_simulator_is_known_by_its_time_stamps(tmp_path):
    assert is_simulator_key("a", "201108222234") and is_simulator_key("a", "201108011111")
    assert not is_simulator_key("a", "201108011119") and not is_simulator_key("a", "20110501548")
    (tmp_path / "labels.csv").write_text(
        "file,label\n201108222234.aiff,murmur\n201106010807.aiff,artifact\n"
    )
    (tmp_path / "answers.csv").write_text(
        "file,prediction\n201108222234.wav,normal\n201106010807.wav,artifact\n"
    )
    blocks = score_pascal(tmp_path / "labels.csv", tmp_path / "answers.csv", ("a",))["sets"]["a"]
    assert (blocks["all"]["n"], blocks["without_simulator"]["n"]) == (2, 1)
    assert blocks["without_simulator"]["accuracy"] == 1


def test_manifest_errors(tmp_path):
    (tmp_path / "list.csv").write_text("file\nBunlabelledtest__101_1305030823364_A.wav\n")
    with pytest.raises(UserError, match="names no training recording"):
        read_manifest(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("file\nheart.wav\n")
    with pytest.raises(UserError, match="'heart.wav' is not a labelled recording"):
        read_manifest(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("name\nheart.wav\n")
    with pytest.raises(UserError, match="no column recording_id or file"):
        read_manifest(tmp_path / "list.csv")


def test_command_line_prints_and_writes_json(tmp_path, capsys):
    labels, answers, run = _small_case(tmp_path)
    arguments = ["--reference", str(labels), "--predictions", str(answers), "--set", "b"]
    out = tmp_path / "scores.json"
    assert main(["score-pascal", *arguments, "--json", str(out), "--train-manifest", str(run)]) == 0
    assert "Set B, all test recordings: 3 recordings" in capsys.readouterr().out
    assert json.loads(out.read_text())["sets"]["b"]["all"]["scores"]["discriminant_power"] is None
    assert main(["score-pascal", *arguments[:-1], "a"]) == 2
    assert "error:" in capsys.readouterr().err
