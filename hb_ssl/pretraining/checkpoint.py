"""Checkpoints to resume from, and the backbone as others load it."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import ASTFeatureExtractor, ASTModel
from transformers.trainer_utils import rotate_checkpoints

from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.pretraining.objectives import PretrainModel
from hb_ssl.runs import last_complete_checkpoint, seal_checkpoint

STATE_FILE = "state.pt"
KEPT_CHECKPOINTS = 2


def save_backbone(backbone: ASTModel, extractor: ASTFeatureExtractor, folder: Path) -> None:
    """Writes config, fp16 safetensors and the feature extractor, each file whole."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    half = ASTModel(backbone.config)
    half.load_state_dict(backbone.state_dict())
    half.half().save_pretrained(staging)
    extractor.save_pretrained(staging)
    # transformers 5 computes in the dtype that config.json names; half precision is for storage.
    config = read_json(staging / "config.json")
    write_json_atomic(staging / "config.json", {**config, "dtype": "float32"})
    (staging / "model.safetensors").chmod(0o644)
    folder.mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        path.replace(folder / path.name)
    staging.rmdir()


def save_checkpoint(
    folder: Path, step: int, model: PretrainModel, optimiser: Any, history: list, seconds: float
) -> None:
    """Writes ``checkpoints/checkpoint-STEP`` and keeps the one before."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "seconds": seconds,
    }
    torch.save(state, checkpoint / STATE_FILE)
    seal_checkpoint(checkpoint)
    rotate_checkpoints(str(checkpoint.parent), KEPT_CHECKPOINTS)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, ``None`` where there is none at all.

    Raises:
        UserError: there are damaged checkpoints only.
    """
    checkpoint = last_complete_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return None
    return torch.load(Path(checkpoint) / STATE_FILE, map_location="cpu", weights_only=True)
