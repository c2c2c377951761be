"""What a backbone hears: log-mel windows (AST) or waveform windows (wav2vec2).

Both classes have the same methods, so that samplers, probes and the training loop are written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from hb_ssl.data.corpora import INT16_SCALE, Corpus
from hb_ssl.data.log_mel import (
    LogMelFrames,
    frame_samples,
    frames_of_window,
    log_mel_frames,
    mel_centres,
)
from hb_ssl.data.spectrogram_augment import augment
from hb_ssl.models.pcg import PCG_SAMPLING_RATE, pcg_feature_extractor
from hb_ssl.pretraining.features import load_features


@dataclass(frozen=True)
class WaveformSamples:
    """Samples of several recordings, cut like ``LogMelFrames``.

    Attributes:
        samples: ``[total]`` int16, full scale = 32768, all recordings one after the other.
        starts: first sample of each recording.
        counts: samples of each recording.
    """

    samples: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def window(self, index: int, start: int, num_samples: int) -> np.ndarray:
        """Samples ``[num_samples]`` (float32); a shorter recording is tiled."""
        positions = self.starts[index] + (start + np.arange(num_samples)) % self.counts[index]
        return self.samples[positions].astype(np.float32) / INT16_SCALE

    def random_window(
        self, index: int, num_samples: int, max_tempo_change: float, rng: np.random.Generator
    ) -> np.ndarray:
        """A window from anywhere; the tempo stays, whatever ``max_tempo_change`` says."""
        room = int(self.counts[index]) - num_samples
        start = int(rng.integers(room + 1)) if room > 0 else int(rng.integers(num_samples))
        return self.window(index, start, num_samples)


class LogMelInputs:
    """Log-mel windows ``[F, M]`` at 2 kHz, heard through other devices, noise and level.

    Args:
        window_seconds: length of a window.
        num_mel_bins: mel bins M.
    """

    sampling_rate = PCG_SAMPLING_RATE
    min_samples = frame_samples(PCG_SAMPLING_RATE)[0]  # a shorter recording has no frame

    def __init__(self, window_seconds: float, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins
        self.length = frames_of_window(window_seconds, self.sampling_rate)
        self.extractor: ASTFeatureExtractor = self._extractor(0.0, 0.5)
        self._centres = torch.from_numpy(mel_centres(num_mel_bins, self.sampling_rate)).float()

    def _extractor(self, mean: float, std: float) -> ASTFeatureExtractor:
        return pcg_feature_extractor(self.length, self.num_mel_bins, self.sampling_rate, mean, std)

    def of_corpus(self, corpus: Corpus, cache_dir: Path) -> LogMelFrames:
        """The frames of a corpus, computed once and mapped from the cache."""
        return load_features(corpus, self.num_mel_bins, cache_dir)

    def of_recordings(self, recordings: Sequence[np.ndarray]) -> LogMelFrames:
        """The frames of recordings ``[T]`` (int16, ``min_samples`` at least), in memory."""
        made = [
            log_mel_frames(
                r.astype(np.float32) / INT16_SCALE, self.sampling_rate, self.num_mel_bins
            )
            for r in recordings
        ]
        counts = np.array([len(rows) for rows, _ in made])
        return LogMelFrames(
            frames=np.concatenate([rows.astype(np.float16) for rows, _ in made]),
            power=np.concatenate([power for _, power in made]),
            starts=np.cumsum(counts) - counts,
            counts=counts,
        )

    def fit(self, views: torch.Tensor, rng: torch.Generator) -> None:
        """Takes mean and spread from augmented windows, so that inputs of any level fit in."""
        values = augment(views.flatten(0, 1), self._centres, rng)
        self.extractor = self._extractor(
            round(float(values.mean()), 3), round(float(values.std()), 3)
        )

    def normalise(self, windows: torch.Tensor) -> torch.Tensor:
        """The extractor's mean/std normalisation, for tensors on any device."""
        return (windows - self.extractor.mean) / (2 * self.extractor.std)

    def augmented(self, windows: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Windows ``[N, F, M]`` through another device each, normalised."""
        return self.normalise(augment(windows, self._centres, rng))


class WaveformInputs:
    """Waveform windows ``[W]``, each normalised alone, as wav2vec2 takes them.

    The objective hides parts of the window itself, so nothing is augmented.

    Args:
        window_seconds: length of a window.
        extractor: of the checkpoint to continue; it also says the sampling rate.
    """

    min_samples = 1

    def __init__(self, window_seconds: float, extractor: Wav2Vec2FeatureExtractor) -> None:
        self.extractor = extractor
        self.sampling_rate = int(extractor.sampling_rate)
        self.length = round(window_seconds * self.sampling_rate)

    def of_corpus(self, corpus: Corpus, cache_dir: Path) -> WaveformSamples:
        """The samples of a corpus, as they are mapped already."""
        starts = np.array([r.start for r in corpus.recordings], dtype=np.int64)
        counts = np.array([r.num_samples for r in corpus.recordings], dtype=np.int64)
        return WaveformSamples(corpus.samples, starts, counts)

    def of_recordings(self, recordings: Sequence[np.ndarray]) -> WaveformSamples:
        """Recordings ``[T]`` (int16) in memory."""
        counts = np.array([len(r) for r in recordings], dtype=np.int64)
        return WaveformSamples(np.concatenate(recordings), np.cumsum(counts) - counts, counts)

    def normalise(self, windows: torch.Tensor) -> torch.Tensor:
        """Zero mean and unit variance of each window, if the extractor does so."""
        if not self.extractor.do_normalize:
            return windows
        mean = windows.mean(dim=-1, keepdim=True)
        variance = windows.var(dim=-1, keepdim=True, correction=0)
        return (windows - mean) / torch.sqrt(variance + 1e-7)  # as Wav2Vec2FeatureExtractor

    def augmented(self, windows: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Windows ``[N, W]``, normalised."""
        return self.normalise(windows)


Inputs = LogMelInputs | WaveformInputs
