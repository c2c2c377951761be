"""Unlabelled corpora: decoded once, split by subject, read as windows."""

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hb_ssl.data import corpora
from hb_ssl.data.corpora import (
    Corpus,
    CorpusRecording,
    circor_subjects,
    is_held_out,
    load_corpus,
    split_corpus,
    take_share,
)
from hb_ssl.errors import UserError

RATE = 2000


def write(path: Path, seconds: float = 1.0, seed: int = 0, rate: int = RATE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.random.default_rng(seed).standard_normal(int(seconds * rate))
    samples = np.clip(samples, -1, 1).astype(np.float32)
    sf.write(path, samples, rate, subtype="PCM_16")
    return samples


@pytest.fixture
def circor(tmp_path: Path) -> Path:
    """Patients 1 and 3 are one person (through 2, who has no recordings), 4 is another."""
    folder = tmp_path / "circor"
    for seed, name in enumerate(("1_AV", "1_MV_2", "3_PV", "4_TV")):
        write(folder / "audio" / f"{name}.wav", seed=seed)
    (folder / "training_data.csv").write_text(
        "Patient ID,Murmur,Additional ID\n1,Absent,2.0\n3,Absent,2.0\n4,Present,\n"
    )
    return folder


def test_waveforms_survive_the_cache(tmp_path: Path) -> None:
    files = [tmp_path / "c" / "a.wav", tmp_path / "c" / "deep" / "b.flac"]
    write(files[0], seed=1)
    write(files[1], seconds=0.5, seed=2)
    corpus = load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    assert [r.recording_id for r in corpus.recordings] == ["c/a", "c/deep/b"]
    for index, path in enumerate(files):
        np.testing.assert_array_equal(corpus.waveform(index), sf.read(path, dtype="float32")[0])
    assert corpus.hours == pytest.approx(1.5 / 3600)


def test_resamples_to_the_corpus_rate(tmp_path: Path) -> None:
    write(tmp_path / "c" / "a.wav", rate=8000)
    corpus = load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    assert corpus.recordings[0].num_samples == RATE


def test_decodes_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "c" / "a.wav")
    decoded: list[Path] = []
    original = corpora.load_audio

    def counting(path, rate):
        decoded.append(path)
        return original(path, rate)

    monkeypatch.setattr(corpora, "load_audio", counting)
    before = load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    assert len(decoded) == 1
    write(tmp_path / "c" / "a.wav", seconds=2.0, seed=5)
    after = load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    assert len(decoded) == 2
    assert after.recordings[0].num_samples == 2 * RATE
    assert after.content_hash != before.content_hash


def test_an_interrupted_decode_is_not_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "c" / "a.wav")
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "write_json_atomic", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    assert len(load_corpus([tmp_path / "c"], RATE, tmp_path / "cache").recordings) == 1


def test_a_broken_file_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "c" / "good.wav")
    (tmp_path / "c" / "broken.wav").write_bytes(b"RIFF nothing")
    with caplog.at_level(logging.WARNING):
        corpus = load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    assert [r.recording_id for r in corpus.recordings] == ["c/good"]
    assert "broken.wav" in caplog.text


def test_unusable_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no audio"):
        load_corpus([tmp_path / "empty"], RATE, tmp_path / "cache")
    with pytest.raises(UserError, match="no such"):
        load_corpus([tmp_path / "absent"], RATE, tmp_path / "cache")
    for parent in ("x", "y"):
        write(tmp_path / parent / "same" / "a.wav")
    with pytest.raises(UserError, match="share their last name"):
        load_corpus([tmp_path / "x/same", tmp_path / "y/same"], RATE, tmp_path / "cache")


def test_a_person_enrolled_twice_is_one_subject(circor: Path, tmp_path: Path) -> None:
    subjects = circor_subjects(circor / "training_data.csv")
    assert subjects["1"] == subjects["3"] != subjects["4"]
    corpus = load_corpus([circor], RATE, tmp_path / "cache")
    by_name = {r.recording_id.split("/")[-1]: r.subject for r in corpus.recordings}
    assert by_name["1_AV"] == by_name["1_MV_2"] == by_name["3_PV"] == "circor2022/1"
    assert by_name["4_TV"] == "circor2022/4"


def test_subjects_are_unknown_without_a_table(tmp_path: Path) -> None:
    write(tmp_path / "c" / "1_AV.wav")
    assert load_corpus([tmp_path / "c"], RATE, tmp_path / "cache").recordings[0].subject is None


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7])
def test_the_split_never_parts_a_subject(circor: Path, tmp_path: Path, fraction: float) -> None:
    corpus = load_corpus([circor], RATE, tmp_path / "cache")
    train, held_out = split_corpus(corpus, fraction)
    assert sorted(train + held_out) == list(range(len(corpus.recordings)))
    sides = [{corpus.recordings[i].subject for i in part} for part in (train, held_out)]
    assert not sides[0] & sides[1]
    if fraction == 0:
        assert not held_out


def test_a_share_takes_whole_subjects_and_lies_within_a_larger_one() -> None:
    recordings = tuple(
        CorpusRecording(f"circor/{number}_{site}", f"circor/{number}", 0, RATE)
        for number in range(400)
        for site in ("AV", "MV")
    )
    corpus = Corpus(np.zeros(0, dtype=np.int16), recordings, RATE, "")
    everything = list(range(len(recordings)))
    quarter, half = (take_share(corpus, everything, fraction) for fraction in (0.25, 0.5))
    assert take_share(corpus, everything, 1.0) == everything
    assert set(quarter) < set(half)
    assert 0.2 < len(quarter) / len(recordings) < 0.3
    subjects = [recordings[i].subject for i in quarter]
    assert all(subjects.count(subject) == 2 for subject in subjects)
    # Independent of the choice of held-out subjects: it holds out as many inside as outside.
    train, _ = split_corpus(corpus, 0.25)
    assert 0.17 < len(take_share(corpus, train, 0.25)) / len(train) < 0.33


def test_held_out_share_and_stability() -> None:
    subjects = [f"circor/{number}" for number in range(2000)]
    held = [is_held_out(subject, 0.2) for subject in subjects]
    assert 0.17 < np.mean(held) < 0.23
    # A larger share only adds subjects, so claims on the smaller part stay clean.
    assert all(is_held_out(s, 0.3) for s, h in zip(subjects, held) if h)
    assert not is_held_out(None, 0.99)


def test_random_windows_come_from_their_recording(tmp_path: Path) -> None:
    write(tmp_path / "c" / "a.wav", seconds=1.0, seed=1)
    write(tmp_path / "c" / "b.wav", seconds=0.2, seed=2)
    corpus = load_corpus([tmp_path / "c"], RATE, tmp_path / "cache")
    rng = np.random.default_rng(0)
    window = corpus.random_window(0, 500, rng)
    whole = corpus.waveform(0)
    assert any(np.array_equal(window, whole[s : s + 500]) for s in range(len(whole) - 499))
    assert set(corpus.random_window(1, 500, rng)) <= set(corpus.waveform(1))
