"""Pre-training: features, objectives, and a tiny run from audio files to a loadable backbone."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import ASTModel, AutoFeatureExtractor, AutoModel

from hb_ssl.data.corpora import load_corpus
from hb_ssl.data.log_mel import REFERENCE_RMS, frames_of_window, mel_centres
from hb_ssl.data.spectrogram_augment import LOG_FLOOR, augment
from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.errors import UserError
from hb_ssl.files import read_json
from hb_ssl.models.pcg import pcg_config, pcg_feature_extractor
from hb_ssl.pretraining import run
from hb_ssl.pretraining.card import backbone_card
from hb_ssl.pretraining.checkpoint import read_checkpoint
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.features import PairSampler, load_features
from hb_ssl.pretraining.objectives import (
    PretrainModel,
    agreement_loss,
    block_mask,
    encode,
    masked_contrast_loss,
    murmur_loss,
)
from hb_ssl.pretraining.run import flops_per_pair, learning_rate_at, pretrain
from hb_ssl.pretraining.simulated import EVENTS, frame_events, load_simulated
from hb_ssl.pretraining.windows import Batch, murmur_labels
from tests.integration.helpers import interrupt_pretraining

RATE = 2000
OBJECTIVES = ("agreement", "distillation", "agreement_distillation", "masked_contrast")
FRAMES = frames_of_window(1.0, RATE)


def write_patients(folder: Path, patients: range) -> Path:
    """CirCor-like recordings of beats, two sites a patient; every other one has a murmur."""
    folder.mkdir()
    rows = ["Patient ID,Murmur,Murmur locations,Additional ID"]
    for patient in patients:
        for site in ("AV", "MV"):
            rng = np.random.default_rng([patient, ord(site[0])])
            time = np.arange(int(2.5 * RATE)) / RATE
            beats = np.sin(2 * np.pi * (40 + 10 * patient) * time) * (time % 0.8 < 0.1)
            samples = 0.3 * beats + 0.01 * rng.standard_normal(len(time))
            sf.write(folder / f"{patient}_{site}.wav", samples, RATE)
        rows.append(f"{patient},{'Present' if patient % 4 < 2 else 'Absent'},AV+MV,")
    (folder / "training_data.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight CirCor-like recordings of beats, four patients with two sites each."""
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path / "cache"))
    return write_patients(tmp_path / "beats", range(4))


def tiny(recordings: Path, output: Path, **changes) -> PretrainConfig:
    settings = {
        "corpora": [str(recordings)], "output_dir": str(output), "held_out_fraction": 0.0,
        "window_seconds": 1.0, "num_mel_bins": 8, "hidden_size": 16, "num_layers": 2,
        "num_heads": 2, "steps": 4, "batch_pairs": 4, "log_steps": 1, "eval_steps": 2,
        "mixed_precision": "no", "peak_tflops": 1.0,
    }  # fmt: skip
    return PretrainConfig(**{**settings, **changes})


def tiny_model(objective: str) -> PretrainModel:
    torch.manual_seed(0)
    backbone = ASTModel(pcg_config(FRAMES, 8, 16, 2, 2))
    return PretrainModel(backbone, objective, 0.5, 0.1, 1.0)


def test_features_equal_the_stock_extractor(recordings: Path, tmp_path: Path) -> None:
    corpus = load_corpus([recordings], RATE, tmp_path / "cache")
    features = load_features(corpus, 8, tmp_path / "cache")
    start, frames = 37, FRAMES
    window = corpus.waveform(2)[start * 20 : start * 20 + RATE]
    # The window is scaled to a fixed level by the mean power of its 10 ms hops.
    window = window * (REFERENCE_RMS / np.sqrt(np.mean(window[: frames * 20] ** 2)))
    extractor = pcg_feature_extractor(frames, 8, RATE, -7.0, 3.0)
    stock = extractor(window, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    ours = extractor.normalize(features.window(2, start, frames))
    np.testing.assert_allclose(ours, stock, atol=0.003)  # float16 cache
    np.testing.assert_allclose(
        features.stretched_window(2, start, frames, 1.0), features.window(2, start, frames)
    )


def test_stretching_changes_the_tempo(recordings: Path, tmp_path: Path) -> None:
    corpus = load_corpus([recordings], RATE, tmp_path / "cache")
    features = load_features(corpus, 8, tmp_path / "cache")
    doubled = features.stretched_window(0, 0, 50, 2.0)
    plain = features.window(0, 0, 100)[::2]
    # Up to the level, which is that of the frames each of them touches.
    np.testing.assert_allclose(np.ptp(doubled - plain), 0, atol=0.02)


def test_sampler_pairs_recordings_of_distinct_subjects(recordings: Path, tmp_path: Path) -> None:
    corpus = load_corpus([recordings], RATE, tmp_path / "cache")
    features = load_features(corpus, 8, tmp_path / "cache")
    subjects = [r.subject for r in corpus.recordings]
    murmurs = np.array([int(str(subject)[-1]) for subject in subjects])
    sampler = PairSampler(features, range(8), subjects, murmurs, 98, 0.0, seed=0)
    assert sampler.batch(0, 99).views.shape[:2] == (2, 4)  # four patients: no more than that
    pairs, again, other = (sampler.batch(step, 4) for step in (3, 3, 4))
    torch.testing.assert_close(pairs.views, again.views)
    assert not torch.equal(pairs.views, other.views)
    assert len(set(pairs.subjects)) == 4
    assert [f"circor2022/{murmur}" for murmur in pairs.murmur] == pairs.subjects


def test_mel_centres_are_where_tones_peak() -> None:
    extractor = pcg_feature_extractor(98, 20, RATE, 0.0, 0.5)
    centres = mel_centres(20, RATE)
    for bin_ in (4, 10, 17):
        tone = np.sin(2 * np.pi * centres[bin_] * np.arange(RATE) / RATE).astype(np.float32)
        values = extractor(tone, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        assert abs(int(values.mean(axis=0).argmax()) - bin_) <= 1


def test_masks_split_the_tokens() -> None:
    kept, hidden = block_mask(3, 19, 0.4, torch.Generator().manual_seed(0))
    assert kept.shape == (3, 8)
    for row in torch.cat([kept, hidden], dim=1):
        assert sorted(row.tolist()) == list(range(19))
    assert not torch.equal(kept[0], kept[1])


def test_encode_equals_the_stock_model() -> None:
    backbone = tiny_model("agreement").backbone.eval()
    inputs = torch.randn(3, FRAMES, 8)
    with torch.no_grad():
        stock = backbone(inputs, output_hidden_states=True)
        states = encode(backbone, inputs)
    torch.testing.assert_close(states[-1], stock.last_hidden_state)
    torch.testing.assert_close(states[0], stock.hidden_states[0])


def test_hidden_tokens_can_not_be_seen() -> None:
    backbone = tiny_model("agreement").backbone
    inputs = torch.randn(1, FRAMES, 8)
    other = inputs.clone()
    other[:, 40:] = 9.0
    kept = torch.tensor([[0, 1, 2]])  # tokens of 8 frames every 5: frames 0 to 17
    torch.testing.assert_close(
        encode(backbone, inputs, kept)[-1], encode(backbone, other, kept)[-1]
    )


def test_losses_prefer_the_right_partner() -> None:
    torch.manual_seed(0)
    first = torch.randn(8, 16)
    second = first + 0.1 * torch.randn(8, 16)
    assert agreement_loss(first, second, 0.1) < 0.1 < agreement_loss(first, second.roll(1, 0), 0.1)
    a, b = first.view(2, 4, 16), second.view(2, 4, 16)
    assert masked_contrast_loss(a, b, 0.1) < 0.1 < masked_contrast_loss(a, b.roll(1, 1), 0.1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_weight_is_trained(objective: str) -> None:
    torch.manual_seed(0)
    backbone = ASTModel(pcg_config(FRAMES, 8, 16, 2, 2))
    model = PretrainModel(
        backbone, objective, 0.5, 0.1, 1.0, simulated_weight=1.0, murmur_weight=1.0
    )
    rng = torch.Generator().manual_seed(0)
    batch = Batch(
        views=torch.randn(2, 4, FRAMES, 8),
        clean=torch.randn(4, FRAMES, 8),
        murmur=torch.tensor([1, 0, -1, 0]),
        simulated=torch.randn(3, FRAMES, 8),
        events=torch.rand(3, FRAMES, len(EVENTS)).round(),
        finding=torch.tensor([0, 2, 4]),
    )
    parts = model(batch, rng)
    assert {"murmur", "events", "finding"} < set(parts)
    parts["loss"].backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained
    assert not any(name.startswith("teacher") for name in trained)


def test_murmur_loss_weighs_classes_equally_and_skips_the_unknown() -> None:
    logits = torch.tensor([2.0, -1.0, -1.0, 50.0])
    labels = torch.tensor([1, 0, 0, -1])
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert murmur_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert murmur_loss(logits, torch.full((4,), -1)).item() == 0.0


def test_events_stand_where_the_simulator_put_them() -> None:
    rng = np.random.default_rng(3)
    waveform, truth = simulate_recording("murmur", 4.0, RATE, rng, "stethoscope", snr_db=25.0)
    events = frame_events(truth, 398)
    assert truth.heartbeats is not None and truth.murmur is not None
    for name, onsets in (("s1", truth.heartbeats.s1_seconds), ("s2", truth.heartbeats.s2_seconds)):
        column = events[:, EVENTS.index(name)]
        starts = np.flatnonzero(np.diff(column.astype(int), prepend=0) == 1)
        np.testing.assert_allclose(starts / 100, onsets[: len(starts)], atol=0.006)
        # The recording is loud where a heart sound is said to be.
        energy = np.add.reduceat(waveform[: 398 * 20] ** 2, np.arange(0, 398 * 20, 20))
        assert energy[column].mean() > energy.mean()
    timing = f"{truth.murmur.timing}_murmur"
    assert events[:, EVENTS.index(timing)].mean() > 0.1
    other = {"systolic_murmur", "diastolic_murmur"} - {timing}
    assert not events[:, EVENTS.index(other.pop())].any()
    _, artifact = simulate_recording("artifact", 4.0, RATE, rng, "phone")
    assert not frame_events(artifact, 398).any()


def test_simulated_corpus_is_kept_and_cut(tmp_path: Path) -> None:
    corpora = [load_simulated(10, 2.0, RATE, 8, 0, tmp_path) for _ in range(2)]
    batches = [c.batch(6, FRAMES, np.random.default_rng(1)) for c in corpora]
    for first, second in zip(*batches, strict=True):
        torch.testing.assert_close(first, second)
    windows, events, finding = batches[0]
    assert windows.shape == (6, FRAMES, 8)
    assert events.shape == (6, FRAMES, len(EVENTS))
    assert sorted(corpora[0].findings) == sorted([0, 1, 2, 3, 4] * 2)
    assert finding.max() < 5


def test_murmur_labels_name_sites_where_it_is_heard(recordings: Path, tmp_path: Path) -> None:
    table = recordings / "training_data.csv"
    table.write_text(table.read_text().replace("1,Present,AV+MV", "1,Present,MV"))
    corpus = load_corpus([recordings], RATE, tmp_path / "cache")
    labels = dict(
        zip([r.recording_id for r in corpus.recordings], murmur_labels(corpus, [str(recordings)]))
    )
    assert labels == {
        "beats/0_AV": 1, "beats/0_MV": 1, "beats/1_AV": -1, "beats/1_MV": 1,
        "beats/2_AV": 0, "beats/2_MV": 0, "beats/3_AV": 0, "beats/3_MV": 0,
    }  # fmt: skip


def test_people_and_murmurs_do_not_depend_on_names_of_folders(
    recordings: Path, tmp_path: Path
) -> None:
    other = tmp_path / "the-circor-1.0.3"
    shutil.copytree(recordings, other / "training_data")
    (other / "training_data/training_data.csv").rename(other / "training_data.csv")
    known = []
    for folder in (recordings, other / "training_data"):
        corpus = load_corpus([folder], RATE, tmp_path / "cache")
        murmurs = murmur_labels(corpus, [str(folder)])
        known.append([(r.subject, murmur) for r, murmur in zip(corpus.recordings, murmurs)])
    assert known[0] == known[1]
    assert {murmur for _, murmur in known[0]} == {0, 1}


def test_a_run_with_simulated_truth_and_murmurs(recordings: Path, tmp_path: Path) -> None:
    config = tiny(
        recordings, tmp_path / "run", simulated_weight=1.0, murmur_weight=1.0, num_simulated=10,
        simulated_batch=4, peak_tflops=0.0,
    )  # fmt: skip
    last = read_json(pretrain(config) / "history.json")[-1]
    assert {"train_events", "train_finding", "train_murmur"} < set(last)
    assert 0 <= last["mfu"] < 1  # of a peak that was measured


def test_teacher_follows_the_student() -> None:
    model = tiny_model("distillation")
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(1.0)
    model.update_teacher(0.75)
    student, teacher = model.backbone.embeddings.cls_token, model.teacher.embeddings.cls_token
    torch.testing.assert_close(student - teacher, torch.full_like(student, 0.75))


def test_augmentation_is_reproducible_and_changes_spectrum_and_level() -> None:
    centres = torch.from_numpy(mel_centres(20, RATE)).float()
    clean = torch.randn(64, 98, 20) - 8
    kept = clean.clone()
    made = [augment(clean, centres, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    torch.testing.assert_close(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    torch.testing.assert_close(clean, kept)
    assert made[0].isfinite().all()
    assert made[0].min() >= LOG_FLOOR
    change = (made[0] - clean).mean(dim=1)
    assert change.mean(dim=1).std() > 1  # gain
    assert (change[:, 0] - change[:, -1]).std() > 1  # tilt


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_writes_a_backbone_that_loads(
    recordings: Path, tmp_path: Path, objective: str
) -> None:
    folder = pretrain(tiny(recordings, tmp_path / "run", objective=objective))
    model = AutoModel.from_pretrained(folder / "backbone")
    extractor = AutoFeatureExtractor.from_pretrained(folder / "backbone")
    assert type(model).__name__ == "ASTModel"
    assert model.dtype == torch.float32
    waveform = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    inputs = extractor(waveform, sampling_rate=RATE, return_tensors="pt")
    hidden = model(**inputs).last_hidden_state
    assert hidden.shape[2] == 16
    assert hidden.isfinite().all()
    history = read_json(folder / "history.json")
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4]
    assert history[-1]["windows_per_second"] > 0
    # the peak of tiny() is 1 TFLOP/s
    assert history[-1]["mfu"] == pytest.approx(history[-1]["model_gflops"] / 1000, abs=1e-4)
    result = read_json(folder / "metrics.json")
    assert result["windows_seen"] == 2 * 4 * 4
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    card = (folder / "backbone" / "README.md").read_text()
    assert result["corpus_sha256"] in card
    assert "No PASCAL recording" not in card  # nobody knows what `beats` holds
    assert "CirCor patients" not in card  # none was held out
    assert "8 recordings trained on" in card and "beats: 8 recordings" in card
    known = {**result["config"], "corpora": ["/data/circor2022"]}
    assert "No PASCAL recording" in backbone_card({**result, "config": known}, RATE)
    known["probe_pascal"] = "pascal"
    assert "were probed" in backbone_card({**result, "config": known}, RATE)
    assert (folder / "backbone" / "loss_curve.png").stat().st_size > 1000


def test_training_lowers_the_loss(recordings: Path, tmp_path: Path) -> None:
    config = tiny(recordings, tmp_path / "run", steps=40, eval_steps=40, log_steps=10)
    folder = pretrain(config)
    losses = [row["train_loss"] for row in read_json(folder / "history.json")[1:]]
    assert losses[-1] < losses[0]


def test_a_resumed_run_equals_an_unbroken_one(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {"objective": "agreement_distillation"}
    whole = pretrain(tiny(recordings, tmp_path / "whole", **objective))
    interrupt_pretraining(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(recordings, tmp_path / "broken", **objective))
    resumed = pretrain(tiny(recordings, tmp_path / "broken", resume=True, **objective))
    states = [read_checkpoint(f) for f in (whole, resumed)]
    assert states[0] is not None and states[1] is not None
    assert states[0]["step"] == states[1]["step"] == 4
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], rtol=0, atol=0)
    assert [row["step"] for row in states[1]["history"]] == [0, 1, 2, 3, 4]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    recordings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = pretrain(tiny(recordings, tmp_path / "whole", steps=6))
    kept = run.make_batch

    def interrupted(data, sampler, config, step, *others):
        if step == 5:
            raise KeyboardInterrupt
        return kept(data, sampler, config, step, *others)

    monkeypatch.setattr(run, "make_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(recordings, tmp_path / "broken", steps=6))
    monkeypatch.undo()
    newest, before = (tmp_path / f"broken/checkpoints/checkpoint-{n}/state.pt" for n in (4, 2))
    content = before.read_bytes()
    newest.write_bytes(newest.read_bytes()[:-1000])
    before.write_bytes(content[:200])
    with pytest.raises(UserError, match="damaged since it was written.* no earlier checkpoint"):
        pretrain(tiny(recordings, tmp_path / "broken", steps=6, resume=True))
    before.write_bytes(content)
    resumed = pretrain(tiny(recordings, tmp_path / "broken", steps=6, resume=True))
    assert "going on from checkpoint-2" in caplog.text
    states = [read_checkpoint(f) for f in (whole, resumed)]
    assert states[0] is not None and states[1] is not None
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def test_a_run_killed_behind_its_last_step_still_gets_its_backbone(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(tiny(recordings, tmp_path / "whole"))
    for name in ("save_backbone", "save_checkpoint", "write_json_atomic"):
        folder = tmp_path / name
        original, calls = getattr(run, name), itertools.count(1)

        def last_time(*arguments, original=original, calls=calls):
            if next(calls) == 2:  # evaluated twice: this is behind the last step
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(run, name, last_time)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny(recordings, folder))
        monkeypatch.undo()
        pretrain(tiny(recordings, folder, resume=True))
        for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
            assert (folder / "backbone" / file).read_bytes() == (
                whole / "backbone" / file
            ).read_bytes()
        steps = [row["step"] for row in read_json(folder / "history.json")]
        assert steps == [0, 1, 2, 3, 4]


def test_held_out_subjects_give_the_validation_loss(recordings: Path, tmp_path: Path) -> None:
    seen: list[set[int]] = []
    original = run.PretrainData.sampler

    def watched(self, indices, *arguments):
        seen.append(set(indices))
        return original(self, indices, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.PretrainData, "sampler", watched)
        folder = pretrain(tiny(recordings, tmp_path / "run", held_out_fraction=0.5))
    result = read_json(folder / "metrics.json")["recordings"]
    assert result["train"] + result["held_out"] == 8
    train, held_out = seen[0], set(range(8)) - seen[0]
    assert held_out and all(part in (train, held_out) for part in seen)


def test_learning_rate_and_cost(recordings: Path, tmp_path: Path) -> None:
    config = tiny(recordings, tmp_path, steps=100, warmup_fraction=0.1, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[-1] < 0.001
    # 12 * 2 layers * 16**2 weights, 2 windows, 40 % of 10 tokens, 6 operations
    assert flops_per_pair(tiny(recordings, tmp_path), 10) == pytest.approx(6144 * 6 * 8)
    # and 8 whole simulated windows a step of 4 pairs
    simulated = tiny(recordings, tmp_path, simulated_weight=1.0, simulated_batch=8)
    assert flops_per_pair(simulated, 10) == pytest.approx(6144 * 6 * (8 + 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpora": []}, "corpora is empty"),
        ({"keep_fraction": 1.0}, "keep_fraction"),
        ({"batch_pairs": 1}, "at least 2"),
        ({"steps": 0}, "above 0"),
        ({"data_fraction": 1.5}, "at most 1"),
    ],
)
def test_bad_settings(recordings: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(recordings, tmp_path, **changes)


def test_probe_data_can_not_be_trained_on(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="also a corpus"):
        tiny(recordings, tmp_path, probe_pascal=str(recordings))
    with pytest.raises(UserError, match="lies in one"):
        tiny(recordings, tmp_path, probe_pascal=str(recordings / "set_a"))
    with pytest.raises(UserError, match="held_out_fraction"):
        tiny(recordings, tmp_path, held_out_fraction=7.0)
