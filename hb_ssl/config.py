"""The one configuration mechanism: flat dataclasses, whose fields are YAML keys and ``--flags``.

A YAML file is turned into flags, the command line is appended, and both go through one
``HfArgumentParser``; so unknown keys and wrong types fail in both, and the command line wins.
Every default is written here and nowhere else.
"""

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from hb_ssl.errors import UserError, first_line
from hb_ssl.files import write_text_atomic

Config = TypeVar("Config")

MAX_WINDOW_SECONDS = 600.0
MIN_HOP_SECONDS = 0.01  # a sample at the lowest rate, 100 Hz


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with a default and the help text of its ``--flag``."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataConfig:
    """Which recordings, which task, and how they are cut into windows."""

    source: str = option(
        "synthetic",
        "synthetic (the built-in simulator), a folder (Kaggle layout, or the challenge's zips or "
        "class folders), kaggle, challenge (both download), or hub:ORG/NAME",
    )
    label_mode: Literal["merge", "drop", "set_a", "set_b"] = option(
        "merge",
        "merge: both sets, extrastole called extrahls; drop: both sets without extrastole; "
        "set_a, set_b: the two tasks of the challenge",
    )
    num_synthetic: int = option(160, "recordings to simulate when source is synthetic")
    keep_contradictions: bool = option(
        False, "keep recordings that hold the same audio as one with another label"
    )
    window_seconds: float = option(5.0, "length of a window in seconds")
    hop_seconds: float = option(2.5, "step between evaluation windows in seconds")
    band_low_hz: float | None = option(None, "lower edge of the common band in Hz")
    band_high_hz: float | None = option(
        None, "upper edge of the common band in Hz; 195 hides which device recorded"
    )
    validation_fraction: float = option(
        0.2, "share of recordings to choose the best epoch by; 0: train all epochs"
    )
    test_fraction: float = option(0.2, "share of recordings kept for the final test; 0: none")
    split_file: str | None = option(None, "splits.json of an earlier run, to use its split again")

    def __post_init__(self) -> None:
        _check_positive(
            self, "window_seconds", "hop_seconds", "num_synthetic", "band_low_hz", "band_high_hz"
        )
        _check_fraction(self, "validation_fraction", "test_fraction")
        if self.window_seconds > MAX_WINDOW_SECONDS:
            raise UserError(
                f"window_seconds {self.window_seconds}: expected at most {MAX_WINDOW_SECONDS:g}"
            )
        if self.hop_seconds < MIN_HOP_SECONDS:
            raise UserError(f"hop_seconds {self.hop_seconds}: expected at least {MIN_HOP_SECONDS}")
        if self.hop_seconds > self.window_seconds:
            raise UserError(
                f"hop_seconds {self.hop_seconds} is longer than window_seconds "
                f"{self.window_seconds}, so audio would be skipped; make it shorter"
            )


@dataclass
class ModelConfig:
    """The pretrained backbone and how it is adapted."""

    backbone: str = option(
        "bundled",
        "bundled (the heart-sound backbone in the package), a Hub id, or a folder with config.json",
    )
    random_weights: bool = option(
        False, "start from random weights (a control experiment; named in every output)"
    )
    adaptation: Literal["lora", "full", "probe"] = option(
        "lora", "lora: low-rank adapters; full: all weights; probe: the head only"
    )
    lora_rank: int = option(8, "rank of the LoRA update")
    lora_alpha: int = option(16, "scale of the LoRA update: alpha / rank")
    lora_dropout: float = option(0.05, "dropout before the LoRA update")
    lora_targets: list[str] | None = option(
        None, "linear layers to adapt; by default the attention projections of the backbone"
    )
    use_rslora: bool = option(False, "rank-stabilised LoRA: scale alpha / sqrt(rank)")
    use_dora: bool = option(False, "weight-decomposed LoRA (DoRA)")
    pooling: Literal["mean", "attentive", "class_token"] = option(
        "mean", "mean over frames, attentive (learned weights), or AST's class tokens"
    )
    layer_weighted_sum: bool = option(
        False, "classify a learned weighted sum of all layers instead of the last one"
    )
    freeze_feature_encoder: bool = option(
        True, "keep the convolutions of wav2vec2-like backbones frozen with adaptation full"
    )

    def __post_init__(self) -> None:
        _check_positive(self, "lora_rank", "lora_alpha")
        _check_fraction(self, "lora_dropout")


@dataclass
class TrainConfig:
    """Optimisation, augmentation and bookkeeping of one fine-tuning run."""

    output_dir: str = option("runs/train", "run folder")
    resume: bool = option(False, "continue the interrupted run in output_dir exactly")
    overwrite: bool = option(False, "replace a finished run in output_dir")
    seed: int = option(0, "seed of the split, the weights of the head and the training order")
    epochs: float = option(10.0, "passes over the training recordings")
    max_steps: int = option(-1, "stop after this many optimiser steps; -1: by epochs")
    batch_size: int = option(16, "windows per device and step")
    eval_batch_size: int = option(32, "windows per device in evaluation")
    windows_per_recording: int = option(2, "random windows drawn from a recording in an epoch")
    gradient_accumulation_steps: int = option(1, "batches per optimiser step")
    gradient_checkpointing: bool = option(False, "trade compute for memory")
    learning_rate: float = option(1e-3, "peak learning rate (LoRA and probe: near 1e-3)")
    weight_decay: float = option(0.01, "AdamW weight decay")
    warmup_fraction: float = option(0.1, "share of the steps with a rising learning rate")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = option(
        "cosine", "learning-rate schedule"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "autocast precision")
    class_balance: Literal["none", "weights", "sampling"] = option(
        "weights", "weights: in the loss; sampling: draw classes equally often"
    )
    label_smoothing: float = option(0.0, "share of the label spread over the other classes")
    early_stopping_patience: int = option(
        5,
        "stop after this many validations (one an epoch) without a better validation "
        "recording_uar; 0: never",
    )
    save_steps: int = option(
        0, "save, validate and count the patience every N steps; 0: once an epoch"
    )
    augment_probability: float = option(0.5, "chance of each waveform augmentation below")
    augment_gain_db: float = option(6.0, "largest gain change in dB; 0 turns it off")
    augment_noise_snr_db: float | None = option(
        15.0, "lowest signal-to-noise ratio of added noise in dB; 100 is next to none"
    )
    augment_shift: bool = option(True, "start the windows anywhere, not at fixed places")
    augment_time_stretch: float = option(0.05, "largest relative change of tempo, pitch kept")
    augment_low_pass_hz: float | None = option(
        None, "lowest random low-pass edge in Hz; 195 imitates the stethoscope of set B"
    )
    augment_spectrogram: bool = option(
        False,
        "AST backbones: cut windows from cached log-mel frames and vary device (with "
        "augment_probability), noise, level and tempo there, instead of all other augmentations; "
        "several times faster",
    )
    keep_fraction: float = option(
        1.0,
        "AST backbones: share of the patch tokens that a training window keeps, drawn anew each "
        "time (patchout); 0.5 halves the time of a step",
    )
    spec_augment_time: float = option(0.0, "share of frames masked (SpecAugment)")
    spec_augment_frequency: float = option(0.0, "share of mel bands masked (SpecAugment)")
    mixup_alpha: float = option(0.0, "Beta parameter of mixup; 0 turns it off")
    tracker: Literal["tensorboard", "none"] = option("tensorboard", "where curves go")

    def __post_init__(self) -> None:
        _check_positive(
            self, "epochs", "batch_size", "eval_batch_size", "windows_per_recording",
            "gradient_accumulation_steps", "learning_rate", "augment_low_pass_hz",
        )  # fmt: skip
        _check_not_negative(
            self, "seed", "weight_decay", "early_stopping_patience", "save_steps",
            "augment_gain_db", "mixup_alpha",
        )  # fmt: skip
        if self.max_steps < 1 and self.max_steps != -1:
            raise UserError(f"max_steps {self.max_steps}: expected at least 1, or -1 for no limit")
        _check_fraction(
            self, "warmup_fraction", "label_smoothing", "augment_probability",
            "augment_time_stretch", "spec_augment_time", "spec_augment_frequency",
        )  # fmt: skip
        if not 0 < self.keep_fraction <= 1:
            raise UserError(
                f"keep_fraction {self.keep_fraction}: expected a share above 0, up to 1"
            )
        for name in ("mixup_alpha", "spec_augment_time", "spec_augment_frequency"):
            if self.augment_spectrogram and getattr(self, name):
                raise UserError(
                    f"{name} {getattr(self, name)} together with augment_spectrogram: expected one "
                    "of them, since augment_spectrogram stands in for all other augmentations; set "
                    "one of the two to 0 or false"
                )


@dataclass
class CrossValidationConfig:
    """Repeated grouped k-fold cross-validation."""

    method: str = option(
        "fine_tune",
        "fine_tune; embedding_probe (logistic regression on the frozen backbone); log_mel_probe; "
        "or a baseline: majority, device_only, logistic_regression, extra_trees",
    )
    num_folds: int = option(5, "grouped folds")
    num_repeats: int = option(3, "repeats with other folds: seeds 0, 1, 2, ...")

    def __post_init__(self) -> None:
        _check_positive(self, "num_repeats")
        if self.num_folds < 2:
            raise UserError(f"num_folds {self.num_folds}: expected at least 2")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} {value}: expected a number above 0")


def _check_not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise UserError(f"{name} {value}: expected 0 or a number above")


def _check_fraction(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{name} {getattr(config, name)}: expected a share from 0 to below 1")


class _Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line and name the closest flag."""

    def error(self, message: str) -> NoReturn:
        raise UserError(re.sub(r"^argument ", "", message) + "; see --help")


def make_parser(types: Any, **kwargs: Any) -> HfArgumentParser:
    """A parser with one ``--flag`` per dataclass field, plus ``--config FILE``."""
    parser = _Parser(types, allow_abbrev=False, **kwargs)
    parser.add_argument("--config", metavar="FILE", help="YAML recipe; flags override its keys")
    return parser


def parse_config(types: list[type[Any]], argv: list[str], **parser_kwargs: Any) -> tuple[Any, ...]:
    """Turns a YAML file (``--config``) and flags into dataclass instances.

    Args:
        types: dataclasses with disjoint field names.
        argv: command-line arguments without the program name.
        **parser_kwargs: passed to ``argparse.ArgumentParser`` (``prog``, ``description``, ...).

    Raises:
        UserError: unknown key or flag, wrong type or value, or an unreadable YAML file.
    """
    parser = make_parser(types, **parser_kwargs)
    names = {f.name for t in types for f in dataclasses.fields(t)}
    config_file = _find_config_flag(argv)
    yaml_flags = _yaml_to_flags(config_file, names) if config_file else []
    namespace, unknown = parser.parse_known_args(yaml_flags + argv)
    if unknown:
        raise UserError(_unknown_option(unknown[0], names))
    values = vars(namespace)
    return tuple(t(**{f.name: values[f.name] for f in dataclasses.fields(t)}) for t in types)


def _find_config_flag(argv: list[str]) -> str | None:
    for position, argument in enumerate(argv):
        if argument == "--config":
            if position + 1 == len(argv):
                raise UserError("--config: expected a YAML file after it")
            return argv[position + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a flat YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a flat mapping.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file; see configs/ for the recipes") from error
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}); expected a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is not valid YAML ({first_line(error)}); fix or replace it"
        ) from error
    if not isinstance(content, dict) or any(isinstance(v, dict) for v in content.values()):
        raise UserError(f"{path}: expected flat `key: value` lines; see configs/ for examples")
    return content


def _yaml_to_flags(path: str, names: set[str]) -> list[str]:
    flags: list[str] = []
    for key, value in read_yaml(path).items():
        if key not in names:
            raise UserError(f"{path}: " + _unknown_option(str(key), names))
        if value is None:
            continue  # null means: the default
        values = value if isinstance(value, list) else [value]
        # YAML reads the word `no` as False, and a boolean option takes the words as well.
        words = {True: "yes", False: "no"}
        flags += [f"--{key}", *(words[v] if isinstance(v, bool) else str(v) for v in values)]
    return flags


def _unknown_option(option: str, names: set[str]) -> str:
    name = option.lstrip("-").split("=")[0].replace("-", "_")
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "see --help for the list"
    return f"unknown option '{option}'; {hint}"


def save_config(path: str | Path, *configs: Any) -> None:
    """Writes the resolved values as a flat YAML file that ``--config`` reads back."""
    merged: dict[str, Any] = {}
    for config in configs:
        merged.update(dataclasses.asdict(config))
    write_text_atomic(path, yaml.safe_dump(merged, sort_keys=False))
