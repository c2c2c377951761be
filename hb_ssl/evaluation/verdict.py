"""From windows to a verdict: pooling, calibration, and the heart-sound gate, as already fitted.

Fitting and judging them is the work of ``calibration`` and ``out_of_distribution``, whose libraries
inference does without.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hb_ssl.errors import UserError
from hb_ssl.evaluation.hand_made_features import recording_features

SMALLEST = 1e-12  # probabilities below are taken as this, so that their logarithm is finite
CLIP = 5.0  # standard deviations
SILENT_PEAK = 1e-5  # of full scale, below one step of 16 bits


def pool_windows(window_logits: np.ndarray) -> np.ndarray:
    """Probabilities of a recording from the logits of its windows: softmax of the mean logits.

    The softmax cancels each window's log-partition, so this equals the normalised geometric mean
    of the window probabilities (the mean of their logarithms): a product of experts in which one
    sure window counts for more than an undecided one.

    Args:
        window_logits: ``[N, C]``, N >= 1 windows.

    Returns:
        ``[C]``, summing to 1.
    """
    logits = np.asarray(window_logits, dtype=np.float64)
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"got window logits of shape {logits.shape}; expected [N, C] with N >= 1")
    mean = logits.mean(axis=0)
    exponential = np.exp(mean - mean.max())
    return exponential / exponential.sum()


def calibrate(probabilities: np.ndarray, calibration: Mapping[str, Any]) -> np.ndarray:
    """``softmax(log p / temperature + bias)``.

    Args:
        probabilities: ``[..., C]``.
        calibration: ``{"temperature": float, "bias": [C floats], ...}``.

    Returns:
        ``[..., C]``, summing to 1.

    Raises:
        UserError: the calibration is for another number of classes, or has no positive temperature.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    bias = np.asarray(calibration.get("bias", []), dtype=np.float64)
    temperature = float(calibration.get("temperature", 0.0))
    if bias.shape != probabilities.shape[-1:] or not temperature > 0:
        raise UserError(
            f"calibration with temperature {temperature:g} and {bias.size} biases: expected a "
            f"temperature above 0 and {probabilities.shape[-1]} biases; calibrate the model again"
        )
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature + bias
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def expand_features(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Features ``[..., F]`` in standard deviations, and their squares: ``[..., 2 F]``."""
    standard = np.clip((features - mean) / scale, -CLIP, CLIP)
    return np.concatenate([standard, standard**2], axis=-1)


def score_features(features: np.ndarray, gate: Mapping[str, Any]) -> np.ndarray:
    """Gate scores ``[N]`` of ``[N, F]``: log odds, higher is less like a heart sound.

    Raises:
        UserError: the gate was made for other features.
    """
    if features.shape[-1] != len(gate["mean"]):
        raise UserError(
            f"heart-sound gate for {len(gate['mean'])} features, this version makes "
            f"{features.shape[-1]}; make the gate again with `hb-ssl evaluate RUN --full`"
        )
    expanded = expand_features(features, np.array(gate["mean"]), np.array(gate["scale"]))
    return expanded @ np.array([*gate["linear"], *gate["square"]]) + gate["intercept"]


def gate_score(waveform: np.ndarray, rate: int, gate: Mapping[str, Any]) -> float:
    """How little a recording sounds like a heart; above ``gate["threshold"]`` it is turned away.

    Args:
        waveform: mono ``[T]`` as recorded, before any band limit.
        rate: Hz.
        gate: ``heart_sound_gate`` of ``preprocessing.json``.
    """
    return float(score_features(recording_features(waveform, rate)[None], gate)[0])


def is_heart_sound(
    waveform: np.ndarray, rate: int, embedding: np.ndarray | None, gate: Mapping[str, Any]
) -> bool:
    """Whether the gate lets a recording through; silence never.

    Args:
        waveform: mono ``[T]``, before any band limit.
        rate: Hz.
        embedding: not used: on the recordings at hand the waveform's features suffice.
        gate: see ``gate_score``.
    """
    if np.ptp(waveform) < SILENT_PEAK:
        return False
    return gate_score(waveform, rate, gate) <= gate["threshold"]
