"""How the answers change when a recording gets worse: one curve a kind of damage."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import soundfile as sf
from tqdm import tqdm

from hb_ssl.audio import resample
from hb_ssl.data.augment import time_stretch
from hb_ssl.data.synthetic_noise import band_noise
from hb_ssl.errors import UserError
from hb_ssl.evaluation.selective import uar_of

Classify = Callable[[np.ndarray, int], np.ndarray]

CODEC_RATE = 16_000  # Hz; a rate that MP3, Vorbis and Opus all take
CODECS = {"MP3": ("MP3", "MPEG_LAYER_III"), "Ogg Vorbis": ("OGG", "VORBIS"),
          "Opus": ("OGG", "OPUS")}  # fmt: skip
FULL_SCALE = 32767  # 16 bits
# Damage -> (unit, levels from harmless to bad, what it is).
DAMAGES: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "noise": ("dB SNR", (30, 20, 15, 10, 5, 0), "pink noise above 20 Hz added"),
    "duration": ("s", (10, 7.5, 5, 3, 2, 1), "cut to its middle seconds"),
    "rate": ("kHz", (48, 16, 8, 4, 2, 1), "resampled to this rate before it is handed over"),
    "gain": ("dB", (20, 0, -20, -40, -60), "amplified, then stored with 16 bits"),
    "clipping": ("of peak", (1.0, 0.5, 0.3, 0.2, 0.1), "cut off at this share of its peak"),
    "codec": ("", tuple(CODECS), "encoded and decoded at 16 kHz, libsndfile's own quality"),
    "heart_rate": ("x", (0.6, 0.8, 1.0, 1.25, 1.6), "beats faster or slower, at the same pitch"),
}


def damage(
    kind: str, level: Any, waveform: np.ndarray, rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """A damaged recording and its new rate.

    Args:
        kind: one of ``DAMAGES``.
        level: one of its levels.
        waveform: mono ``[T]``.
        rate: Hz.
        rng: of the noise.

    Raises:
        ValueError: unknown kind.
        UserError: this libsndfile lacks the codec.
    """
    if kind == "noise":
        noise = band_noise(len(waveform), rate, 20.0, 0.45 * rate, rng, slope_db=-3.0)
        level_of = np.sqrt(np.mean(waveform.astype(np.float64) ** 2))
        return (waveform + level_of * 10 ** (-level / 20) * noise).astype(np.float32), rate
    if kind == "duration":
        kept = min(round(level * rate), len(waveform))
        start = (len(waveform) - kept) // 2
        return waveform[start : start + kept], rate
    if kind == "rate":
        return resample(waveform, rate, round(1000 * level)), round(1000 * level)
    if kind == "gain":
        louder = np.clip(waveform * 10 ** (level / 20), -1, 1)
        return (np.round(louder * FULL_SCALE) / FULL_SCALE).astype(np.float32), rate
    if kind == "clipping":
        edge = level * np.abs(waveform).max()
        return np.clip(waveform, -edge, edge), rate
    if kind == "codec":
        return _through_codec(resample(waveform, rate, CODEC_RATE), str(level)), CODEC_RATE
    if kind == "heart_rate":
        return time_stretch(waveform, rate, max(round(len(waveform) / level), 1)), rate
    raise ValueError(f"damage '{kind}': expected one of {', '.join(DAMAGES)}")


def _through_codec(waveform: np.ndarray, codec: str) -> np.ndarray:
    container, subtype = CODECS[codec]
    if subtype not in sf.available_subtypes(container):
        raise UserError(f"libsndfile {sf.__libsndfile_version__} has no {codec}; update soundfile")
    buffer = io.BytesIO()
    sf.write(buffer, waveform, CODEC_RATE, format=container, subtype=subtype)
    buffer.seek(0)
    decoded, _ = sf.read(buffer, dtype="float32")
    return decoded


def robustness_curves(
    classify: Classify,
    recordings: Sequence[tuple[np.ndarray, int]],
    label_ids: Sequence[int],
    kinds: Sequence[str] = tuple(DAMAGES),
) -> dict[str, Any]:
    """Scores of undamaged and damaged recordings.

    Args:
        classify: waveform ``[T]`` and rate to probabilities ``[C]``; where each recording has its
            own model (cross-validation), see ``classify_each``.
        recordings: waveform and rate each, unseen in training.
        label_ids: true classes.
        kinds: damages to try.

    Returns:
        ``{"n", "clean": {"uar", "accuracy"}, "curves": {kind: {"unit", "what", "points"}}}``; a
        point has ``level``, ``uar``, ``accuracy`` and ``same``, the share of answers that stay.
        ``refused`` counts recordings that the classifier would not take; they count as wrong.
        A codec that this machine lacks is named in ``left_out``.
    """
    return robustness_curves_each([classify] * len(recordings), recordings, label_ids, kinds)


def robustness_curves_each(
    classifiers: Sequence[Classify],
    recordings: Sequence[tuple[np.ndarray, int]],
    label_ids: Sequence[int],
    kinds: Sequence[str] = tuple(DAMAGES),
) -> dict[str, Any]:
    """``robustness_curves`` with a classifier for every recording."""
    true = np.asarray(label_ids)
    levels = [(kind, level) for kind in kinds for level in DAMAGES[kind][1]]
    clean = np.array([int(own(*r).argmax()) for own, r in zip(classifiers, recordings)])
    curves: dict[str, Any] = {
        kind: {"unit": DAMAGES[kind][0], "what": DAMAGES[kind][2], "points": []} for kind in kinds
    }
    left_out = []
    for kind, level in tqdm(levels, desc="robustness", unit="level", disable=None, leave=False):
        answers = np.full(len(recordings), -1)
        refused = 0
        try:
            for number, (waveform, rate) in enumerate(recordings):
                rng = np.random.default_rng(number)
                worse = damage(kind, level, waveform, rate, rng)
                try:
                    answers[number] = int(classifiers[number](*worse).argmax())
                except UserError:
                    refused += 1
        except UserError as error:
            left_out.append(f"{kind} {level}: {error}")
            continue
        curves[kind]["points"].append(
            {
                "level": level,
                "uar": uar_of(true, answers),
                "accuracy": float((answers == true).mean()),
                "same": float((answers == clean).mean()),
                "refused": refused,
            }
        )
    return {
        "n": len(recordings),
        "clean": {"uar": uar_of(true, clean), "accuracy": float((clean == true).mean())},
        "curves": curves,
        "left_out": left_out,
    }
