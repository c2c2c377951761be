"""The wav2vec 2.0 objective on waveforms, computed by ``Wav2Vec2ForPreTraining``."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    _compute_mask_indices,
    _sample_negative_indices,
)

from hb_ssl.errors import UserError
from hb_ssl.pretraining.windows import Batch

# From soft to hard choices of codewords over the run (wav2vec 2.0, section 4.2); a checkpoint has
# been there already.
FIRST_GUMBEL_TEMPERATURE, LAST_GUMBEL_TEMPERATURE = 2.0, 0.5


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout, Gumbel noise and transformers' NumPy masks from one seed; restored afterwards."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
    np.random.set_state(state)


class Wav2Vec2Pretraining(nn.Module):
    """``Wav2Vec2ForPreTraining`` with its masks, negatives and schedule.

    Args:
        backbone: the model to train.
        mask_fraction: of the frames in hidden spans, overlaps counted twice.
        first_temperature: of the Gumbel softmax at the start of the run.
    """

    def __init__(
        self,
        backbone: Wav2Vec2ForPreTraining,
        mask_fraction: float,
        first_temperature: float = FIRST_GUMBEL_TEMPERATURE,
    ) -> None:
        super().__init__()
        self.saved_config = copy.deepcopy(backbone.config)  # as it came
        # Layers dropped at random would make data-parallel runs hang; masks are given to forward.
        backbone.config.layerdrop = 0.0
        backbone.config.apply_spec_augment = True
        backbone.config.mask_feature_prob = 0.0
        self.backbone = backbone
        self.mask_fraction = mask_fraction
        self.first_temperature = first_temperature

    def forward(self, batch: Batch, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Losses of one batch, per hidden frame.

        Args:
            batch: its views, two windows of each recording, are taken as they are.
            rng: draws masks, negatives, Gumbel noise and dropout.

        Returns:
            ``loss``, ``contrastive`` and ``diversity`` (Baevski et al. 2020, equations 2 to 4),
            and the ``perplexity`` of the codewords in use.
        """
        inputs = batch.views.flatten(0, 1)
        schedule = LAST_GUMBEL_TEMPERATURE / self.first_temperature
        self.backbone.set_gumbel_temperature(self.first_temperature * schedule**batch.progress)
        with _seeded(int(torch.randint(2**62, (), generator=rng)), inputs.device):
            hidden, negatives = self._masks(len(inputs), inputs.shape[1])
            output = self.backbone(
                inputs,
                mask_time_indices=torch.from_numpy(hidden).to(inputs.device),
                sampled_negative_indices=torch.from_numpy(negatives).to(inputs.device),
            )
        count = int(hidden.sum())
        return {
            "contrastive": output.contrastive_loss / count,
            "diversity": output.diversity_loss / count,
            "perplexity": output.codevector_perplexity.detach(),
            "loss": output.loss / count,
        }

    def _masks(self, num_windows: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.backbone.config
        shape = (num_windows, self.num_frames(num_samples))
        if shape[1] <= config.mask_time_length:
            raise UserError(
                f"a window of {num_samples} samples has {shape[1]} frames, no more than one hidden "
                f"span ({config.mask_time_length}); make window_seconds longer"
            )
        # Two spans at least, so that a hidden frame always has others to be told from.
        hidden = _compute_mask_indices(
            shape, self.mask_fraction, config.mask_time_length, min_masks=2
        )
        return hidden, _sample_negative_indices(shape, config.num_negatives, hidden)

    def num_frames(self, num_samples: int) -> int:
        """Frames that the convolutions make of a window."""
        return int(self.backbone._get_feat_extract_output_lengths(num_samples))

    @torch.no_grad()
    def describe(self, inputs: torch.Tensor) -> torch.Tensor:
        """Every hidden state of normalised windows ``[B, W]``, averaged over time.

        Returns:
            ``[B, L + 1, D]``.
        """
        output = self.backbone.wav2vec2(inputs, output_hidden_states=True)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        return torch.stack([state.float().mean(dim=1) for state in states], dim=1)

    def flops_per_pair(self, num_samples: int) -> float:
        """Estimated floating-point operations of two windows in one step.

        Six per weight and position for forward and backward (Kaplan et al. 2020, section 2.1), of
        the convolutions and the transformer; attention products and the quantiser are left out.
        """
        config = cast(Any, self.backbone.config)
        work, width, length = 0.0, 1, num_samples
        for size, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride):
            length = (length - kernel) // stride + 1
            work += length * width * size * kernel
            width = size
        layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
        work += length * config.num_hidden_layers * layer
        return 2 * 6 * work
