"""Pooling over layers and frames, on top of the stock audio-classification models.

A stock model projects frames, averages them and classifies the mean. Here the same model classes
gain a ``pooling`` module: a learned weighted sum of the layers and attentive pooling. It is a
module, not a bare parameter, because PEFT trains and saves only whole modules beside adapters.
With ``pooling: mean`` and no layer sum it has no weights, and the checkpoint is a stock one.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hb_ssl.models.backbones import FAMILIES, family_of
from hb_ssl.models.pooling import FramePooling


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


WINDOW_CLASSIFIERS: dict[str, type[PreTrainedModel]] = {
    model_type: type(
        f"HeartSound{family.stock_class.__name__}", (_HeartSoundHead, family.stock_class), {}
    )
    for model_type, family in FAMILIES.items()
}
