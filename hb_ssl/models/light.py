"""The bundled kind of classifier, an Audio Spectrogram Transformer, in plain torch for inference.

Importing transformers' models takes more than half of a cold start and 200 MB. Names, weights and
arithmetic here are those of its ``ASTForAudioClassification`` with our pooling, and tests hold both
to the same answers. Whatever else a model folder may hold is left to ``load_classifier``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from hb_ssl.data.log_mel import log_mel
from hb_ssl.errors import UserError
from hb_ssl.files import read_json
from hb_ssl.models.folders import read_preprocessing
from hb_ssl.models.pooling import NUM_CLASS_TOKENS, FramePooling

_QKV = ("query", "key", "value")
_RENAMED = (  # names in the checkpoint, names here
    ("audio_spectrogram_transformer.", ""),
    ("embeddings.patch_embeddings.projection", "patches"),
    ("embeddings.", ""),
    ("encoder.layer.", "layers."),
    ("attention.output.dense", "attended"),
    ("intermediate.dense", "widened"),
    ("output.dense", "narrowed"),
)


class ASTFeatureExtractor:
    """transformers' feature extractor of this name, without transformers.

    Args:
        config: the content of ``preprocessor_config.json``.
    """

    model_input_names = ("input_values",)

    def __init__(self, config: dict[str, Any]) -> None:
        self.sampling_rate: int = config["sampling_rate"]
        self.num_mel_bins: int = config["num_mel_bins"]
        self.max_length: int = config["max_length"]
        self.mean: float = config["mean"]
        self.std: float = config["std"]

    def __call__(
        self, windows: Sequence[np.ndarray], sampling_rate: int, return_tensors: str = "np"
    ) -> dict[str, np.ndarray]:
        """Windows ``[W]`` to normalised log-mel energies ``[N, T, M]``; missing frames are 0."""
        frames = np.zeros((len(windows), self.max_length, self.num_mel_bins), np.float32)
        for window, row in zip(windows, frames, strict=True):
            made = log_mel(window, sampling_rate, self.num_mel_bins)[: self.max_length]
            row[: len(made)] = made
        return {"input_values": (frames - self.mean) / (self.std * 2)}


class LightClassifier(nn.Module):
    """See the module; has no weights until ``load_state_dict``.

    Args:
        config: the content of ``config.json``.
    """

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.patch_size
        stride = (config.frequency_stride, config.time_stride)
        rows = (config.num_mel_bins - kernel) // stride[0] + 1
        columns = (config.max_length - kernel) // stride[1] + 1
        self.patches = nn.Conv2d(1, width, kernel, stride)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, width))
        num_tokens = NUM_CLASS_TOKENS + rows * columns
        self.position_embeddings = nn.Parameter(torch.empty(1, num_tokens, width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.pooling = FramePooling(config)
        self.classifier = nn.Sequential(
            OrderedDict(
                layernorm=nn.LayerNorm(width, config.layer_norm_eps),
                dense=nn.Linear(width, len(config.id2label)),
            )
        )

    def forward(self, input_values: torch.Tensor) -> SimpleNamespace:
        """Log-mel energies ``[N, T, M]`` to ``logits`` ``[N, C]``."""
        num = input_values.shape[0]  # not len(): the ONNX export would take it for a constant
        patches = self.patches(input_values.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)
        first = [token.expand(num, -1, -1) for token in (self.cls_token, self.distillation_token)]
        states = torch.cat([*first, patches], dim=1) + self.position_embeddings
        for layer in self.layers:
            states = layer(states)
        outputs = SimpleNamespace(last_hidden_state=self.layernorm(states))
        return SimpleNamespace(logits=self.classifier(self.pooling(outputs)))


class _Layer(nn.Module):
    """One transformer layer with the normalisation ahead of attention and of the MLP."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads: int = config.num_attention_heads
        self.layernorm_before = nn.LayerNorm(width, config.layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)  # three products in one
        self.attended = nn.Linear(width, width)
        self.layernorm_after = nn.LayerNorm(width, config.layer_norm_eps)
        self.widened = nn.Linear(width, config.intermediate_size)
        self.narrowed = nn.Linear(config.intermediate_size, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[N, T, D]`` to ``[N, T, D]``."""
        qkv = self.qkv(self.layernorm_before(states)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(query, key, value)
        states = states + self.attended(heard.transpose(1, 2).flatten(2))
        return states + self.narrowed(F.gelu(self.widened(self.layernorm_after(states))))


def load_light_classifier(
    folder: Path,
) -> tuple[LightClassifier, ASTFeatureExtractor, dict[str, Any]] | None:
    """Loads a saved classifier of this kind in a tenth of a second.

    Returns:
        As ``load_classifier``; ``None`` for a classifier of another kind and for a folder with
        anything wrong in it: ``load_classifier`` reads the one and explains the other.
    """
    extractor = load_light_features(folder)
    try:
        preprocessing = read_preprocessing(folder)
        config = SimpleNamespace(**read_json(folder / "config.json"))
        names = [config.id2label[str(i)] for i in range(len(config.id2label))]
        known = config.hidden_act == "gelu" and not config.heart_sound_head["layer_weighted_sum"]
        if extractor is None or not known or names != preprocessing["labels"]:
            return None
        with torch.device("meta"):
            network = LightClassifier(config)
        weights = _renamed(load_file(folder / "model.safetensors"), config.num_hidden_layers)
        network.load_state_dict(weights, assign=True)
    except (UserError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    except (OSError, RuntimeError, SafetensorError):
        return None
    return network.requires_grad_(False).eval(), extractor, preprocessing


def load_light_features(folder: Path) -> ASTFeatureExtractor | None:
    """The feature extractor of a saved AST; ``None`` for another one, or an unusual one."""
    try:
        config = read_json(folder / "preprocessor_config.json")
        known = config["feature_extractor_type"] == "ASTFeatureExtractor" and config["do_normalize"]
        return ASTFeatureExtractor(config) if known else None
    except (UserError, KeyError, TypeError):
        return None


def _renamed(stored: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint under the names of ``LightClassifier``, in float32."""
    weights = {}
    for name, value in stored.items():
        for old, new in _RENAMED:
            name = name.replace(old, new)
        weights[name] = value.float()
    for number in range(num_layers):
        before = f"layers.{number}.attention.attention"
        for kind in ("weight", "bias"):
            names = [f"{before}.{name}.{kind}" for name in _QKV]
            parts = [weights.pop(name) for name in names if name in weights]
            if parts:  # not so for biases that the checkpoint does without
                weights[f"layers.{number}.qkv.{kind}"] = torch.cat(parts)
    return weights
