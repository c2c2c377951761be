"""Fine-tuning: one run from recordings to a saved, scored model folder.

Builds on ``transformers.Trainer`` (which runs on accelerate): resume, early stopping, gradient
accumulation, mixed precision and several processes come from there.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, PrinterCallback

from hb_ssl import __version__
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig
from hb_ssl.data.augment import Augmentation
from hb_ssl.data.dataset import (
    EvaluationWindows,
    FeatureMaker,
    TrainingWindows,
    Waveforms,
    waveform_dataset,
)
from hb_ssl.data.spectrogram_windows import SpectrogramTrainingWindows
from hb_ssl.data.splits import read_split, write_split
from hb_ssl.data.task import HeartSoundTask, choose_split, prepare_task_from
from hb_ssl.errors import UserError, first_line
from hb_ssl.evaluation.metrics import score_recordings
from hb_ssl.files import write_csv_atomic, write_json_atomic
from hb_ssl.models.backbones import load_feature_extractor, locate_backbone
from hb_ssl.models.classifier import adapt, build_classifier, count_parameters, save_classifier
from hb_ssl.models.heads import drop_tokens
from hb_ssl.processes import on_cpu, processes
from hb_ssl.runs import (
    changed_data,
    describe_environment,
    last_complete_checkpoint,
    open_run,
    remove_checkpoints,
    shareable_command,
)
from hb_ssl.scoring import prediction_rows, score
from hb_ssl.trainer import (
    WindowTrainer,
    class_weights,
    trainer_arguments,
    trainer_callbacks,
    training_history,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuned:
    """What ``fine_tune`` returns; rows are empty on all but the main process."""

    model: nn.Module
    feature_extractor: Any
    recording_rows: list[dict[str, Any]]
    window_rows: list[dict[str, Any]]
    history: list[dict[str, Any]]
    summary: dict[str, Any]


def train(data: DataConfig, model: ModelConfig, training: TrainConfig) -> Path:
    """Runs one fine-tuning job and fills its run folder.

    The folder holds ``config.yaml``, ``environment.json``, ``splits.json``, ``data_card.json``,
    ``history.json``, ``predictions.csv``, ``window_predictions.csv``, ``metrics.json``, the
    TensorBoard ``logs/`` and the classifier in ``model/``; checkpoints exist only while it runs.
    With ``test_fraction: 0`` there are no predictions and no scores.

    Returns:
        The run folder.

    Raises:
        UserError: bad input, or the folder holds another run.
    """
    folder = Path(training.output_dir)
    state = processes()
    with open_run(folder, training.resume, training.overwrite, data, model, training) as finished:
        if finished:
            if state.is_main_process:
                remove_checkpoints(folder)  # killed between its result and this
            return folder
        with state.main_process_first():
            task = prepare_task_from(data)
        split = choose_split(task, data, training.seed)
        plan = folder / "splits.json"
        if plan.is_file() and not _same_parts(read_split(plan), split):
            raise changed_data(plan)
        if state.is_main_process:
            write_json_atomic(folder / "environment.json", describe_environment())
            write_json_atomic(folder / "data_card.json", describe_task(task))
            write_split(
                plan,
                split,
                task.groups,
                {r: recording.content_hash for r, recording in task.recordings.items()},
                {"seed": training.seed, "source": task.source, "label_mode": task.label_mode},
            )
        tuned = fine_tune(task, split, data, model, training, folder)
        if state.is_main_process:
            about = provenance(task, split["train"], training)
            _write_results(folder, task, tuned, data, model, about)
        state.wait_for_everyone()
    return folder


def _same_parts(first: dict[str, list[str]], second: dict[str, list[str]]) -> bool:
    return {part: sorted(ids) for part, ids in first.items()} == {
        part: sorted(ids) for part, ids in second.items()
    }


def describe_task(task: HeartSoundTask) -> dict[str, Any]:
    """The data card of a run (JSON-able)."""
    return {
        "source": task.source,
        "synthetic": task.synthetic,
        "label_mode": task.label_mode,
        "labels": task.labels,
        "num_labelled": len(task.items),
        "num_groups": len({item.group for item in task.items}),
        "dropped": task.dropped,
        "inspection": task.data_card,
    }


def fine_tune(
    task: HeartSoundTask,
    split: dict[str, list[str]],
    data: DataConfig,
    model_config: ModelConfig,
    training: TrainConfig,
    folder: Path,
) -> FineTuned:
    """Fine-tunes on ``split["train"]``, stops early on validation, predicts ``split["test"]``.

    Args:
        task: the recordings.
        split: recording ids of ``train``, ``validation`` and ``test``; checked for leaks.
        data: window length, hop and band.
        model_config: backbone and adaptation.
        training: optimisation and augmentation.
        folder: checkpoints go to ``folder/checkpoints``, curves to ``folder/logs``.

    Raises:
        LeakError: a group, a duplicate or a recording stands on two sides of the split.
        UserError: the backbone or window length is unusable.
    """
    if training.mixed_precision == "fp16" and on_cpu():
        raise UserError("mixed_precision fp16 needs a GPU; on this machine use bf16 or no")
    task.check_split(split)
    location = locate_backbone(model_config.backbone)
    extractor = load_feature_extractor(location)
    make_features = FeatureMaker(extractor, data.window_seconds)
    used = [task.recordings[item.recording_id] for item in task.items]
    with processes().main_process_first():
        dataset = waveform_dataset(
            used, make_features.sampling_rate, data.band_low_hz, data.band_high_hz
        )
    waveforms = Waveforms(dataset)
    classifier = build_classifier(
        model_config.backbone,
        task.labels,
        pooling=model_config.pooling,
        layer_weighted_sum=model_config.layer_weighted_sum,
        random_weights=model_config.random_weights,
        spec_augment_time=training.spec_augment_time,
        seed=training.seed,
    )
    if training.keep_fraction < 1:
        drop_tokens(classifier, training.keep_fraction)
    if training.mixed_precision == "bf16" and on_cpu():
        classifier.set_attn_implementation("eager")  # twice as fast as sdpa on short CPU sequences
    model = adapt(
        classifier,
        model_config.adaptation,
        lora_rank=model_config.lora_rank,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        lora_targets=model_config.lora_targets,
        use_rslora=model_config.use_rslora,
        use_dora=model_config.use_dora,
        freeze_feature_encoder=model_config.freeze_feature_encoder,
    )
    check_window(model, make_features)
    label_ids = {part: [task.label_id(r) for r in ids] for part, ids in split.items()}

    def evaluation_windows(part: str) -> EvaluationWindows:
        return EvaluationWindows(
            waveforms, split[part], label_ids[part], len(task.labels), make_features,
            data.hop_seconds,
        )  # fmt: skip

    train_windows = _training_windows(
        waveforms, split["train"], label_ids["train"], len(task.labels), make_features,
        data.hop_seconds, training,
    )  # fmt: skip
    validation = evaluation_windows("validation") if split["validation"] else None
    trainer = WindowTrainer(
        model=model,
        args=trainer_arguments(
            training,
            folder,
            full=model_config.adaptation == "full",
            has_validation=validation is not None,
        ),
        train_dataset=train_windows,
        eval_dataset=validation,
        compute_metrics=_validation_metrics(task, validation) if validation else None,
        class_weights=(
            class_weights(label_ids["train"], len(task.labels))
            if training.class_balance == "weights"
            else None
        ),
        balanced=training.class_balance == "sampling",
        callbacks=trainer_callbacks(training, folder, has_validation=validation is not None),
    )
    trainer.remove_callback(PrinterCallback)
    with processes().main_process_first():
        checkpoint = last_complete_checkpoint(folder / "checkpoints")
    started, used_before = time.perf_counter(), time.process_time()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - used_before
    recording_rows: list[dict[str, Any]] = []
    window_rows: list[dict[str, Any]] = []
    if split["test"]:
        test = evaluation_windows("test")
        trainer.compute_metrics = None  # it scores the validation windows only
        logits = np.asarray(trainer.predict(test).predictions)
        recording_rows, window_rows = prediction_rows(task, test, logits)
    return FineTuned(
        model=trainer.accelerator.unwrap_model(trainer.model),
        feature_extractor=extractor,
        recording_rows=recording_rows,
        window_rows=window_rows,
        history=training_history(trainer.state.log_history),
        summary={
            "parameters": count_parameters(model),
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "train_loss": result.training_loss,
            "best_validation_recording_uar": trainer.state.best_metric,
            "train_seconds": seconds,
            "train_cpu_seconds": cpu_seconds,  # tells how much other programs slowed the run
            "synthetic": task.synthetic,
            "random_weights": model_config.random_weights,
        },
    )


def _training_windows(
    waveforms: Waveforms,
    recording_ids: list[str],
    label_ids: list[int],
    num_classes: int,
    make_features: FeatureMaker,
    hop_seconds: float,
    training: TrainConfig,
) -> TrainingWindows | SpectrogramTrainingWindows:
    if training.augment_spectrogram:
        return SpectrogramTrainingWindows(
            waveforms,
            recording_ids,
            label_ids,
            num_classes,
            make_features,
            probability=training.augment_probability,
            max_tempo_change=training.augment_time_stretch,
            windows_per_recording=training.windows_per_recording,
            label_smoothing=training.label_smoothing,
            seed=training.seed,
        )
    return TrainingWindows(
        waveforms,
        recording_ids,
        label_ids,
        num_classes,
        make_features,
        Augmentation(
            probability=training.augment_probability,
            gain_db=training.augment_gain_db,
            noise_snr_db=training.augment_noise_snr_db,
            time_stretch=training.augment_time_stretch,
            low_pass_hz=training.augment_low_pass_hz,
        ),
        windows_per_recording=training.windows_per_recording,
        hop_seconds=None if training.augment_shift else hop_seconds,
        label_smoothing=training.label_smoothing,
        mixup_alpha=training.mixup_alpha,
        spec_augment_time=training.spec_augment_time,
        spec_augment_frequency=training.spec_augment_frequency,
        seed=training.seed,
    )


def check_window(model: nn.Module, make_features: FeatureMaker) -> None:
    """Fails early and clearly where the window is too short for the backbone's convolutions."""
    silence = make_features(np.full((1, make_features.window), 1e-3, dtype=np.float32))
    try:
        with torch.inference_mode():
            model.eval()(**{make_features.input_name: torch.from_numpy(silence)})
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"window of {make_features.window} samples at {make_features.sampling_rate} Hz: the "
            f"backbone can't process it ({first_line(error)}); choose another --window_seconds"
        ) from error


def _validation_metrics(
    task: HeartSoundTask, windows: EvaluationWindows
) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        rows, _ = prediction_rows(task, windows, np.asarray(prediction.predictions))
        scores = score_recordings(rows, task.labels)
        return {
            name: scores[name]
            for name in ("recording_uar", "recording_macro_f1", "recording_accuracy")
        }

    return compute


def provenance(
    task: HeartSoundTask, recording_ids: list[str], training: TrainConfig
) -> dict[str, Any]:
    """What a model was trained with: seed, epochs, recordings and their SHA-256, and the command.

    Names of local folders are cut to their last part, since a model may be published.
    """
    hashes = sorted(task.recordings[recording_id].content_hash for recording_id in recording_ids)
    return {
        "command": shareable_command(describe_environment()["command"]),
        "seed": training.seed,
        "epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "num_recordings": len(recording_ids),
        "data_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }


def preprocessing_of(
    task: HeartSoundTask, data: DataConfig, model: ModelConfig, sampling_rate: int
) -> dict[str, Any]:
    """What inference needs to treat a recording as training did, and what the model is."""
    local = Path(task.source).exists()
    return {
        "hb_ssl_version": __version__,
        "labels": task.labels,
        "sampling_rate": sampling_rate,
        **{
            name: getattr(data, name)
            for name in (
                "label_mode",
                "window_seconds",
                "hop_seconds",
                "band_low_hz",
                "band_high_hz",
            )
        },
        "backbone": Path(model.backbone).name if Path(model.backbone).exists() else model.backbone,
        "random_weights": model.random_weights,
        "adaptation": model.adaptation,
        "trained_on": Path(task.source).resolve().name if local else task.source,
        "synthetic": task.synthetic,
    }


def _write_results(
    folder: Path,
    task: HeartSoundTask,
    tuned: FineTuned,
    data: DataConfig,
    model: ModelConfig,
    trained_with: dict[str, Any],
) -> None:
    rate = tuned.feature_extractor.sampling_rate
    save_classifier(
        folder / "model",
        tuned.model,
        tuned.feature_extractor,
        {**preprocessing_of(task, data, model, rate), "training": trained_with},
    )
    write_json_atomic(folder / "history.json", tuned.history)
    metrics: dict[str, Any] = {"synthetic": task.synthetic}
    if tuned.recording_rows:
        write_csv_atomic(folder / "predictions.csv", tuned.recording_rows)
        write_csv_atomic(folder / "window_predictions.csv", tuned.window_rows)
        metrics = score(task, tuned.recording_rows, tuned.window_rows)
    write_json_atomic(folder / "metrics.json", {**metrics, "run": tuned.summary})
    remove_checkpoints(folder)
