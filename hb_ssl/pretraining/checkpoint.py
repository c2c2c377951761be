"""Checkpoints to resume from, and the backbone as others load it."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import rotate_checkpoints

from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.runs import last_complete_checkpoint, seal_checkpoint

STATE_FILE = "state.pt"
KEPT_CHECKPOINTS = 2


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
    """Writes ``checkpoints/checkpoint-STEP`` and keeps the one before."""
    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "seconds": seconds,
        "readers": readers,  # where the processes of a streamed run stand in their shards
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
