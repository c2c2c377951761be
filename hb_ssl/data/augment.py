"""Waveform augmentations that imitate other rooms, devices and hearts.

Every function takes a mono waveform ``[T]`` and a ``numpy.random.Generator``; the same generator
state gives the same output, which is what makes a resumed run equal an uninterrupted one.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torchaudio.functional as AF

from hb_ssl.audio import band_limit, random_window

QUIETEST_NOISE_SNR_DB = 40.0  # added noise weaker than this changes nothing
STRETCH_FRAME_SECONDS = 0.064  # two frames fit in one S1


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations apply, each with chance ``probability``; the default changes nothing."""

    probability: float = 0.0
    gain_db: float = 0.0
    noise_snr_db: float | None = None
    time_stretch: float = 0.0
    low_pass_hz: float | None = None


def augmented_window(
    waveform: np.ndarray,
    window: int,
    sampling_rate: int,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> np.ndarray:
    """A random window ``[W]`` of a recording ``[T]``, augmented."""
    rate = 1.0
    if augmentation.time_stretch and rng.random() < augmentation.probability:
        rate = float(rng.uniform(1 - augmentation.time_stretch, 1 + augmentation.time_stretch))
    segment = random_window(waveform, round(window * rate), rng)
    if rate != 1.0:
        segment = time_stretch(segment, sampling_rate, window)
    nyquist = sampling_rate / 2
    low_pass = augmentation.low_pass_hz
    if low_pass is not None and low_pass < nyquist and rng.random() < augmentation.probability:
        edge = float(np.exp(rng.uniform(np.log(low_pass), np.log(nyquist))))
        segment = band_limit(segment, sampling_rate, None, edge)
    if augmentation.noise_snr_db is not None and rng.random() < augmentation.probability:
        snr_db = rng.uniform(
            augmentation.noise_snr_db, max(QUIETEST_NOISE_SNR_DB, augmentation.noise_snr_db)
        )
        segment = add_noise(segment, float(snr_db), rng)
    if augmentation.gain_db and rng.random() < augmentation.probability:
        gain_db = rng.uniform(-augmentation.gain_db, augmentation.gain_db)
        segment = segment * np.float32(10 ** (gain_db / 20))
    return segment


def add_noise(waveform: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Adds noise whose spectrum falls with a random power (white to brown) at ``snr_db``."""
    spectrum = np.fft.rfft(rng.standard_normal(len(waveform)))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, len(waveform))
    noise_power = np.mean(noise**2)
    scale = np.sqrt(np.mean(waveform**2) / max(noise_power, 1e-20) / 10 ** (snr_db / 10))
    return (waveform + scale * noise).astype(np.float32)


def time_stretch(waveform: np.ndarray, sampling_rate: int, num_samples: int) -> np.ndarray:
    """Stretches ``[T]`` to ``num_samples`` (phase vocoder): the tempo changes, not the pitch."""
    n_fft = 2 ** round(np.log2(STRETCH_FRAME_SECONDS * sampling_rate))
    hop = n_fft // 4
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(
        torch.from_numpy(np.ascontiguousarray(waveform)), n_fft, hop, window=window,
        return_complex=True,
    )  # fmt: skip
    advance = torch.linspace(0, torch.pi * hop, spectrum.shape[0])[:, None]
    stretched = AF.phase_vocoder(spectrum, len(waveform) / num_samples, advance)
    return torch.istft(stretched, n_fft, hop, window=window, length=num_samples).numpy()


def mask_spectrogram(
    features: np.ndarray,
    time_axis: int,
    time_share: float,
    frequency_share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """SpecAugment (Park et al. 2019): one masked stretch of frames and one of bands.

    Args:
        features: ``[T, M]`` or ``[M, T]``.
        time_axis: which axis is time.
        time_share: largest share of the frames masked.
        frequency_share: largest share of the bands masked.
        rng: random generator.
    """
    masked = features.copy()
    for axis, share in ((time_axis, time_share), (1 - time_axis, frequency_share)):
        size = masked.shape[axis]
        width = int(rng.integers(int(size * share) + 1))
        start = int(rng.integers(size - width + 1))
        stretch = [slice(None), slice(None)]
        stretch[axis] = slice(start, start + width)
        masked[tuple(stretch)] = features.mean()
    return masked
