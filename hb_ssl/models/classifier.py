"""Build, adapt, save and load window classifiers."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, set_seed

from hb_ssl.errors import UserError, first_line
from hb_ssl.models.backbones import (
    family_of,
    load_backbone_config,
    load_feature_extractor,
    locate_backbone,
    quiet_transformers,
)
from hb_ssl.models.folders import PREPROCESSING_FILE, read_preprocessing
from hb_ssl.models.heads import WINDOW_CLASSIFIERS

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
HEAD_MODULES = ("pooling", "projector", "classifier")


def build_classifier(
    backbone: str,
    labels: list[str],
    pooling: str = "mean",
    layer_weighted_sum: bool = False,
    random_weights: bool = False,
    spec_augment_time: float = 0.0,
    seed: int = 0,
) -> PreTrainedModel:
    """A pretrained backbone with a fresh classification head.

    Args:
        backbone: ``bundled``, a Hub id, or a folder.
        labels: class names in label-id order.
        pooling: ``mean``, ``attentive`` or ``class_token``.
        layer_weighted_sum: learn a weighted sum of all layers.
        random_weights: keep the architecture but draw the backbone's weights at random.
        spec_augment_time: share of frames that wav2vec2-like backbones mask in training.
        seed: of the head's weights (and the backbone's, if random).

    Raises:
        UserError: the backbone can't be loaded or is of an unsupported type.
    """
    location = locate_backbone(backbone)
    config = load_backbone_config(location)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.heart_sound_head = {"pooling": pooling, "layer_weighted_sum": layer_weighted_sum}
    # Layers dropped at random would make data-parallel runs hang, and SpecAugment masks set for
    # 15 s of speech crash on short windows; both are off unless asked for.
    for name, value in (
        ("layerdrop", 0.0),
        ("encoder_layerdrop", 0.0),
        ("apply_spec_augment", spec_augment_time > 0),
        ("mask_time_prob", spec_augment_time),
        ("mask_feature_prob", 0.0),
        ("use_weighted_layer_sum", False),
    ):
        if hasattr(config, name):
            setattr(config, name, value)
    model_class: Any = WINDOW_CLASSIFIERS[config.model_type]
    set_seed(seed)
    if random_weights:
        logger.warning("The backbone '%s' starts from RANDOM weights, as asked", backbone)
        return model_class(config)
    try:
        with quiet_transformers():
            model, loading = model_class.from_pretrained(
                location,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a checkpoint's own head has other classes
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"backbone '{backbone}': its weights can't be loaded ({first_line(error)}); expected "
            "model.safetensors beside config.json"
        ) from error
    absent = [key for key in absent_weights(loading) if key.split(".")[0] not in HEAD_MODULES]
    if absent:
        raise UserError(
            f"backbone '{backbone}': {len(absent)} of its weights are missing from the file or of "
            f"another shape (first: {absent[0]}); expected a complete checkpoint, since training "
            "would go on from random weights"
        )
    return model


def absent_weights(loading: dict[str, Any]) -> list[str]:
    """Weights that a checkpoint lacks or holds in another shape: they were drawn at random."""
    mismatched = {key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]}
    return sorted(set(loading["missing_keys"]) | mismatched)


def adapt(
    model: Any,
    adaptation: str,
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.05,
    lora_targets: list[str] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    freeze_feature_encoder: bool = True,
) -> nn.Module:
    """Chooses what trains: LoRA adapters + head, everything (``full``), or the head (``probe``).

    Returns:
        A ``PeftModel`` for ``lora``, else the model itself.

    Raises:
        UserError: ``lora_targets`` name no layer of the backbone.
    """
    family = family_of(model.config)
    head = head_modules(model)
    if adaptation == "lora":
        lora = LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=lora_targets or list(family.lora_targets),
            modules_to_save=head,
            use_rslora=use_rslora,
            use_dora=use_dora,
        )
        try:
            return get_peft_model(model, lora)
        except ValueError as error:
            raise UserError(
                f"lora_targets {lora_targets}: {first_line(error)} expected names of "
                f"linear layers, by default {' '.join(family.lora_targets)}"
            ) from error
    if adaptation == "probe":
        model.requires_grad_(False)
        for name in head:
            getattr(model, name).requires_grad_(True)
    elif freeze_feature_encoder and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    return model


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules outside the backbone that hold weights."""
    return [
        name
        for name in HEAD_MODULES
        if hasattr(model, name) and next(getattr(model, name).parameters(), None) is not None
    ]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Total and trainable parameters."""
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def save_classifier(
    folder: str | Path, model: nn.Module, feature_extractor: Any, preprocessing: dict[str, Any]
) -> None:
    """Writes a self-contained model folder; it appears whole or not at all.

    The folder holds the merged model and its config, the feature extractor, ``preprocessing.json``
    (windows, band, rate, labels: what inference needs), and the LoRA adapter in ``adapter/``.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet_transformers():
        if isinstance(model, PeftModel):
            model.save_pretrained(str(temporary / ADAPTER_FOLDER))
            merged: Any = model.merge_and_unload()
        else:
            merged = model
        merged.save_pretrained(temporary)
    feature_extractor.save_pretrained(temporary)
    text = json.dumps(preprocessing, indent=2) + "\n"
    (temporary / PREPROCESSING_FILE).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def load_classifier(folder: str | Path) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """Loads what ``save_classifier`` wrote.

    Returns:
        The merged model in evaluation mode, its feature extractor, and the preprocessing.

    Raises:
        UserError: a file is missing, malformed or of another model, or the folder is not an hb_ssl
            classifier.
    """
    folder = Path(folder)
    if not (folder / PREPROCESSING_FILE).is_file():
        raise UserError(
            f"{folder}: has no {PREPROCESSING_FILE}; expected the model/ folder of an hb-ssl run"
        )
    preprocessing = read_preprocessing(folder)
    config: Any = load_backbone_config(str(folder))
    if not hasattr(config, "heart_sound_head"):
        raise UserError(f"{folder}: config.json has no heart_sound_head; expected an hb-ssl model")
    labels = [config.id2label[number] for number in sorted(config.id2label)]
    if labels != preprocessing["labels"]:
        raise UserError(
            f"{folder}: config.json has the labels {', '.join(map(str, labels))} but "
            f"{PREPROCESSING_FILE} has {preprocessing['labels']}; expected the files of one model"
        )
    model_class: Any = WINDOW_CLASSIFIERS[config.model_type]
    try:
        with quiet_transformers():
            model, loading = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: its weights can't be loaded ({first_line(error)}); copy or "
            "download the model folder again"
        ) from error
    absent = absent_weights(loading)
    if absent:
        raise UserError(
            f"{folder}: {len(absent)} weights are missing from model.safetensors or of another "
            f"shape than config.json says (first: {absent[0]}); expected the files of one model"
        )
    return model.eval(), load_feature_extractor(str(folder)), preprocessing
