"""The simulator: what it says is in a recording is in the recording."""

import csv
import dataclasses
import json
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
from scipy.signal import butter, sosfiltfilt, welch

from hb_ssl.data.pascal import list_recordings
from hb_ssl.data.recording import RAW_LABELS
from hb_ssl.data.synthetic import (
    Murmur,
    Subject,
    draw_subject,
    simulate_heartbeats,
    simulate_recording,
)
from hb_ssl.data.synthetic_dataset import (
    GROUPS_PER_CLASS,
    _file_stems,
    _plan_recordings,
    default_synthetic_folder,
    write_synthetic_dataset,
)
from hb_ssl.data.synthetic_heart import SOURCE_RATE
from hb_ssl.data.synthetic_noise import (
    ARTIFACT_KINDS,
    ARTIFACT_RATE,
    simulate_artifact,
    stethoscope_filter,
)
from hb_ssl.data.synthetic_subject import MURMUR_BANDS
from hb_ssl.errors import UserError

RATES = {"phone": 44_100, "stethoscope": 4000}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def calm_subject(label: str = "normal", seed: int = 0, **changes) -> Subject:
    """A subject at 70 beats per minute whose sounds are well apart."""
    return dataclasses.replace(
        draw_subject(label, rng(seed)), **{"heart_rate": 70.0, "s2_ratio": 0.8, **changes}
    )


def energy(waveform: np.ndarray, start: float, end: float, rate: int = SOURCE_RATE) -> float:
    """Mean power from ``start`` to ``end`` seconds."""
    piece = waveform[max(round(start * rate), 0) : round(end * rate)].astype(np.float64)
    return float(np.mean(piece**2))


@pytest.mark.parametrize("device", RATES)
@pytest.mark.parametrize("label", RAW_LABELS)
def test_every_label_and_device_gives_a_clean_array_again_and_again(label, device):
    for noisy in (False, True):
        waveform, truth = simulate_recording(
            label, 3.017, RATES[device], rng(3), device, noisy=noisy
        )
        again, truth_again = simulate_recording(
            label, 3.017, RATES[device], rng(3), device, noisy=noisy
        )
        other, _ = simulate_recording(label, 3.017, RATES[device], rng(4), device, noisy=noisy)
        assert waveform.dtype == np.float32
        assert waveform.shape == (round(3.017 * RATES[device]),)
        assert np.isfinite(waveform).all()
        assert 0.01 < np.abs(waveform).max() <= 1
        np.testing.assert_array_equal(waveform, again)
        assert truth.to_dict() == truth_again.to_dict()
        assert not np.array_equal(waveform, other)
        assert (truth.label, truth.device, truth.noisy) == (label, device, noisy)


@pytest.mark.parametrize("sampling_rate", [1000, 2000, 11_025, 48_000])
def test_any_sampling_rate_gives_the_length_asked_for(sampling_rate):
    for label in ("normal", "artifact"):
        waveform, _ = simulate_recording(label, 2.5, sampling_rate, rng(), "phone")
        assert len(waveform) == round(2.5 * sampling_rate)


@pytest.mark.parametrize("device", RATES)
def test_energy_rises_at_the_true_s1_and_s2_times(device):
    rate = RATES[device]
    for seed in range(4):
        waveform, truth = simulate_recording(
            "normal", 8.0, rate, rng(seed), device, calm_subject(seed=seed), snr_db=25.0
        )
        beats = truth.heartbeats
        for onsets in (beats.s1_seconds, beats.s2_seconds):
            onsets = onsets[(onsets > 0.1) & (onsets < 7.8)]
            assert len(onsets) >= 7
            before = np.median([energy(waveform, t - 0.05, t - 0.003, rate) for t in onsets])
            after = np.median([energy(waveform, t, t + 0.05, rate) for t in onsets])
            assert after > 4 * before


def test_s1_to_s2_is_as_long_as_in_people():
    for seed in range(30):
        subject = draw_subject("normal", rng(seed))
        _, beats = simulate_heartbeats(subject, 10.0, rng(seed))
        s1 = beats.s1_seconds[beats.s1_seconds < beats.s2_seconds[-1]]
        systole = np.array([beats.s2_seconds[beats.s2_seconds > t][0] - t for t in s1])
        assert systole.min() > 0.17 and systole.max() < 0.42
        assert 45 < beats.heart_rate < 150
        diastole = 60 / beats.heart_rate - systole.mean()
        assert diastole > 0.12
    slow, fast = (
        simulate_heartbeats(calm_subject(heart_rate=rate), 10.0, rng())[1] for rate in (55.0, 125.0)
    )
    assert slow.s2_seconds[-1] - slow.s1_seconds[slow.s1_seconds < slow.s2_seconds[-1]][-1] > (
        0.05 + fast.s2_seconds[-1] - fast.s1_seconds[fast.s1_seconds < fast.s2_seconds[-1]][-1]
    )


@pytest.mark.parametrize("device", RATES)
def test_heart_rate_by_autocorrelation_is_the_true_one(device):
    rate = RATES[device]
    for seed in range(8):
        waveform, truth = simulate_recording("normal", 10.0, rate, rng(seed), device, snr_db=20.0)
        envelope = sosfiltfilt(butter(2, 12, fs=rate, output="sos"), np.abs(waveform))
        envelope = envelope[:: rate // 500] - envelope.mean()
        lag_rate = rate / (rate // 500)
        correlation = np.correlate(envelope, envelope, "full")[len(envelope) - 1 :]
        # Within a fifth of the true lag: S1 to S2 alone may correlate as well as S1 to S1.
        true_lag = 60 / truth.heartbeats.heart_rate * lag_rate
        low, high = round(0.8 * true_lag), round(1.2 * true_lag)
        measured = 60 * lag_rate / (low + np.argmax(correlation[low:high]))
        assert measured == pytest.approx(truth.heartbeats.heart_rate, rel=0.03)


def test_breathing_changes_the_heart_rate():
    arrhythmic = calm_subject(rsa=0.06, breathing_rate=0.25, slow_variability=0.0, jitter=0.004)
    _, beats = simulate_heartbeats(arrhythmic, 30.0, rng())
    rr, times = np.diff(beats.s1_seconds), beats.s1_seconds[:-1]
    inspiration = np.sin(2 * np.pi * 0.25 * times + beats.breathing_phase)
    assert np.corrcoef(rr, inspiration)[0, 1] < -0.9  # faster while breathing in


@pytest.mark.parametrize("shape", MURMUR_BANDS)
def test_murmur_is_in_its_phase_and_band(shape):
    low, high = MURMUR_BANDS[shape]
    sick = calm_subject("murmur", murmur=Murmur(shape, 4, low, high))
    healthy = dataclasses.replace(sick, label="normal", murmur=None)
    with_murmur, beats = simulate_heartbeats(sick, 10.0, rng(1))
    without, same = simulate_heartbeats(healthy, 10.0, rng(1))
    np.testing.assert_array_equal(beats.s1_seconds, same.s1_seconds)
    murmur = with_murmur - without  # the chest is linear, so this is the murmur alone
    systolic, diastolic, early, late = [], [], [], []
    for s1, following in pairwise(beats.s1_seconds):
        s2 = beats.s2_seconds[beats.s2_seconds > s1][0]
        systolic.append(energy(murmur, s1 + 0.02, s2))
        diastolic.append(energy(murmur, s2 + 0.03, following - 0.02))
        middle = (s1 + s2) / 2
        if sick.murmur.timing == "diastolic":
            middle = (s2 + following) / 2
            early.append(energy(murmur, s2 + 0.02, middle))
            late.append(energy(murmur, middle, following - 0.06))
        else:
            early.append(energy(murmur, s1 + 0.02, middle - 0.02))
            late.append(energy(murmur, middle, s2))
    if sick.murmur.timing == "systolic":
        assert np.mean(systolic) > 20 * np.mean(diastolic)
    else:
        assert np.mean(diastolic) > 20 * np.mean(systolic)
    if shape == "late_systolic":
        assert np.mean(late) > 10 * np.mean(early)
        assert {kind for _, kind in beats.extra_sounds} == {"click"}
    if shape == "early_diastolic":
        assert np.mean(early) > 3 * np.mean(late)
    if shape == "holosystolic":
        assert 0.5 < np.mean(early) / np.mean(late) < 2
    frequency, power = welch(murmur, SOURCE_RATE, nperseg=2000)
    inside = (frequency > 0.8 * low) & (frequency < 1.2 * high)
    assert power[inside].sum() > 0.8 * power.sum()


def test_murmur_grade_is_its_loudness():
    def loudness(grade):
        sick = calm_subject("murmur", murmur=Murmur("holosystolic", grade, 100, 300))
        healthy = dataclasses.replace(sick, label="normal", murmur=None)
        difference = (
            simulate_heartbeats(sick, 5.0, rng())[0] - simulate_heartbeats(healthy, 5.0, rng())[0]
        )
        return 10 * np.log10(np.mean(difference**2))

    assert np.diff([loudness(grade) for grade in (1, 2, 3, 4, 5)]) == pytest.approx([5.0] * 4)


@pytest.mark.parametrize("kind", ["s3", "s4", "click"])
def test_extra_sounds_are_where_they_are_said_to_be(kind):
    gallop = calm_subject("extrahls", extra_sounds=(kind,), extra_ratio=0.5)
    plain = dataclasses.replace(gallop, label="normal", extra_sounds=())
    with_extra, beats = simulate_heartbeats(gallop, 8.0, rng(2))
    without, same = simulate_heartbeats(plain, 8.0, rng(2))
    assert same.extra_sounds == () and len(beats.extra_sounds) >= 8
    difference = with_extra - without
    for start, name in beats.extra_sounds:
        assert name == kind
        if not 0.2 < start < 7.7:
            continue
        assert energy(difference, start, start + 0.04) > 100 * energy(
            difference, start - 0.1, start - 0.001
        )
        last_s2 = np.max(beats.s2_seconds[beats.s2_seconds < start], initial=-1)
        last_s1 = np.max(beats.s1_seconds[beats.s1_seconds < start], initial=-1)
        next_s1 = np.min(beats.s1_seconds[beats.s1_seconds > start], initial=99)
        assert (last_s1 > last_s2) == (kind == "click")  # a click is systolic, the others not
        if kind == "s3" and last_s2 > 0:
            assert 0.12 < start - last_s2 < 0.18
        if kind == "s4" and next_s1 < 8:
            assert 0.08 < next_s1 - start < 0.14


@pytest.mark.parametrize("duration", [2.0, 4.0, 12.0])
def test_premature_beats_come_early_and_are_followed_by_a_pause(duration):
    for seed in range(15):
        _, truth = simulate_recording("extrastole", duration, 4000, rng(seed), "stethoscope")
        beats = truth.heartbeats
        assert beats.premature_beats
        rr, usual = np.diff(beats.s1_seconds), 60 / beats.heart_rate
        for index in beats.premature_beats:
            if index > 0:
                assert rr[index - 1] < 0.8 * usual
            if index < len(rr):
                assert rr[index] > 1.15 * usual
            if 0 < index < len(rr):  # fully compensatory
                assert rr[index - 1] + rr[index] == pytest.approx(2 * usual, rel=0.2)
    _, truth = simulate_recording("normal", duration, 4000, rng(), "stethoscope")
    assert truth.heartbeats.premature_beats == ()


def test_premature_beats_have_a_weak_second_sound():
    subject = calm_subject("extrastole", premature_rate=0.2)
    waveform, beats = simulate_heartbeats(subject, 30.0, rng())
    weak, usual = [], []
    for i, s1 in enumerate(beats.s1_seconds[:-1]):
        s2 = beats.s2_seconds[beats.s2_seconds > s1][0]
        (weak if i in beats.premature_beats else usual).append(energy(waveform, s2, s2 + 0.05))
    assert np.median(weak) < 0.5 * np.median(usual)


def test_stethoscope_is_narrow_and_phone_is_wide():
    for seed in range(6):
        share = {}
        for device, rate in RATES.items():
            waveform, _ = simulate_recording("normal", 6.0, rate, rng(seed), device, snr_db=20.0)
            frequency, power = welch(waveform, rate, nperseg=rate // 4)
            share[device] = power[frequency > 400].sum() / power.sum()
        assert share["stethoscope"] < 0.01
        assert share["phone"] > share["stethoscope"]


def test_stethoscope_filter_passes_the_band_of_the_real_one():
    noise = rng().standard_normal(40_000)
    frequency, before = welch(noise, 4000, nperseg=2000)
    _, after = welch(stethoscope_filter(noise, 4000), 4000, nperseg=2000)
    gain_db = np.interp([60, 195, 400, 1000], frequency, 10 * np.log10(after / before))
    assert gain_db == pytest.approx([-0.4, -3.1, -7.9, -25.4], abs=0.5)


def test_loud_recordings_are_clipped_at_full_scale():
    peaks = [
        np.abs(simulate_recording("normal", 2.0, 4000, rng(seed), "stethoscope")[0]).max()
        for seed in range(20)
    ]
    assert max(peaks) == 1 and sorted(peaks)[5] < 1


def test_noise_between_the_beats_follows_the_ratio_asked_for():
    def floor(snr_db):
        subject = calm_subject(heart_rate=60.0)
        waveform, truth = simulate_recording(
            "normal", 8.0, 4000, rng(), "stethoscope", subject, snr_db=snr_db
        )
        assert truth.snr_db == snr_db
        beats = truth.heartbeats
        quiet = [energy(waveform, t - 0.15, t - 0.01, 4000) for t in beats.s1_seconds[1:]]
        return np.mean(quiet) / energy(waveform, 0, 8, 4000)

    for snr_db in (5.0, 15.0):  # the floor's share of the whole is 1 / (1 + snr)
        expected = 1 / (1 + 10 ** (snr_db / 10))
        assert expected / 3 < floor(snr_db) < 3 * expected
    noisy = [
        simulate_recording("normal", 2.0, 4000, rng(s), "stethoscope", noisy=True)[1]
        for s in range(9)
    ]
    clean = [simulate_recording("normal", 2.0, 4000, rng(s), "stethoscope")[1] for s in range(9)]
    assert max(t.snr_db for t in noisy) < min(t.snr_db for t in clean)


def test_artifacts_hold_no_heart_and_differ_in_kind():
    _, truth = simulate_recording("artifact", 9.0, 44_100, rng(), "phone")
    assert truth.heartbeats is None and truth.murmur is None and truth.snr_db is None
    assert set(truth.artifact_kinds) <= set(ARTIFACT_KINDS) and truth.artifact_kinds
    centroids = {}
    for kind in ARTIFACT_KINDS:
        waveform = simulate_artifact(kind, 3.0, rng(1))
        assert len(waveform) == 3 * ARTIFACT_RATE and np.isfinite(waveform).all()
        assert np.mean(waveform**2) == pytest.approx(1)
        frequency, power = welch(waveform, ARTIFACT_RATE, nperseg=4096)
        centroids[kind] = (frequency * power).sum() / power.sum()
    assert centroids["wind"] < centroids["speech"] < centroids["hiss"]


def test_recordings_of_a_subject_sound_alike():
    def spectrum(subject, seed):
        waveform, _ = simulate_heartbeats(subject, 8.0, rng(seed))
        power = welch(waveform, SOURCE_RATE, nperseg=800)[1][4:80]
        return np.log(power / power.sum())

    subjects = [draw_subject("normal", rng(seed)) for seed in range(6)]
    first = [spectrum(subject, 100) for subject in subjects]
    second = [spectrum(subject, 200) for subject in subjects]
    distance = np.array([[np.abs(a - b).mean() for b in second] for a in first])
    assert (distance.argmin(axis=1) == np.arange(6)).all()


def test_truth_survives_json():
    for label in RAW_LABELS:
        _, truth = simulate_recording(label, 4.0, 4000, rng(5), "stethoscope")
        content = truth.to_dict()
        assert json.loads(json.dumps(content)) == content
        if label == "murmur":
            assert content["murmur"]["timing"] in ("systolic", "diastolic")


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "tachycardia"},
        {"device": "tape"},
        {"duration_seconds": 0.5},
        {"duration_seconds": float("nan")},
        {"duration_seconds": 1e6},
        {"sampling_rate": 0},
        {"sampling_rate": 4000.5},
        {"snr_db": float("inf")},
        {"label": "artifact", "snr_db": 3.0},
        {"subject": draw_subject("murmur", np.random.default_rng(0))},
    ],
)
def test_bad_arguments_are_named(changes):
    arguments = {
        "label": "normal",
        "duration_seconds": 3.0,
        "sampling_rate": 4000,
        "rng": rng(),
        "device": "stethoscope",
    }
    with pytest.raises(UserError, match="expected"):
        simulate_recording(**{**arguments, **changes})


def test_artifact_has_no_subject():
    with pytest.raises(UserError, match="no heartbeat"):
        draw_subject("artifact", rng())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_synthetic_dataset(tmp_path_factory.mktemp("data") / "synthetic", 24, seed=1)


def test_dataset_is_read_by_the_parser_of_the_real_one(dataset):
    listing = list_recordings(dataset)
    assert listing.problems == [] and listing.synthetic
    assert len(listing.recordings) == 24
    marker = json.loads((dataset / "SYNTHETIC.json").read_text())
    assert marker["seed"] == 1 and marker["num_recordings"] == 24
    assert len(marker["files"]) == 24
    for recording in listing.recordings:
        truth = marker["files"][f"set_{recording.recording_id}.wav"]
        assert recording.sampling_rate == (44_100 if recording.set == "a" else 4000)
        assert sf.info(recording.path).subtype == "PCM_16"
        assert recording.timestamp is not None
        if recording.raw_label is not None:
            assert recording.raw_label == truth["label"]
            assert recording.noisy == truth["noisy"]
        if truth["label"] == "artifact":
            assert recording.duration_seconds == 9.0
        else:
            assert 2 <= recording.duration_seconds <= 12
    assert {(r.set, r.raw_label) for r in listing.recordings} == {
        ("a", "artifact"), ("a", "extrahls"), ("a", "murmur"), ("a", "normal"), ("a", None),
        ("b", "extrastole"), ("b", "murmur"), ("b", "normal"), ("b", None),
    }  # fmt: skip


def test_dataset_tables_name_every_file_once(dataset):
    for set_ in "ab":
        with (dataset / f"set_{set_}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted(row["fname"] for row in rows) == sorted(
            str(path.relative_to(dataset)) for path in (dataset / f"set_{set_}").glob("*.wav")
        )
        for row in rows:
            assert row["label"] == "" or f"/{row['label']}_" in row["fname"]
            assert (row["sublabel"] != "") == ("noisy" in row["fname"])


def test_dataset_is_the_same_for_the_same_seed(dataset, tmp_path):
    again = write_synthetic_dataset(tmp_path / "again", 24, seed=1)
    names = sorted(str(p.relative_to(dataset)) for p in dataset.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(again)) for p in again.rglob("*") if p.is_file())
    for name in names:
        assert (dataset / name).read_bytes() == (again / name).read_bytes()


def test_dataset_is_reused_or_refused(dataset, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*.wav")}
    write_synthetic_dataset(dataset, 24, seed=1)
    assert before == {p: p.stat().st_mtime_ns for p in dataset.rglob("*.wav")}
    with pytest.raises(UserError, match=r"\"seed\": 1.*expected.*\"seed\": 2"):
        write_synthetic_dataset(dataset, 24, seed=2)
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="no synthetic data set"):
        write_synthetic_dataset(tmp_path, 20)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="at least 20"):
        write_synthetic_dataset(tmp_path / "few", 5)
    with pytest.raises(UserError, match="seed -1"):
        write_synthetic_dataset(tmp_path / "negative", 20, seed=-1)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hb_ssl.data.synthetic_dataset.sf.write", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_synthetic_dataset(tmp_path / "data", 20)
    assert list(tmp_path.iterdir()) == []


def test_plan_holds_enough_subjects_and_keeps_them_apart():
    plans = _plan_recordings(160, rng())
    assert len(plans) == 160
    smallest = Counter(p.label + p.set for p in _plan_recordings(20, rng()) if not p.unlabelled)
    assert len(smallest) == 7 and min(smallest.values()) >= 2
    subjects = defaultdict(set)
    for plan in plans:
        if not plan.unlabelled:
            subjects[plan.set, plan.label].add(plan.subject)
    assert len(subjects) == 7
    assert min(len(group) for group in subjects.values()) >= GROUPS_PER_CLASS
    stems = _file_stems(plans, rng())
    assert len(set(stems)) == 160
    sessions = defaultdict(list)
    for plan, stem in zip(plans, stems):
        if plan.set == "a":
            stamp = datetime.strptime(stem.split("__")[1], "%Y%m%d%H%M").replace(tzinfo=UTC)
            sessions[plan.subject].append(stamp)
    spans = sorted((min(stamps), max(stamps)) for stamps in sessions.values())
    assert max(last - first for first, last in spans) <= timedelta(minutes=30)
    for (_, last), (first, _) in pairwise(spans):
        assert first - last > timedelta(minutes=30)


def test_default_folder_is_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path))
    folders = {default_synthetic_folder(0, 160), default_synthetic_folder(1, 160)}
    assert len(folders) == 2
    assert all(f.parent == tmp_path and f.name.startswith("synthetic-") for f in folders)
