"""Checkpoints to resume from, and the backbone as others load it."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hb_ssl.files import read_json, write_json_atomic

logger = logging.getLogger(__name__)


def save_backbone(
    backbone: PreTrainedModel, extractor: Any, folder: Path, config: Any = None
) -> None:
    """Writes config, fp16 safetensors and the feature extractor, each file whole.

    Args:
        backbone: what to save.
        extractor: its feature extractor.
        folder: where to; files of an earlier save are replaced.
        config: to write instead of the backbone's own, which training may have changed.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    half = copy.deepcopy(backbone).half()
    half.config = copy.deepcopy(config or backbone.config)
    half.save_pretrained(staging)
    extractor.save_pretrained(staging)
    # transformers 5 computes in the dtype that config.json names; half precision is for storage.
    saved = read_json(staging / "config.json")
    write_json_atomic(staging / "config.json", {**saved, "dtype": "float32"})
    (staging / "model.safetensors").chmod(0o644)
    folder.mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        path.replace(folder / path.name)
    staging.rmdir()


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimiser: Any,
    history: list,
    seconds: float,
    readers: list[Any] | None = None,
) -> None:
    temporary = folder / f".checkpoint.{os.getpid()}.tmp"
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "seconds": seconds,
        "readers": readers,  # where the processes of a streamed run stand in their shards
    }
    torch.save(state, temporary)
    temporary.replace(folder / "checkpoint.pt")


def load_checkpoint(
    folder: Path, resume: bool, model: nn.Module, optimiser: Any, history: list
) -> tuple[int, list, float, list[Any] | None]:
    path = folder / "checkpoint.pt"
    if not resume or not path.is_file():
        return 0, history, 0.0, None
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    logger.info("resumed at step %d", state["step"])
    return state["step"], state["history"], state["seconds"], state["readers"]
