"""``transformers.Trainer`` for windows of recordings: loss, order, arguments, log lines."""

import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import rotate_checkpoints

from hb_ssl.config import TrainConfig
from hb_ssl.data.dataset import EpochSampler, EvaluationWindows
from hb_ssl.models.backbones import quiet_transformers
from hb_ssl.processes import on_cpu, processes
from hb_ssl.runs import damaged_file, seal_checkpoint

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2  # the newest, and the best or the one before


def class_weights(label_ids: list[int], num_classes: int) -> torch.Tensor:
    """Weights ``[C]`` inversely proportional to the class counts; their mean over the data is 1."""
    counts = np.bincount(label_ids, minlength=num_classes)
    weights = np.where(counts > 0, len(label_ids) / (num_classes * np.maximum(counts, 1)), 0.0)
    return torch.tensor(weights / (weights[label_ids].mean()), dtype=torch.float32)


class WindowTrainer(Trainer):
    """``Trainer`` with soft labels, class weights, and batches drawn by ``EpochSampler``."""

    def __init__(
        self,
        *args: Any,
        class_weights: torch.Tensor | None = None,
        balanced: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.class_weights = class_weights
        self.balanced = balanced

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs["labels"]  # [N, C], rows sum to 1
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        log_probabilities = outputs.logits.float().log_softmax(dim=-1)
        if self.class_weights is not None:
            labels = labels * self.class_weights.to(labels.device)
        loss = -(labels * log_probabilities).sum(dim=-1).mean()
        return (loss, outputs) if return_outputs else loss

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with quiet_transformers():  # a bar for every checkpoint would break up the epochs' bar
            super()._save(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # trainer_arguments sets no save_total_limit: nothing old goes before the new one is whole.
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            seal_checkpoint(folder / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(
                str(folder),
                save_total_limit=KEPT_CHECKPOINTS,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._restore_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is None or not self._restore_weights(best):
            super()._load_best_model()

    def _restore_weights(self, checkpoint: str) -> bool:
        """Loads a checkpoint of a whole model; False where the Trainer must do it itself.

        transformers saves some models (AST) under older weight names, and the Trainer would load
        them by name and only warn about all that it did not find.
        """
        model: Any = self.model
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or not isinstance(model, PreTrainedModel):
            return False
        with quiet_transformers():
            saved = type(model).from_pretrained(
                checkpoint, config=model.config, dtype=torch.float32, use_safetensors=True
            )
        model.load_state_dict(saved.state_dict())
        return True

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        # state.epoch is a whole number when an epoch starts, and lies inside the epoch on resume.
        windows: Any = self.train_dataset
        return EpochSampler(
            windows, self.balanced, lambda: math.floor((self.state.epoch or 0) + 1e-6)
        )


class _EpochLogger(TrainerCallback):
    """One log line per evaluation."""

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if state.is_world_process_zero and losses:
            logger.info(
                "epoch %.2f: train loss %.4f, validation recording_uar %.3f",
                state.epoch, losses[-1], metrics["eval_recording_uar"],
            )  # fmt: skip


class _BestCheckpointHere(TrainerCallback):
    """On resume, looks for the best checkpoint in the run folder as it stands now.

    The state names it by a path, but the folder may have moved; and it is gone when a later best
    one, since damaged, had replaced it.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        if state.best_model_checkpoint is None:
            return
        best = Path(str(args.output_dir)) / Path(state.best_model_checkpoint).name
        if damaged_file(best) is None:
            state.best_model_checkpoint = str(best)
            return
        logger.warning(
            "%s: the best checkpoint so far is gone or damaged; the best after step %d counts",
            best, state.global_step,
        )  # fmt: skip
        state.best_model_checkpoint = state.best_metric = state.best_global_step = None


def trainer_arguments(
    training: TrainConfig, folder: Path, full: bool, has_validation: bool
) -> TrainingArguments:
    """The Trainer's settings.

    Args:
        training: the recipe.
        folder: run folder.
        full: whether all weights train.
        has_validation: keep the best checkpoint by validation; else the last one.
    """
    strategy = "steps" if training.save_steps else "epoch"
    steps = training.save_steps or 500  # ignored by the strategy "epoch"
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=training.seed,
        data_seed=training.seed,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_fraction,  # below 1: a share of all steps
        lr_scheduler_type=training.scheduler,
        fp16=training.mixed_precision == "fp16",
        bf16=training.mixed_precision == "bf16",
        eval_strategy=strategy if has_validation else "no",
        save_strategy=strategy,
        logging_strategy=strategy,
        eval_steps=steps,
        save_steps=steps,
        logging_steps=steps,
        load_best_model_at_end=has_validation,
        metric_for_best_model="recording_uar" if has_validation else None,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=full,  # wav2vec2's mask embedding may go unused
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=on_cpu(),
    )


def trainer_callbacks(
    training: TrainConfig, folder: Path, has_validation: bool
) -> list[TrainerCallback]:
    """Log lines, early stopping if asked for and possible, and TensorBoard."""
    callbacks: list[TrainerCallback] = [_EpochLogger(), _BestCheckpointHere()]
    if training.early_stopping_patience and has_validation:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    if training.tracker == "tensorboard" and processes().is_main_process:
        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder / "logs"))))
    return callbacks


def training_history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainer's log as one row per step that logged something."""
    renamed = {
        "loss": "train_loss",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
        "eval_loss": "validation_loss",
        "eval_recording_uar": "validation_recording_uar",
        "eval_recording_macro_f1": "validation_recording_macro_f1",
        "eval_recording_accuracy": "validation_recording_accuracy",
    }
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        row = {new: entry[old] for old, new in renamed.items() if old in entry}
        if row:
            known = rows.setdefault(entry["step"], {"epoch": entry["epoch"], "step": entry["step"]})
            known.update(row)
    return [rows[step] for step in sorted(rows)]


def predict_logits(model: nn.Module, windows: EvaluationWindows, batch_size: int) -> np.ndarray:
    """Logits ``[N, C]`` of all windows, in order; the same from one process or several."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=batch_size,
            label_names=["labels"],
            remove_unused_columns=False,
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=not sys.stderr.isatty(),
            use_cpu=on_cpu(),
        )
        trainer = WindowTrainer(model=model, args=arguments)
        trainer.remove_callback(PrinterCallback)
        return np.asarray(trainer.predict(windows).predictions)
