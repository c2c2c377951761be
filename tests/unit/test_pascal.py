"""File names, folder layouts and csv checks of the PASCAL recordings; no real data."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from hb_ssl.data.file_names import UnknownName
from hb_ssl.data.inspect import format_inspection, inspect_recordings
from hb_ssl.data.pascal import list_recordings, parse_file_name
from hb_ssl.errors import UserError

# (Kaggle file, the challenge's file) for the same recording; the third column is the content.
PAIRS = [
    ("set_a/normal__201101070538.wav", "Atraining_normal/201101070538.wav"),
    ("set_a/extrahls__201101091153.wav", "Atraining_extrahls/201101091153.wav"),
    ("set_a/artifact__201012172012.wav", "Atraining_artifact/201012172012.wav"),
    ("set_a/Aunlabelledtest__201012172010.wav", "Aunlabelledtest/201012172010.wav"),
    (
        "set_b/normal__103_1305031931979_D1.wav",
        "Btraining_normal/Training B Normal/103_1305031931979_D1.wav",
    ),
    (
        "set_b/normal_noisynormal_125_1306332456645_C.wav",
        "Btraining_normal/Btraining_noisynormal/125_1306332456645_C.wav",
    ),
    (
        "set_b/murmur_noisymurmur_162_1307101835989_B_1.wav",
        "Btraining_murmur/Btraining_noisymurmur/162_1307101835989_B_1.wav",
    ),
    (
        "set_b/extrastole__154_1306935608852_D2.wav",
        "Btraining_extrasystole/Btraining_extrastole/154_1306935608852_D2.wav",
    ),
    # The challenge has the same file name under two classes.
    ("set_b/normal__154_1306935608852_D.wav", "Btraining_normal/154_1306935608852_D.wav"),
    (
        "set_b/Bunlabelledtest__154_1306935608852_D.wav",
        "Bunlabelledtest/154_1306935608852_D.wav",
    ),
]


def write_audio(path: Path, seed: int = 0, num_samples: int = 400) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples)
    kind = "AIFF" if path.suffix.lower().startswith(".aif") else "WAV"
    sf.write(path, noise, 4000, subtype="PCM_16", format=kind)
    return path


def write_csv(path: Path, columns: str, rows: list[str]) -> None:
    path.write_text("\n".join([columns, *rows]) + "\n")


def layouts(folder: Path) -> tuple[Path, Path]:
    for seed, (kaggle, challenge) in enumerate(PAIRS):
        write_audio(folder / "kaggle" / kaggle, seed)
        write_audio(folder / "challenge" / challenge, seed)
    return folder / "kaggle", folder / "challenge"


def test_both_layouts_give_the_same_recordings(tmp_path):
    kaggle, challenge = map(list_recordings, layouts(tmp_path))
    assert [r.recording_id for r in kaggle.recordings] == sorted(
        f"{k[4]}/{Path(k).stem}" for k, _ in PAIRS
    )
    assert [replace(r, path="") for r in kaggle.recordings] == [
        replace(r, path="") for r in challenge.recordings
    ]
    assert not kaggle.synthetic


def test_facts_of_a_recording(tmp_path):
    path = write_audio(tmp_path / "set_b" / "normal_noisynormal_125_1306332456645_C2.WAV")
    [recording] = list_recordings(tmp_path).recordings
    assert recording.recording_id == "b/normal_noisynormal_125_1306332456645_C2"
    assert (recording.raw_label, recording.noisy) == ("normal", True)
    assert (recording.subject, recording.site) == ("125", "C2")
    assert recording.timestamp == 1306332456.645
    assert (recording.sampling_rate, recording.num_samples) == (4000, 400)
    assert recording.path == str(path)
    assert recording.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal__201101070538.wav", datetime(2011, 1, 7, 5, 38, tzinfo=UTC)),
        ("normal__20110107053859.wav", datetime(2011, 1, 7, 5, 38, 59, tzinfo=UTC)),
        ("Aunlabelledtest__20110501548.wav", None),  # a digit is missing: not guessed at
        ("Aunlabelledtest__2011040239.wav", None),
        ("normal__201113070538.wav", None),
    ],
)
def test_set_a_time_stamps(name, expected):
    parsed = parse_file_name(name)
    assert parsed.set == "a"
    assert parsed.stem == Path(name).stem
    assert parsed.timestamp == (expected.timestamp() if expected else None)


@given(
    kind=st.sampled_from(
        [
            "normal__",
            "murmur__",
            "extrastole__",
            "normal_noisynormal_",
            "murmur_noisymurmur_",
            "Bunlabelledtest__",
        ]
    ),
    subject=st.integers(1, 999),
    stamp=st.integers(10**12, 10**13 - 1),
    site=st.sampled_from("ABCDEF"),
    take=st.sampled_from(["", "1", "12", "_1"]),
    ending=st.sampled_from([".wav", ".WAV", ".aif", ".AIFF"]),
)
def test_set_b_names_survive_both_forms(kind, subject, stamp, site, take, ending):
    stem = f"{kind}{subject}_{stamp}_{site}{take}"
    parsed = parse_file_name(stem + ending, ("set_b",))
    assert (parsed.stem, parsed.set, parsed.subject) == (stem, "b", str(subject))
    assert parsed.site == site + take.strip("_")
    assert parsed.timestamp == stamp / 1000
    label, _, noisy = kind.rstrip("_").partition("_")
    assert parsed.label == (None if label == "Bunlabelledtest" else label)
    assert parsed.noisy == bool(noisy)
    # the csv's spelling, and the challenge's folders
    if parsed.label is None:
        folders, in_csv = ("Bunlabelledtest",), f"Bunlabelledtest_{stem[len(kind) :]}"
    else:
        folders = (f"Btraining_{label}", f"Btraining_{noisy or label}")
        in_csv = "_".join([*(folders if noisy else folders[:1]), stem[len(kind) :]])
    assert parse_file_name(stem[len(kind) :] + ending, folders) == parsed
    assert parse_file_name(in_csv + ending) == parsed


def test_the_folder_that_the_challenges_zip_really_holds():
    parsed = parse_file_name("103_1305031931979_D1.wav", ("Training B Normal",))
    assert parsed.stem == "normal__103_1305031931979_D1"


@given(st.text("abAB_-. 0123456789/\nnormaluté", max_size=60))
def test_any_other_name_is_refused_in_one_way(name):
    try:
        parsed = parse_file_name(name)
    except UserError:
        return
    assert parsed.stem.endswith(Path(name).stem.lstrip("_")[-8:])


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("Atraining_murmur/normal__201101070538.wav", "murmur and normal"),
        ("Btraining_murmur/Btraining_noisynormal/1_1306332456645_C.wav", "murmur and normal"),
        ("Atraining_normal/Aunlabelledtest__201101070538.wav", "normal and unlabelled"),
        ("set_a/normal__103_1305031931979_D1.wav", "set B but the name or folder says set A"),
        ("Btraining_normal/201101070538.wav", "set A but the name or folder says set B"),
    ],
)
def test_contradictions_are_errors_that_name_the_file(tmp_path, inside, says):
    write_audio(tmp_path / inside)
    with pytest.raises(UserError, match=says) as caught:
        list_recordings(tmp_path)
    assert not isinstance(caught.value, UnknownName)
    assert inside in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inside",
    ["song.wav", "set_a/201101070538.wav", "set_a/extrastole__201101070538.wav", "normal_1_2.wav"],
)
def test_unknown_names_are_left_out_and_said(tmp_path, inside):
    write_audio(tmp_path / inside)
    with pytest.raises(UserError, match=r"no readable recording.*Atraining_normal"):
        list_recordings(tmp_path)
    write_audio(tmp_path / "set_a" / "normal__201101070538.wav")
    found = list_recordings(tmp_path)
    assert [r.recording_id for r in found.recordings] == ["a/normal__201101070538"]
    assert any(Path(inside).name in problem for problem in found.problems)


def test_long_names_do_not_hang():
    with pytest.raises(UnknownName):
        parse_file_name("a_" * 5000 + "!.wav")


def test_junk_broken_files_and_copies(tmp_path):
    good = write_audio(tmp_path / "set_a" / "normal__201101070538.WAV")
    (tmp_path / "set_a" / "._normal__201101070538.wav").write_bytes(b"mac")
    (tmp_path / "__MACOSX" / "set_a").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "set_a" / "murmur__201101070539.wav").write_bytes(b"mac")
    (tmp_path / "set_a" / ".DS_Store").write_bytes(b"mac")
    plain = list_recordings(tmp_path)
    assert not any("mac" in p.lower() or "._" in p or "DS_Store" in p for p in plain.problems)
    (tmp_path / "set_a" / "murmur__201101070540.wav").write_text("<html>not audio</html>")
    (tmp_path / "set_a" / "murmur__201101070541.wav").touch()
    (tmp_path / "set_a" / "notes.txt").write_text("hello")
    copy = tmp_path / "more" / "Atraining_normal" / "201101070538.wav"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(good.read_bytes())
    found = list_recordings(tmp_path)
    assert len(found.recordings) == 1
    for part in ("201101070540", "201101070541", "notes.txt", "copy of"):
        assert sum(part in problem for problem in found.problems) == 1, part


def test_aiff_copy_is_left_out_but_a_different_file_is_an_error(tmp_path):
    write_audio(tmp_path / "Atraining_normal" / "201101070538.aiff")
    write_audio(tmp_path / "Atraining_normal" / "201101070538.wav")
    found = list_recordings(tmp_path)
    assert len(found.recordings) == 1
    assert any("copy of" in problem for problem in found.problems)
    write_audio(tmp_path / "set_a" / "normal__201101070538.wav", num_samples=401)
    with pytest.raises(UserError, match=r"has the id a/normal__201101070538 of"):
        list_recordings(tmp_path)


def test_half_the_data_set_works_and_says_what_is_missing(tmp_path):
    write_audio(tmp_path / "Atraining_normal" / "201101070538.aif")
    found = list_recordings(tmp_path / "Atraining_normal")  # the class folder itself
    assert [r.raw_label for r in found.recordings] == ["normal"]
    text = "\n".join(found.problems)
    assert "set B is missing: none of its 656 files" in text
    assert "set A normal: 1 files found, 31 in the full data set" in text
    assert "set A unlabelled: 0 files found, 52" in text


def test_many_problems_are_shortened(tmp_path):
    write_audio(tmp_path / "set_a" / "normal__201101070538.wav")
    for number in range(30):
        (tmp_path / "set_a" / f"song{number}.wav").write_text("x")
    problems = list_recordings(tmp_path).problems
    assert sum("song" in problem for problem in problems) == 20
    assert "... and 10 more files left out" in problems


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_recordings(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected Kaggle's folder"):
        list_recordings(tmp_path)


def test_csv_in_the_real_spellings_agrees(tmp_path):
    kaggle, _ = layouts(tmp_path)
    before = list_recordings(kaggle).problems
    write_csv(
        kaggle / "set_a.csv",
        "dataset,fname,label,sublabel",
        [
            "a,set_a/normal__201101070538.wav,normal,",
            "a,set_a/extrahls__201101091153.wav,extrahls,",
            "a,set_a/artifact__201012172012.wav,artifact,",
            "a,set_a/__201012172010.wav,,",
        ],
    )
    write_csv(
        kaggle / "set_b.csv",
        "dataset,fname,label,sublabel",
        [
            "b,set_b/Btraining_normal_103_1305031931979_D1.wav,normal,",
            "b,set_b/Btraining_normal_Btraining_noisynormal_125_1306332456645_C.wav,normal,"
            "noisynormal",
            "b,set_b/Btraining_murmur_Btraining_noisymurmur_162_1307101835989_B_1.wav,murmur,"
            "noisymurmur",
            "b,set_b/Btraining_extrastole_154_1306935608852_D2.wav,extrastole,",
            "b,set_b/Btraining_normal_154_1306935608852_D.wav,normal,",
            "b,set_b/Bunlabelledtest_154_1306935608852_D.wav,,",
        ],
    )
    write_csv(
        kaggle / "set_a_timing.csv",
        "fname,cycle,sound,location",
        ["set_a/normal__201101070538.wav,1,S1,0", "set_a/normal__201101070538.wav,1,S2,399"],
    )
    assert list_recordings(kaggle).problems == before


def test_csv_disagreements_are_named(tmp_path):
    write_audio(tmp_path / "set_a" / "normal__201101070538.wav")
    write_audio(tmp_path / "set_a" / "murmur__201101070539.wav")
    write_audio(tmp_path / "set_a" / "Aunlabelledtest__201101070539.wav")
    write_csv(
        tmp_path / "set_a.csv",
        "dataset,fname,label,sublabel",
        [
            "a,set_a/normal__201101070538.wav,artifact,",
            "a,set_a/normal__209901010000.wav,normal,",
            "a,set_a/normal_209901010000.wav,normal,",
        ],
    )
    write_csv(
        tmp_path / "set_a_timing.csv",
        "fname,cycle,sound,location",
        [
            "set_a/normal__201101070538.wav,1,S1,400",
            "set_a/normal__201101070538.wav,1,S3,10",
            "set_a/normal__209901010000.wav,1,S1,10",
        ],
    )
    found = list_recordings(tmp_path)
    lines = [problem for problem in found.problems if ".csv" in problem]
    assert lines == [
        "set_a.csv: normal_209901010000 has 2 rows",
        "set_a.csv: set_a/normal__201101070538.wav is artifact in the csv but normal by its name, "
        "the name is used",
        "set_a.csv: set_a/normal__209901010000.wav has a row but no file",
        "set_a.csv: set_a/normal_209901010000.wav has a row but no file",
        "set_a.csv: a/murmur__201101070539 has no row",
        "set_a_timing.csv line 2: location '400' is not a sample of a/normal__201101070538 "
        "(400 samples)",
        "set_a_timing.csv line 3: sound 'S3' is not S1 or S2",
        "set_a_timing.csv: set_a/normal__209901010000.wav has rows but no file",
    ]
    assert [r.raw_label for r in found.recordings] == [None, "murmur", "normal"]


@pytest.mark.parametrize("name", ["set_a.csv", "set_b.csv", "set_a_timing.csv"])
@pytest.mark.parametrize("content", [b"id,class\n1,normal\n", b"", b"\xff\xfe\x00bad"])
def test_wrong_csv_is_an_error(tmp_path, name, content):
    write_audio(tmp_path / "set_a" / "normal__201101070538.wav")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        list_recordings(tmp_path)
    assert "\n" not in str(caught.value)


def test_labelled_follows_the_label_mode(tmp_path):
    found = list_recordings(layouts(tmp_path)[0])
    merged = {r.recording_id: label for r, label in found.labelled("merge")}
    assert merged["b/extrastole__154_1306935608852_D2"] == "extrahls"
    assert len(merged) == 8
    assert len(found.labelled("drop")) == 7
    assert {r.set for r, _ in found.labelled("set_a")} == {"a"}
    with pytest.raises(UserError, match="label mode 'both'"):
        found.labelled("both")


def test_synthetic_marker_is_seen_and_shown(tmp_path):
    write_audio(tmp_path / "set_a" / "normal__201101070538.wav")
    (tmp_path / "SYNTHETIC.json").write_text("{}")
    found = list_recordings(tmp_path)
    assert found.synthetic
    assert found.problems == []  # a small synthetic set is not an incomplete real one
    assert format_inspection(inspect_recordings(found)).startswith("SYNTHETIC")


class Pair:
    first, second = "a/artifact__201012172012", "a/normal__201101070538"
    correlation, offset_seconds, shared_seconds = 0.99999, 0.0, 0.1


class OneGroup:
    group, simulator = "everything", True


class SameLabelPair(Pair):
    second = "a/artifact__201012172012"


class UnlabelledPair(Pair):
    second = "a/Aunlabelledtest__201012172010"


def test_inspection_of_unseen_subjects_and_agreeing_duplicates(tmp_path):
    layouts(tmp_path)
    write_audio(tmp_path / "kaggle" / "set_b" / "Bunlabelledtest__900_1306935608852_D.wav")
    found = list_recordings(tmp_path / "kaggle")
    card = inspect_recordings(found, [Pair(), SameLabelPair(), UnlabelledPair()])
    assert card["subjects"]["unlabelled_recordings_of_unseen_subjects"] == 1
    assert [row["labels_disagree"] for row in card["duplicates"]] == [True, False, False]
    assert "groups" not in card


def test_inspection_is_json_and_fits_80_columns(tmp_path, monkeypatch):
    layouts(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = replace(list_recordings("kaggle"), folder="kaggle")
    groups = {r.recording_id: OneGroup() for r in found.recordings}
    card = inspect_recordings(found, [Pair()], groups)
    assert json.loads(json.dumps(card)) == card
    assert (card["num_recordings"], card["num_labelled"]) == (10, 8)
    assert card["subjects"] == {
        "labelled": 4,
        "unlabelled": 1,
        "unlabelled_recordings": 1,
        "unlabelled_recordings_of_unseen_subjects": 0,
    }
    assert card["shortcuts"]["labels_in_one_set"] == {
        "artifact": "a",
        "extrahls": "a",
        "extrastole": "b",
        "murmur": "b",
    }
    # set alone, drop: one of three in set A, three normal of four in set B
    assert card["shortcuts"]["accuracy_of_set_alone"]["drop"] == round(4 / 7, 4)
    assert card["shortcuts"]["subjects_with_several_labels"] == 1  # subject 154
    assert card["duplicates"][0]["labels_disagree"]
    assert card["groups"]["num_groups"] == 1
    assert card["groups"]["simulator_recordings"] == 8
    text = format_inspection(card)
    assert "THE LABELS DISAGREE" in text
    assert max(map(len, text.splitlines())) <= 80
