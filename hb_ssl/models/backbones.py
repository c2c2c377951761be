"""The supported backbone families: which class, which input, which layers LoRA adapts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    ASTForAudioClassification,
    AutoConfig,
    AutoFeatureExtractor,
    Data2VecAudioForSequenceClassification,
    HubertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2ForSequenceClassification,
    WhisperForAudioClassification,
)
from transformers.utils import logging as transformers_logging

from hb_ssl.errors import UserError, first_line
from hb_ssl.models.folders import BUNDLED_BACKBONE


@dataclass(frozen=True)
class Family:
    """What hb_ssl needs to know about one architecture of transformers.

    Attributes:
        stock_class: the audio-classification model of transformers.
        backbone_name: its attribute that holds the backbone.
        input_name: name of the model input.
        lora_targets: attention projections that LoRA adapts by default.
        has_projector: the stock head is projector + classifier (else layer norm + dense).
    """

    stock_class: type[PreTrainedModel]
    backbone_name: str
    input_name: str
    lora_targets: tuple[str, ...]
    has_projector: bool = True


_SPEECH_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

FAMILIES: dict[str, Family] = {
    "wav2vec2": Family(
        Wav2Vec2ForSequenceClassification, "wav2vec2", "input_values", _SPEECH_TARGETS
    ),
    "hubert": Family(HubertForSequenceClassification, "hubert", "input_values", _SPEECH_TARGETS),
    "data2vec-audio": Family(
        Data2VecAudioForSequenceClassification, "data2vec_audio", "input_values", _SPEECH_TARGETS
    ),
    "audio-spectrogram-transformer": Family(
        ASTForAudioClassification,
        "audio_spectrogram_transformer",
        "input_values",
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        has_projector=False,
    ),
    "whisper": Family(WhisperForAudioClassification, "encoder", "input_features", _SPEECH_TARGETS),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a backbone's config.

    Raises:
        UserError: the architecture is not supported.
    """
    if config.model_type == "wavlm":
        raise UserError(
            "backbone type 'wavlm': its attention computes the projections in one fused call, so "
            "LoRA on them gets no gradient; use wav2vec2, hubert or data2vec-audio"
        )
    if config.model_type not in FAMILIES:
        raise UserError(
            f"backbone type '{config.model_type}': expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[config.model_type]


def locate_backbone(name: str) -> str:
    """Turns the config's ``backbone`` into a folder or Hub id; ``bundled`` is in the package."""
    if name != "bundled":
        return name
    if not (BUNDLED_BACKBONE / "config.json").is_file():
        raise UserError(
            f"{BUNDLED_BACKBONE}: the bundled backbone is missing from this installation; "
            "install hb-ssl again or give --backbone a Hub id or folder"
        )
    return str(BUNDLED_BACKBONE)


def load_backbone_config(name: str) -> PreTrainedConfig:
    """Loads and checks the config of a backbone.

    Args:
        name: folder or Hub id (see ``locate_backbone``).

    Raises:
        UserError: nothing is there, it can't be reached, or its type is not supported.
    """
    config = _load(AutoConfig, name, "config.json")
    family_of(config)
    return config


def load_feature_extractor(name: str) -> Any:
    """Loads the stock feature extractor saved with a backbone.

    Raises:
        UserError: it is missing or can't be reached.
    """
    return _load(AutoFeatureExtractor, name, "preprocessor_config.json")


def _load(auto_class: Any, name: str, file_name: str) -> Any:
    folder = Path(name)
    if folder.is_dir() and not (folder / file_name).is_file():
        raise UserError(f"{folder}: has no {file_name}; expected a folder saved by transformers")
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise UserError(f"{name}: no such folder; check --backbone")
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"backbone '{name}' can't be loaded ({first_line(error)}); expected 'bundled', a "
            f"folder with {file_name}, or a Hub id reachable from here"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides transformers' load reports and bars: hb_ssl checks the loaded keys itself."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
