"""Pooling over layers and frames, on top of the stock audio-classification models.

A stock model projects frames, averages them and classifies the mean. Here the same model classes
gain a ``pooling`` module: a learned weighted sum of the layers and attentive pooling. It is a
module, not a bare parameter, because PEFT trains and saves only whole modules beside adapters.
With ``pooling: mean`` and no layer sum it has no weights, and the checkpoint is a stock one.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hb_ssl.errors import UserError
from hb_ssl.models.backbones import FAMILIES, family_of
from hb_ssl.models.pooling import NUM_CLASS_TOKENS, FramePooling


class _HeartSoundHead:
    """Mixin: the stock model's weights and names, our pooling, one forward for all families."""

    accepts_loss_kwargs = False  # the loss is computed by the trainer, as a mean per batch

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.pooling = FramePooling(config)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, FramePooling) and module.layer_logits is not None:
            nn.init.zeros_(module.layer_logits)

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classifies windows: ``[N, W]`` samples or ``[N, ...]`` features to logits ``[N, C]``."""
        inputs = input_values if input_values is not None else input_features
        backbone = getattr(self, family_of(self.config).backbone_name)  # type: ignore[attr-defined]
        outputs = backbone(inputs, output_hidden_states=self.pooling.needs_all_layers)
        pooled = self.pooling(outputs)
        # A linear projector commutes with the mean, so pooling first equals the stock order.
        if family_of(self.config).has_projector:  # type: ignore[attr-defined]
            pooled = self.projector(pooled)  # type: ignore[attr-defined]
        return SequenceClassifierOutput(logits=self.classifier(pooled))  # type: ignore[attr-defined]


def drop_tokens(model: Any, keep_fraction: float) -> None:
    """Makes an AST classifier see only some patch tokens of each training window (patchout).

    Which ones is drawn anew for every window and step; the class tokens always stay, and evaluation
    sees all tokens. Source: Koutini et al. 2022 (PaSST), unstructured patchout.

    Args:
        model: a window classifier.
        keep_fraction: share of the patch tokens kept.

    Raises:
        UserError: the backbone is no AST.
    """
    if model.config.model_type != "audio-spectrogram-transformer":
        raise UserError(
            f"keep_fraction {keep_fraction}: backbone type '{model.config.model_type}' can't leave "
            "tokens out; expected an audio-spectrogram-transformer, or set keep_fraction to 1"
        )

    def keep_some(embeddings: nn.Module, inputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        if not model.training:
            return tokens
        batch, length, width = tokens.shape
        patches = length - NUM_CLASS_TOKENS
        order = torch.rand((batch, patches), device=tokens.device).argsort(dim=1)
        kept = order[:, : max(1, round(keep_fraction * patches))].sort(dim=1).values
        special = torch.arange(NUM_CLASS_TOKENS, device=tokens.device).expand(batch, -1)
        kept = torch.cat([special, kept + NUM_CLASS_TOKENS], dim=1)
        return tokens.gather(1, kept[:, :, None].expand(-1, -1, width))

    model.audio_spectrogram_transformer.embeddings.register_forward_hook(keep_some)


WINDOW_CLASSIFIERS: dict[str, type[PreTrainedModel]] = {
    model_type: type(
        f"HeartSound{family.stock_class.__name__}", (_HeartSoundHead, family.stock_class), {}
    )
    for model_type, family in FAMILIES.items()
}
