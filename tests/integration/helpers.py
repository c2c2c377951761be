"""Small pieces shared by the integration tests."""

import itertools
from typing import Any

import pytest

from hb_ssl.pretraining import run

LABELS = ["artifact", "extrahls", "murmur", "normal"]


def preprocessing(**changes: Any) -> dict[str, Any]:
    """A ``preprocessing.json`` of a classifier with 1 s windows."""
    return {
        "labels": LABELS, "sampling_rate": 2000, "label_mode": "merge", "window_seconds": 1.0,
        "hop_seconds": 0.5, "band_low_hz": None, "band_high_hz": None, "backbone": "tiny",
        "random_weights": False, "adaptation": "full", "trained_on": "nothing", "synthetic": True,
        **changes,
    }  # fmt: skip


def interrupt_pretraining(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C in place of batch ``number``, counted from 0 with those of validation."""
    calls = itertools.count()
    original = run.make_batch

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments)

    patch.setattr(run, "make_batch", interrupted)
