"""Which seconds of a recording drove the verdict."""

from itertools import pairwise

import numpy as np

from hb_ssl.audio import band_limit, resample, tile_to_length, window_starts
from hb_ssl.inference import HeartSoundClassifier

PATCH_SECONDS = 0.5  # about one heart cycle at most
MAX_PATCHES = 32  # a long recording gets longer patches, so the cost stays in proportion
LEFT_OVER = 0.03  # a patch is turned down by 30 dB; true silence occurs in no recording
FADE_SECONDS = 0.03


def occlusion_map(
    classifier: HeartSoundClassifier,
    waveform: np.ndarray,
    rate: int,
    label: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns the recording down patch by patch and watches the verdict.

    After Zeiler and Fergus, "Visualizing and understanding convolutional networks" (ECCV 2014).

    Args:
        classifier: whose verdict is explained.
        waveform: mono ``[T]`` in [-1, 1].
        rate: Hz.
        label: the class to explain; by default the most probable one.

    Returns:
        Middles of the patches in seconds ``[N]``, and their importance ``[N]``: how much the
        logarithm of the class's (uncalibrated) probability falls without the patch. Negative
        where the patch spoke against the class.
    """
    about = classifier.preprocessing
    model_rate, window = classifier.make_features.sampling_rate, classifier.make_features.window
    waveform = resample(np.asarray(waveform, np.float32), rate, model_rate)
    waveform = band_limit(waveform, model_rate, about["band_low_hz"], about["band_high_hz"])
    starts = np.array(
        window_starts(len(waveform), window, round(about["hop_seconds"] * model_rate))
    )
    edges = _patch_edges(len(waveform), model_rate)
    inputs = [_cut(waveform, starts, window)]
    touched = []
    for begin, end in pairwise(edges):
        numbers = np.flatnonzero((starts < end) & (starts + window > begin))
        touched.append(numbers)
        inputs.append(_cut(_turn_down(waveform, begin, end, model_rate), starts[numbers], window))
    logits = classifier.window_logits(np.concatenate(inputs))
    whole, changed = logits[: len(starts)], logits[len(starts) :]
    score = _log_softmax(whole.mean(axis=0))
    column = int(score.argmax()) if label is None else classifier.labels.index(label)
    importance = np.zeros(len(edges) - 1)
    first = 0
    for patch, numbers in enumerate(touched):
        without = whole.copy()
        without[numbers] = changed[first : first + len(numbers)]
        first += len(numbers)
        importance[patch] = score[column] - _log_softmax(without.mean(axis=0))[column]
    return (edges[:-1] + edges[1:]) / 2 / model_rate, importance


def _patch_edges(num_samples: int, rate: int) -> np.ndarray:
    """Edges ``[N + 1]`` in samples of equal patches over the whole recording."""
    count = int(np.clip(num_samples / rate / PATCH_SECONDS, 1, min(MAX_PATCHES, num_samples)))
    return np.linspace(0, num_samples, count + 1).round().astype(int)


def _turn_down(waveform: np.ndarray, begin: int, end: int, rate: int) -> np.ndarray:
    """A copy of ``[T]`` that is 30 dB softer from ``begin`` to ``end``, with soft edges."""
    fade = max(int(FADE_SECONDS * rate), 1)
    distance = np.minimum(np.arange(end - begin) + 1, np.arange(end - begin, 0, -1))
    depth = np.sin(np.pi / 2 * np.minimum(distance / fade, 1)) ** 2
    softer = waveform.copy()
    softer[begin:end] *= (1 - (1 - LEFT_OVER) * depth).astype(np.float32)
    return softer


def _cut(waveform: np.ndarray, starts: np.ndarray, window: int) -> np.ndarray:
    tiled = tile_to_length(waveform, window)
    return np.stack([tiled[start : start + window] for start in starts])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
