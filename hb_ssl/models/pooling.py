"""Pooling over layers and frames: one vector per window."""

from typing import Any

import torch
from torch import nn

from hb_ssl.errors import UserError

NUM_CLASS_TOKENS = 2  # AST puts a [CLS] and a distillation token before the patches


class FramePooling(nn.Module):
    """Turns the hidden states of a backbone into one vector per window.

    Args:
        config: the backbone's config with a ``heart_sound_head`` entry.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        options = config.heart_sound_head
        self.kind: str = options["pooling"]
        self.num_class_tokens = (
            NUM_CLASS_TOKENS if config.model_type == "audio-spectrogram-transformer" else 0
        )
        if self.kind == "class_token" and not self.num_class_tokens:
            raise UserError(
                f"pooling 'class_token': backbone type '{config.model_type}' has no class tokens; "
                "expected mean or attentive"
            )
        num_states = config.num_hidden_layers + 1  # the embeddings and every layer
        self.layer_logits = (
            nn.Parameter(torch.zeros(num_states)) if options["layer_weighted_sum"] else None
        )
        self.frame_score = nn.Linear(config.hidden_size, 1) if self.kind == "attentive" else None

    @property
    def needs_all_layers(self) -> bool:
        return self.layer_logits is not None

    def forward(self, outputs: Any) -> torch.Tensor:
        """Pools backbone outputs with states ``[N, T, D]`` to ``[N, D]``."""
        if self.layer_logits is None:
            states = outputs.last_hidden_state
        else:
            weights = self.layer_logits.softmax(0)
            states = sum(w * s for w, s in zip(weights, outputs.hidden_states, strict=True))
        if self.kind == "class_token":
            return states[:, : self.num_class_tokens].mean(dim=1)
        frames = states[:, self.num_class_tokens :]
        if self.frame_score is None:
            return frames.mean(dim=1)
        attention = self.frame_score(torch.tanh(frames)).softmax(dim=1)  # [N, T, 1]
        return (attention * frames).sum(dim=1)
