"""Small pieces shared by the integration tests."""

from typing import Any

LABELS = ["artifact", "extrahls", "murmur", "normal"]


def preprocessing(**changes: Any) -> dict[str, Any]:
    """A ``preprocessing.json`` of a classifier with 1 s windows."""
    return {
        "labels": LABELS, "sampling_rate": 2000, "label_mode": "merge", "window_seconds": 1.0,
        "hop_seconds": 0.5, "band_low_hz": None, "band_high_hz": None, "backbone": "tiny",
        "random_weights": False, "adaptation": "full", "trained_on": "nothing", "synthetic": True,
        **changes,
    }  # fmt: skip
