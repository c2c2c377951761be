"""wav2vec2 with its quantiser: a small one for heart sounds at 2 kHz, or a checkpoint."""

import logging
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    PreTrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
)

from hb_ssl.errors import UserError, first_line
from hb_ssl.models.backbones import load_backbone_config, load_feature_extractor, quiet_transformers
from hb_ssl.models.classifier import absent_weights
from hb_ssl.models.pcg import PCG_SAMPLING_RATE

logger = logging.getLogger(__name__)

HEADS = ("quantizer", "project_q", "project_hid")


def small_wav2vec2_config(hidden_size: int, num_layers: int, num_heads: int) -> Wav2Vec2Config:
    """A wav2vec2 for heart sounds at 2 kHz: 37.5 ms of audio a frame, 50 frames a second.

    Layer norm instead of the group norm of wav2vec2-base: group norm runs over the whole window, so
    that the frames of a beat would change with what else the window (or a batch's padding) holds.

    Args:
        hidden_size: width D.
        num_layers: transformer layers.
        num_heads: attention heads; must divide ``hidden_size``.
    """
    if hidden_size % num_heads:
        raise UserError(f"hidden_size {hidden_size}: expected a multiple of {num_heads} heads")
    return Wav2Vec2Config(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        conv_dim=[128] * 4,
        conv_stride=[5, 2, 2, 2],
        conv_kernel=[10, 4, 4, 2],
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=64,  # 1.3 s: a heart cycle
        num_conv_pos_embedding_groups=min(8, num_heads),
        # 32 * 32 codewords: there is less to tell apart than in speech.
        num_codevectors_per_group=32,
        codevector_dim=64,
        proj_codevector_dim=64,
        num_negatives=20,
        classifier_proj_size=hidden_size,
        # No dropout: the masks change every window enough, and it costs a fifth of the CPU time.
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        vocab_size=32,
    )


def small_feature_extractor() -> Wav2Vec2FeatureExtractor:
    """The extractor of a backbone from scratch: 2 kHz, every window normalised alone."""
    return Wav2Vec2FeatureExtractor(
        sampling_rate=PCG_SAMPLING_RATE, do_normalize=True, return_attention_mask=False
    )


def load_wav2vec2_extractor(backbone: str) -> Wav2Vec2FeatureExtractor:
    """The feature extractor of a wav2vec2 checkpoint.

    Raises:
        UserError: it can't be loaded, or the backbone is of another family.
    """
    _checked_config(backbone)
    return load_feature_extractor(backbone)


def _checked_config(backbone: str) -> PreTrainedConfig:
    config = load_backbone_config(backbone)
    if config.model_type != "wav2vec2":
        raise UserError(
            f"backbone '{backbone}' is of type {config.model_type}: objective wav2vec2 goes on "
            "from a wav2vec2 checkpoint only, e.g. facebook/wav2vec2-base"
        )
    return config


def load_wav2vec2(backbone: str) -> Wav2Vec2ForPreTraining:
    """A checkpoint with its quantiser, or with a new one if it was saved without.

    Args:
        backbone: Hub id or folder.

    Raises:
        UserError: it can't be loaded, is of another family, or lacks weights of the encoder.
    """
    config = _checked_config(backbone)
    model_class: Any = Wav2Vec2ForPreTraining
    try:
        with quiet_transformers():
            model, loading = model_class.from_pretrained(
                backbone, config=config, dtype=torch.float32, use_safetensors=True,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"backbone '{backbone}': its weights can't be loaded ({first_line(error)}); expected "
            "model.safetensors beside config.json"
        ) from error
    absent = absent_weights(loading)
    lost = [name for name in absent if name.split(".")[0] not in HEADS]
    if lost:
        raise UserError(
            f"backbone '{backbone}': {len(lost)} of its weights are missing from the file or of "
            f"another shape (first: {lost[0]}); expected a complete checkpoint, since pre-training "
            "would go on from random weights"
        )
    if absent:
        logger.warning(
            "backbone '%s' was saved without its quantiser: %s start from RANDOM weights",
            backbone, ", ".join(absent),
        )  # fmt: skip
    return model
