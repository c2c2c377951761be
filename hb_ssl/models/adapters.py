"""A classifier from a LoRA adapter alone, on its base model."""

import logging
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from hb_ssl.errors import UserError, first_line
from hb_ssl.files import read_json
from hb_ssl.models.backbones import load_backbone_config, load_feature_extractor
from hb_ssl.models.classifier import ADAPTER_FOLDER, build_classifier, read_preprocessing

logger = logging.getLogger(__name__)

ADAPTER_WEIGHTS = f"{ADAPTER_FOLDER}/adapter_model.safetensors"


def is_adapter_only(folder: Path) -> bool:
    """Whether a folder holds an adapter and no merged model."""
    return (folder / ADAPTER_WEIGHTS).is_file() and not any(folder.glob("model*.safetensors"))


def load_adapted_classifier(folder: Path) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """Puts the adapter in ``folder`` on the base that its ``adapter_config.json`` names.

    Returns:
        The merged model in evaluation mode, its feature extractor, and the preprocessing, as
        ``load_classifier`` does.

    Raises:
        UserError: a file is missing, or the base can't be loaded.
    """
    preprocessing = read_preprocessing(folder)
    head = getattr(load_backbone_config(str(folder)), "heart_sound_head", None)
    base = read_json(folder / ADAPTER_FOLDER / "adapter_config.json").get("base_model_name_or_path")
    if head is None or not base:
        raise UserError(
            f"{folder}: the adapter does not say which base model it belongs to; expected a "
            "repository made by `hb-ssl push --adapter-only`"
        )
    logger.info("Putting the adapter on its base '%s'", base)
    model: Any = build_classifier(
        base,
        preprocessing["labels"],
        pooling=head["pooling"],
        layer_weighted_sum=head["layer_weighted_sum"],
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, str(folder), subfolder=ADAPTER_FOLDER)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, UserWarning) as error:
        raise UserError(
            f"{folder}: the adapter does not fit its base '{base}' ({first_line(error)}); expected "
            "the base that it was trained on"
        ) from error
    merged = adapted.merge_and_unload()
    return merged.eval(), load_feature_extractor(str(folder)), preprocessing
