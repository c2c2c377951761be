"""Every training option does what it says, on tiny models and a few steps."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hb_ssl.audio import load_audio
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.evaluation.metrics import read_predictions
from hb_ssl.files import read_json
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.training import train

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 4
QUERY = "layers.0.attention.q_proj"


@pytest.fixture(scope="module")
def few_steps(recordings: Path, ast_folder: Path) -> list[str]:
    """A recipe without any randomness but the seed's: AST has no dropout of its own."""
    return [
        "--source", str(recordings), "--backbone", str(ast_folder), "--window_seconds", "1",
        "--hop_seconds", "1", "--max_steps", str(STEPS), "--batch_size", "4", "--tracker", "none",
        "--windows_per_recording", "1", "--lora_dropout", "0", "--learning_rate", "0.003",
        "--warmup_fraction", "0",
    ]  # fmt: skip


def run_of(folder: Path, options: list[str]) -> Path:
    configs = parse_config(
        [DataConfig, ModelConfig, TrainConfig], [*options, "--output_dir", str(folder)]
    )
    return train(*configs)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def largest_difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def assert_complete(run: Path) -> None:
    """Finite scores of every test recording, and a saved model that gives the same answers."""
    rows = read_predictions(run / "predictions.csv")
    metrics = read_json(run / "metrics.json")
    test = read_json(run / "splits.json")["parts"]["test"]
    assert {row["recording_id"] for row in rows} == {row["recording_id"] for row in test}
    assert metrics["run"]["steps"] == STEPS
    assert np.isfinite(metrics["run"]["train_loss"])
    assert not (run / "checkpoints").exists()
    classifier = HeartSoundClassifier.from_pretrained(run)
    source = Path(read_json(run / "data_card.json")["inspection"]["folder"])
    for row in rows[:3]:
        set_, stem = row["recording_id"].split("/")
        answer = classifier.predict_one(load_audio(source / f"set_{set_}" / f"{stem}.wav"))
        for label, probability in answer.probabilities.items():
            assert probability == pytest.approx(row[f"prob_{label}"], abs=2e-2)


@pytest.fixture(scope="module")
def plain(few_steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("recipes") / "plain", few_steps)


def test_plain_run_is_complete_and_repeatable(
    plain: Path, few_steps: list[str], tmp_path: Path
) -> None:
    assert_complete(plain)
    assert largest_difference(plain, run_of(tmp_path / "again", few_steps)) == 0


@pytest.mark.parametrize(
    "extra",
    [
        "--batch_size 2 --gradient_accumulation_steps 2",
        "--gradient_checkpointing",
        "--gradient_checkpointing --adaptation full",
        "--batch_size 1 --gradient_accumulation_steps 4 --adaptation full",
    ],
)
def test_savers_of_memory_change_nothing_else(
    extra: str, plain: Path, few_steps: list[str], tmp_path: Path
) -> None:
    reference = plain
    if "full" in extra:
        reference = run_of(tmp_path / "full", [*few_steps, "--adaptation", "full"])
    run = run_of(tmp_path / "run", [*few_steps, *extra.split()])
    assert_complete(run)
    # AdamW divides by the root of the squared gradient, which magnifies rounding.
    assert largest_difference(reference, run) < 2e-4


@pytest.mark.parametrize(
    "extra",
    [
        "--mixed_precision bf16",
        "--class_balance sampling",
        "--class_balance none",
        "--label_smoothing 0.2",
        "--mixup_alpha 0.4",
        "--spec_augment_time 0.5",
        "--spec_augment_frequency 0.5",
        "--augment_low_pass_hz 100 --augment_probability 0.9",
        "--augment_time_stretch 0.3 --augment_probability 0.9",
        "--augment_probability 0",
        "--augment_shift false",
        "--augment_spectrogram",
        "--pooling attentive",
        "--pooling class_token",
        "--layer_weighted_sum",
        "--use_dora",
        "--use_rslora",
        "--lora_targets q_proj",
        "--scheduler linear",
        "--band_low_hz 25 --band_high_hz 195",
    ],
)
def test_option_takes_effect(extra: str, plain: Path, few_steps: list[str], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [*few_steps, *extra.split()])
    assert_complete(run)
    mine, others = weights(run), weights(plain)
    shared = [name for name in mine if name in others]
    assert len(shared) > 30
    assert any(not torch.equal(mine[name], others[name]) for name in shared)
    assert all(tensor.dtype == torch.float32 for tensor in mine.values())
    assert all(tensor.isfinite().all() for tensor in mine.values())


def test_bf16_stays_near_float32(plain: Path, few_steps: list[str], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [*few_steps, "--mixed_precision", "bf16"])
    exact = read_json(plain / "metrics.json")["run"]["train_loss"]
    rounded = read_json(run / "metrics.json")["run"]["train_loss"]
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


@pytest.mark.parametrize(
    ("extra", "scale"), [([], 16 / 8), (["--use_rslora"], 16 / 8**0.5)], ids=["lora", "rslora"]
)
def test_the_merged_model_is_base_plus_scaled_update(
    extra: list[str], scale: float, few_steps: list[str], ast_folder: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", [*few_steps, *extra])
    adapter = load_file(run / "model/adapter/adapter_model.safetensors")
    (down,) = [t for n, t in adapter.items() if QUERY + ".lora_A" in n]
    (up,) = [t for n, t in adapter.items() if QUERY + ".lora_B" in n]
    base = one_named(load_file(ast_folder / "model.safetensors"))
    merged = one_named(weights(run))
    assert up.abs().max() > 0
    torch.testing.assert_close(merged, base + scale * up @ down)


def one_named(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The query weights of the first layer, under the names of either version of transformers."""
    old = "layer.0.attention.attention.query.weight"
    (tensor,) = [t for n, t in tensors.items() if n.endswith((QUERY + ".weight", old))]
    return tensor


def test_dora_learns_magnitudes(few_steps: list[str], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [*few_steps, "--use_dora"])
    adapter = load_file(run / "model/adapter/adapter_model.safetensors")
    magnitudes = [t for n, t in adapter.items() if "lora_magnitude_vector" in n]
    assert len(magnitudes) == 8  # four projections in two layers
    assert read_json(run / "model/adapter/adapter_config.json")["use_dora"] is True


def test_probe_keeps_the_pretrained_weights_of_the_folder(
    few_steps: list[str], wav2vec2_folder: Path, tmp_path: Path
) -> None:
    backbone = ["--backbone", str(wav2vec2_folder)]
    run = run_of(tmp_path / "run", [*few_steps, *backbone, "--adaptation", "probe"])
    assert_complete(run)
    trained = weights(run)
    given = load_file(wav2vec2_folder / "model.safetensors")
    del given["masked_spec_embed"]  # kept with SpecAugment only
    assert len(given) > 30
    for name, tensor in given.items():
        assert torch.equal(trained[f"wav2vec2.{name}"], tensor), name


def test_spec_augment_of_a_waveform_backbone_trains_its_mask(
    few_steps: list[str], wav2vec2_folder: Path, tmp_path: Path
) -> None:
    options = [*few_steps, "--backbone", str(wav2vec2_folder), "--adaptation", "full"]
    run = run_of(tmp_path / "run", [*options, "--spec_augment_time", "0.3"])
    assert_complete(run)
    before = load_file(wav2vec2_folder / "model.safetensors")["masked_spec_embed"]
    assert not torch.equal(weights(run)["wav2vec2.masked_spec_embed"], before)


def test_two_processes_train_as_one(few_steps: list[str], tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", few_steps)
    two = tmp_path / "two"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         str(REPOSITORY / "scripts/train.py"), *few_steps, "--batch_size", "2",
         "--output_dir", str(two)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": str(REPOSITORY)},
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert_complete(two)
    assert read_json(two / "environment.json")["processes"] == 2
    assert {p.name for p in one.iterdir()} <= {p.name for p in two.iterdir()}
    assert (two / "report.html").is_file()
    # Two batches of two make the gradient of one batch of four, up to rounding.
    assert largest_difference(one, two) < 2e-4
    first, second = (read_json(run / "metrics.json") for run in (one, two))
    assert second["run"]["train_loss"] == pytest.approx(first["run"]["train_loss"], rel=1e-4)
    assert second["recording"]["overall"]["n"] == first["recording"]["overall"]["n"]
    for row, other in zip(
        read_predictions(one / "predictions.csv"),
        read_predictions(two / "predictions.csv"),
        strict=True,
    ):
        assert row["recording_id"] == other["recording_id"]
        assert row["prob_normal"] == pytest.approx(other["prob_normal"], abs=1e-3)
