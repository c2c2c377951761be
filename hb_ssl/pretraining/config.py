"""The settings of a pre-training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hb_ssl.config import option
from hb_ssl.errors import UserError


@dataclass
class PretrainConfig:
    """Self-supervised pre-training from scratch on folders of unlabelled recordings."""

    corpora: list[str] = field(
        default_factory=list, metadata={"help": "folders of audio, searched recursively"}
    )
    output_dir: str = option("runs/pretrain", "run folder")
    resume: bool = option(False, "continue the interrupted run in output_dir exactly")
    overwrite: bool = option(False, "replace the run in output_dir")
    seed: int = option(0, "seed of weights, windows, augmentation and masks")
    held_out_fraction: float = option(
        0.2, "share of known subjects (CirCor patients) that pre-training never sees"
    )
    window_seconds: float = option(5.0, "length of a window in seconds")
    num_mel_bins: int = option(20, "mel bins, and the patch size in frames")
    hidden_size: int = option(192, "width of the transformer")
    num_layers: int = option(4, "transformer layers")
    num_heads: int = option(4, "attention heads")
    time_stride: int = option(5, "10 ms frames between tokens")
    objective: Literal["agreement", "distillation", "agreement_distillation", "masked_contrast"] = (
        option(
            "agreement",
            "agreement: windows of one recording agree (SimCLR); distillation: predict an averaged "
            "teacher at hidden tokens (data2vec); agreement_distillation: both; masked_contrast: "
            "tell hidden patches apart (the wav2vec2 baseline)",
        )
    )
    keep_fraction: float = option(0.4, "share of the tokens that the student sees")
    temperature: float = option(0.1, "of the agreement softmax")
    distillation_weight: float = option(1.0, "of distillation in agreement_distillation")
    simulated_weight: float = option(
        0.0, "of the supervised loss on simulated recordings: what sounds when, which finding"
    )
    num_simulated: int = option(12000, "recordings to simulate for it")
    simulated_batch: int = option(48, "simulated windows per step and process")
    murmur_weight: float = option(
        0.0, "of the supervised loss on CirCor's murmur labels of training patients"
    )
    teacher_decay: float = option(0.995, "final decay of the averaged teacher")
    max_tempo_change: float = option(0.05, "largest relative change of tempo")
    steps: int = option(20000, "optimiser steps")
    batch_pairs: int = option(128, "pairs of windows per step and process")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.05, "AdamW weight decay")
    warmup_fraction: float = option(0.05, "share of the steps with a rising learning rate")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("bf16", "autocast precision")
    log_steps: int = option(20, "steps between log lines")
    eval_steps: int = option(500, "steps between validation losses, checkpoints and probes")
    probe_pascal: str | None = option(
        None, "labelled PASCAL folder to probe, for monitoring only; never trained on"
    )
    peak_tflops: float = option(
        0.0, "peak of one device, to log its utilisation; 0: measured with matrix products at start"
    )

    def __post_init__(self) -> None:
        if not self.corpora:
            raise UserError("corpora is empty; expected --corpora FOLDER [FOLDER ...]")
        if self.probe_pascal and Path(self.probe_pascal).resolve() in {
            Path(folder).resolve() for folder in self.corpora
        }:
            raise UserError(
                "probe_pascal is also a corpus: its scores would be of audio seen in training; "
                "leave it out of one of them"
            )
        for name in ("steps", "batch_pairs", "learning_rate", "log_steps", "eval_steps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)}: expected a number above 0")
        if not 0 < self.keep_fraction < 1:
            raise UserError(f"keep_fraction {self.keep_fraction}: expected between 0 and 1")
        if self.batch_pairs < 2:
            raise UserError(f"batch_pairs {self.batch_pairs}: expected at least 2")
