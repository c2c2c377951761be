"""Augmentation of log-mel windows that imitates other devices, contact pressure and noise.

Everything works on natural-log energies ``[B, F, M]``: a filter adds a curve over frequency, noise
adds energies. So no audio is decoded or filtered during training.
"""

import math

import torch

_NEPERS_PER_DB = math.log(10) / 10  # of energy
LOG_FLOOR = math.log(1.1920928955078125e-07)  # Kaldi's smallest energy


def _uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def _chance(batch: int, probability: float, rng: torch.Generator) -> torch.Tensor:
    return (torch.rand((batch, 1, 1), generator=rng) < probability).float()


def device_curve(batch: int, centres: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Random frequency response ``[B, 1, M]`` in nepers of energy.

    A tilt of up to 6 dB an octave, two smooth bumps, in 40 % a low-pass between 150 and 800 Hz
    (PASCAL's stethoscope cuts near 195 Hz), in 20 % a high-pass between 30 and 90 Hz.

    Args:
        batch: B.
        centres: filter centres ``[M]`` in Hz.
        rng: source of randomness.
    """
    octaves = torch.log2(centres / 100.0)
    curve = _uniform((batch, 1, 1), -6, 6, rng) * octaves
    for _ in range(2):
        centre = _uniform((batch, 1, 1), -1.5, 3.0, rng)
        width = _uniform((batch, 1, 1), 0.3, 1.0, rng)
        height = _uniform((batch, 1, 1), -8, 8, rng)
        curve = curve + height * torch.exp(-(((octaves - centre) / width) ** 2))
    cut = torch.log2(150 * (800 / 150) ** _uniform((batch, 1, 1), 0, 1, rng) / 100)
    slope = _uniform((batch, 1, 1), 18, 60, rng)
    low_pass = -slope * torch.relu(octaves - cut)
    curve = curve + _chance(batch, 0.4, rng) * low_pass
    cut = torch.log2(_uniform((batch, 1, 1), 30, 90, rng) / 100)
    high_pass = -_uniform((batch, 1, 1), 6, 18, rng) * torch.relu(cut - octaves)
    curve = curve + _chance(batch, 0.2, rng) * high_pass
    return curve * _NEPERS_PER_DB


def noise_energy(
    shape: torch.Size, centres: torch.Tensor, level: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Log energies ``[B, F, M]`` of stationary coloured noise at ``level`` ``[B, 1, 1]``."""
    batch = shape[0]
    slope = _uniform((batch, 1, 1), -9, 6, rng) * _NEPERS_PER_DB
    # Mel energies of Gaussian noise follow a gamma law; a few FFT bins make its shape about 2.
    draws = torch.rand((2, *shape), generator=rng).clamp_min(1e-6)
    fluctuation = torch.log(-torch.log(draws).sum(0) / 2)
    return level + slope * torch.log2(centres / 100.0) + fluctuation


def augment(
    features: torch.Tensor,
    centres: torch.Tensor,
    rng: torch.Generator,
    device_probability: float = 1.0,
) -> torch.Tensor:
    """Another device, place and level for every window.

    Args:
        features: log-mel ``[B, F, M]``.
        centres: filter centres ``[M]`` in Hz.
        rng: source of randomness; the same state gives the same result.
        device_probability: chance of another frequency response; noise and level always vary.
    """
    batch, num_frames, _ = features.shape
    mean_level = torch.logsumexp(features, dim=(1, 2), keepdim=True) - math.log(features[0].numel())
    # Noise at the chest passes the device, noise of the device does not.
    for probability, low_db, high_db in ((0.4, 3, 30), (0.6, 15, 50)):
        snr = _uniform((batch, 1, 1), low_db, high_db, rng) * _NEPERS_PER_DB
        noise = noise_energy(features.shape, centres, mean_level - snr, rng)
        used = _chance(batch, probability, rng) > 0
        features = torch.where(used, torch.logaddexp(features, noise), features)
        if low_db == 3:
            other_device = _chance(batch, device_probability, rng)
            features = features + other_device * device_curve(batch, centres, rng)
    # Rubbing and knocks: a short wide-band burst.
    frame = torch.arange(num_frames, dtype=features.dtype)[None, :, None]
    at = _uniform((batch, 1, 1), 0, num_frames, rng)
    width = _uniform((batch, 1, 1), 1, 12, rng)
    height = _uniform((batch, 1, 1), -5, 15, rng) * _NEPERS_PER_DB
    burst = mean_level + height - ((frame - at) / width) ** 2
    used = _chance(batch, 0.25, rng) > 0
    features = torch.where(used, torch.logaddexp(features, burst), features)
    # PASCAL's raw levels span 40 dB, and a stock feature extractor does not normalise them.
    gain = _uniform((batch, 1, 1), -28, 8, rng) * _NEPERS_PER_DB
    return (features + gain).clamp_min(LOG_FLOOR)
