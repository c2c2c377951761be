"""Checkpoints to resume from, and the backbone as others load it."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import ASTFeatureExtractor, ASTModel

from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.pretraining.objectives import PretrainModel

logger = logging.getLogger(__name__)


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
    temporary = folder / f".checkpoint.{os.getpid()}.tmp"
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "seconds": seconds,
    }
    torch.save(state, temporary)
    temporary.replace(folder / "checkpoint.pt")


def load_checkpoint(
    folder: Path, resume: bool, model: PretrainModel, optimiser: Any, history: list
) -> tuple[int, list, float]:
    path = folder / "checkpoint.pt"
    if not resume or not path.is_file():
        return 0, history, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    logger.info("resumed at step %d", state["step"])
    return state["step"], state["history"], state["seconds"]
