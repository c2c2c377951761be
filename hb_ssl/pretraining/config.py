"""The settings of a pre-training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hb_ssl.config import option
from hb_ssl.errors import UserError


@dataclass
class PretrainConfig:
    """Self-supervised pre-training on unlabelled recordings, from scratch or from a checkpoint."""

    corpora: list[str] = field(
        default_factory=list,
        metadata={
            "help": "folders of audio, searched recursively; or, streamed and never kept: folders "
            "of parquet shards (`hb-ssl data shards`), a glob of them, or hub:ORG/NAME"
        },
    )
    output_dir: str = option("runs/pretrain", "run folder")
    resume: bool = option(False, "continue the interrupted run in output_dir exactly")
    overwrite: bool = option(False, "replace the run in output_dir")
    seed: int = option(0, "seed of weights, windows, augmentation and masks")
    held_out_fraction: float = option(
        0.2,
        "share of known subjects (CirCor patients) that pre-training never sees; of shards their "
        "split `validation`, whatever this says",
    )
    data_fraction: float = option(
        1.0, "share of the training subjects to use, to see what the amount of data does"
    )
    backbone: str | None = option(
        None,
        "wav2vec2 checkpoint (Hub id or folder) to go on from, with its architecture, feature "
        "extractor and sampling rate; for objective wav2vec2, else from scratch",
    )
    window_seconds: float = option(5.0, "length of a window in seconds")
    num_mel_bins: int = option(20, "mel bins, and the patch size in frames (log-mel objectives)")
    hidden_size: int = option(192, "width of the transformer")
    num_layers: int = option(4, "transformer layers")
    num_heads: int = option(4, "attention heads")
    time_stride: int = option(5, "10 ms frames between tokens (log-mel objectives)")
    objective: Literal[
        "agreement", "distillation", "agreement_distillation", "masked_contrast", "wav2vec2"
    ] = option(
        "agreement",
        "on log-mel windows: agreement: windows of one recording agree (SimCLR); distillation: "
        "predict an averaged teacher at hidden tokens (data2vec); agreement_distillation: both; "
        "masked_contrast: tell hidden patches apart. On waveforms: wav2vec2: tell quantised hidden "
        "frames apart (Wav2Vec2ForPreTraining)",
    )
    keep_fraction: float = option(
        0.4, "share of the tokens that the student sees (log-mel objectives)"
    )
    mask_fraction: float = option(
        0.65, "share of frames in hidden spans, overlaps counted twice (wav2vec2)"
    )
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
    pool_recordings: int = option(
        512, "decoded recordings a reader of shards holds and draws from; bounds its memory"
    )
    pairs_per_recording: int = option(
        4, "pairs drawn for every recording that a reader of shards takes in"
    )
    reader_threads: int = option(
        2, "threads per process that read shards, each its own; every one needs a shard"
    )
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
        self._check_objective()
        if self.probe_pascal:
            probed = Path(self.probe_pascal).resolve()
            for corpus in (Path(folder).resolve() for folder in self.corpora):
                if probed.is_relative_to(corpus) or corpus.is_relative_to(probed):
                    raise UserError(
                        "probe_pascal is also a corpus, or lies in one: its scores would be of "
                        "audio seen in training; leave it out of one of them"
                    )
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(
                f"held_out_fraction {self.held_out_fraction}: expected 0 (none) or more, below 1"
            )
        for name in (
            "steps", "batch_pairs", "learning_rate", "log_steps", "eval_steps", "pool_recordings",
            "pairs_per_recording", "reader_threads",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise UserError(f"{name} {getattr(self, name)}: expected a number above 0")
        for name in ("keep_fraction", "mask_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: expected between 0 and 1")
        if not 0 < self.data_fraction <= 1:
            raise UserError(
                f"data_fraction {self.data_fraction}: expected above 0 and at most 1 (all)"
            )
        if self.batch_pairs < 2:
            raise UserError(f"batch_pairs {self.batch_pairs}: expected at least 2")

    def _check_objective(self) -> None:
        """Refuses what the objective would ignore."""
        if self.objective != "wav2vec2":
            if self.backbone:
                raise UserError(
                    f"backbone '{self.backbone}' with objective {self.objective}: the log-mel "
                    "objectives start from scratch; add --objective wav2vec2 or leave backbone out"
                )
            return
        for name in ("simulated_weight", "murmur_weight"):
            if getattr(self, name):
                raise UserError(
                    f"{name} {getattr(self, name)}: objective wav2vec2 hears unlabelled waveforms "
                    "only; expected 0"
                )
