"""Self-supervised objectives on an ``ASTModel``: agreement, self-distillation, masked contrast."""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ASTModel

from hb_ssl.pretraining.simulated import EVENTS, FINDINGS
from hb_ssl.pretraining.windows import Batch

MASK_BLOCK = 4  # tokens; patches overlap, so single tokens could be read off their neighbours


def block_mask(
    batch: int, num_tokens: int, keep_fraction: float, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits token positions into kept and hidden ones, in blocks of ``MASK_BLOCK`` tokens.

    Returns:
        Sorted positions ``[B, K]`` to keep and ``[B, num_tokens - K]`` to hide; every row has its
        own, all rows hold as many.
    """
    num_blocks = -(-num_tokens // MASK_BLOCK)
    score = torch.rand((batch, num_blocks), generator=rng).repeat_interleave(MASK_BLOCK, dim=1)
    order = score[:, :num_tokens].argsort(dim=1, stable=True)
    num_kept = max(1, round(keep_fraction * num_tokens))
    return order[:, :num_kept].sort(dim=1).values, order[:, num_kept:].sort(dim=1).values


def _take(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def encode(
    model: ASTModel, inputs: torch.Tensor, kept: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Hidden states of an ``ASTModel`` that sees some of its tokens only.

    With ``kept=None`` the last state is ``model(inputs).last_hidden_state``.

    Args:
        model: its dropout must be 0.
        inputs: normalised log-mel ``[B, F, M]``.
        kept: token positions ``[B, K]``.

    Returns:
        Embedding, then the output of every layer, the last one after the final layer norm; each
        ``[B, 2 + K, D]``, the class and distillation tokens first.
    """
    embeddings = model.embeddings
    hidden = embeddings.patch_embeddings(inputs) + embeddings.position_embeddings[:, 2:]
    if kept is not None:
        hidden = _take(hidden, kept)
    special = torch.cat([embeddings.cls_token, embeddings.distillation_token], dim=1)
    special = special + embeddings.position_embeddings[:, :2]
    hidden = torch.cat([special.expand(len(hidden), -1, -1), hidden], dim=1)
    states = [hidden]
    for layer in model.layers:
        hidden = layer(hidden)
        states.append(hidden)
    states[-1] = model.layernorm(hidden)
    return states


def _readout(last_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The window's vector ``[B, D]`` (mean of the class tokens, as AST's pooler) and its tokens."""
    return last_state[:, :2].mean(dim=1), last_state[:, 2:]


def agreement_loss(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent over ``[B, P]`` projections; all other projections of the batch are negatives.

    Source: Chen et al. 2020 (SimCLR), equation 1.
    """
    batch = len(first)
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * batch, device=z.device).roll(batch)
    return F.cross_entropy(similarity, partner)


def masked_contrast_loss(
    predicted: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE of each hidden position against the other hidden ones of its window.

    Source: Baevski et al. 2020 (wav2vec 2.0), equation 3, with continuous targets.

    Args:
        predicted: ``[B, N, P]``.
        targets: ``[B, N, P]``.
        temperature: softmax temperature.
    """
    predicted = F.normalize(predicted.float(), dim=-1)
    targets = F.normalize(targets.float(), dim=-1)
    logits = predicted @ targets.transpose(1, 2) / temperature
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


def murmur_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy ``[B]`` against 1 or 0, both classes weighing the same; -1 is left out.

    A batch without one of the classes scores the other alone; without both, 0.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), labels.clamp_min(0).float(), reduction="none"
    )
    means = [losses[labels == value].mean() for value in (0, 1) if (labels == value).any()]
    return torch.stack(means).mean() if means else 0.0 * losses.sum()


class PretrainModel(nn.Module):
    """A backbone with the heads of its objective.

    Args:
        backbone: the model to train.
        objective: ``agreement`` (two views of a recording agree), ``distillation`` (predict the
            states of an averaged teacher at hidden positions), ``agreement_distillation`` (their
            sum), ``masked_contrast`` (tell the patch at a hidden position from others: the
            wav2vec2 baseline).
        keep_fraction: share of tokens that the student sees.
        temperature: of the contrastive softmax.
        distillation_weight: of the second term in ``agreement_distillation``.
        simulated_weight: of the supervised loss on simulated windows; 0 leaves it out.
        murmur_weight: of the supervised murmur loss on labelled windows; 0 leaves it out.
    """

    def __init__(
        self,
        backbone: ASTModel,
        objective: str,
        keep_fraction: float,
        temperature: float,
        distillation_weight: float,
        simulated_weight: float = 0.0,
        murmur_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.keep_fraction = keep_fraction
        self.temperature = temperature
        self.distillation_weight = distillation_weight
        self.simulated_weight = simulated_weight
        self.murmur_weight = murmur_weight
        width = backbone.config.hidden_size
        if "agreement" in objective:
            self.projector = nn.Sequential(
                nn.Linear(width, 512),
                nn.BatchNorm1d(512),
                nn.GELU(),
                nn.Linear(512, 512),
                nn.BatchNorm1d(512),
                nn.GELU(),
                nn.Linear(512, 128, bias=False),
            )
        if objective != "agreement":
            self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.position = nn.Parameter(0.02 * torch.randn(1, self.num_tokens, width))
            layer = nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )  # fmt: skip
            self.predictor = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.prediction = nn.Linear(width, width)
        if simulated_weight:
            self.event_head = nn.Linear(width, len(EVENTS))
            self.finding_head = nn.Linear(width, len(FINDINGS))
        if murmur_weight:
            self.murmur_head = nn.Linear(width, 1)
        if "distillation" in objective:
            self.teacher = cast(ASTModel, copy.deepcopy(backbone).requires_grad_(False))
        if objective == "masked_contrast":
            bins = backbone.config.num_mel_bins  # patches are square
            self.patch_target = nn.Linear(bins * bins, width)

    @property
    def num_tokens(self) -> int:
        """Patch tokens of a full window."""
        return self.backbone.embeddings.position_embeddings.shape[1] - 2

    def forward(self, batch: Batch, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Losses of one batch.

        Args:
            batch: windows and what is known of them.
            rng: draws the masks.

        Returns:
            ``loss`` and its named parts, each a scalar.
        """
        parts: dict[str, torch.Tensor] = {}
        views, clean = batch.views, batch.clean
        pairs = views.shape[1]
        inputs = views.flatten(0, 1) if "agreement" in self.objective else views[0]
        kept, hidden = block_mask(len(inputs), self.num_tokens, self.keep_fraction, rng)
        kept, hidden = kept.to(views.device), hidden.to(views.device)
        pooled, tokens = _readout(encode(self.backbone, inputs, kept)[-1])
        if "agreement" in self.objective:
            first, second = self.projector(pooled).chunk(2)
            parts["agreement"] = agreement_loss(first, second, self.temperature)
        if self.objective != "agreement":
            predicted = self._predict(tokens[:pairs], kept[:pairs], hidden[:pairs])
            if self.objective == "masked_contrast":
                targets = self.patch_target(_take(self._patches(clean), hidden))
                parts["masked_contrast"] = masked_contrast_loss(predicted, targets, 0.1)
            else:
                targets = _take(self._teacher_targets(clean), hidden[:pairs])
                parts["distillation"] = F.mse_loss(predicted.float(), targets)
        if self.murmur_weight:
            labels = batch.murmur.repeat(len(inputs) // pairs)
            parts["murmur"] = murmur_loss(self.murmur_head(pooled)[:, 0], labels)
        if self.simulated_weight:
            parts["events"], parts["finding"] = self._simulated_losses(batch)
        weights = {
            "distillation": self.distillation_weight if "agreement" in parts else 1.0,
            "murmur": self.murmur_weight,
            "events": self.simulated_weight,
            "finding": self.simulated_weight,
        }
        parts["loss"] = torch.stack([weights.get(k, 1.0) * v for k, v in parts.items()]).sum()
        return parts

    @torch.no_grad()
    def describe(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean over time of every hidden state, and last the class tokens.

        Args:
            inputs: normalised log-mel ``[B, F, M]``.

        Returns:
            ``[B, L + 2, D]``.
        """
        states = encode(self.backbone, inputs)
        pooled = [s[:, 2:].float().mean(dim=1) for s in states]
        pooled.append(states[-1][:, :2].float().mean(dim=1))
        return torch.stack(pooled, dim=1)

    def _simulated_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        assert batch.simulated is not None
        assert batch.events is not None and batch.finding is not None
        pooled, tokens = _readout(encode(self.backbone, batch.simulated)[-1])
        config = self.backbone.config
        # A token answers for the frames around the middle of its patch.
        first = (config.num_mel_bins - config.time_stride) // 2
        around = batch.events[:, first : first + tokens.shape[1] * config.time_stride]
        around = around.unflatten(1, (tokens.shape[1], config.time_stride)).amax(dim=2)
        events = F.binary_cross_entropy_with_logits(self.event_head(tokens).float(), around)
        finding = F.cross_entropy(self.finding_head(pooled).float(), batch.finding)
        return events, finding

    def _predict(
        self, tokens: torch.Tensor, kept: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        masks = self.mask_token.expand(len(tokens), hidden.shape[1], -1)
        sequence = torch.cat([tokens, masks.to(tokens.dtype)], dim=1)
        positions = torch.cat([kept, hidden], dim=1)
        sequence = sequence + _take(self.position.expand(len(tokens), -1, -1), positions)
        return self.prediction(self.predictor(sequence)[:, kept.shape[1] :])

    @torch.no_grad()
    def _teacher_targets(self, clean: torch.Tensor) -> torch.Tensor:
        # The mean of the upper half of the layers, each normalised (data2vec, section 3.3).
        states = encode(self.teacher, clean)[1 + len(self.teacher.layers) // 2 :]
        width = states[0].shape[-1]
        mean = torch.stack([F.layer_norm(s[:, 2:].float(), (width,)) for s in states]).mean(dim=0)
        return F.layer_norm(mean, (width,))

    def _patches(self, inputs: torch.Tensor) -> torch.Tensor:
        config = self.backbone.config
        return inputs.unfold(1, config.num_mel_bins, config.time_stride).flatten(2)

    @torch.no_grad()
    def update_teacher(self, decay: float) -> None:
        """Moves the teacher towards the student: ``decay * teacher + (1 - decay) * student``."""
        if "distillation" not in self.objective:
            return
        for teacher, student in zip(self.teacher.parameters(), self.backbone.parameters()):
            teacher.lerp_(student, 1 - decay)
