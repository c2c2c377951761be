"""Log-mel frames, computed once and cut into windows many times.

The features are those of transformers' ``ASTFeatureExtractor`` before its mean/std normalisation
(Kaldi filter banks, 25 ms Hann frames every 10 ms). Every frame depends on its own samples only,
so any run of frames equals the features of that window of audio.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.010
REFERENCE_RMS = 0.1  # windows are scaled to this level before gain augmentation


def log_mel(waveform: np.ndarray, sampling_rate: int, num_mel_bins: int) -> np.ndarray:
    """Kaldi log-mel energies ``[F, M]`` of ``[T]``, as ``ASTFeatureExtractor`` computes them."""
    features = kaldi.fbank(
        torch.from_numpy(waveform)[None],
        sample_frequency=sampling_rate,
        window_type="hanning",
        num_mel_bins=num_mel_bins,
    )
    return features.numpy()


def log_mel_frames(
    waveform: np.ndarray, sampling_rate: int, num_mel_bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel ``[F, M]``, and the mean square ``[F]`` of the 10 ms of audio that start a frame."""
    frames = log_mel(waveform, sampling_rate, num_mel_bins)
    _, hop = frame_samples(sampling_rate)
    squares = waveform[: len(frames) * hop].reshape(len(frames), hop) ** 2
    return frames, squares.mean(axis=1)


def mel_centres(num_mel_bins: int, sampling_rate: int) -> np.ndarray:
    """Centre frequencies ``[M]`` in Hz of the Kaldi filters (20 Hz to half the rate)."""
    low, high = (1127.0 * np.log1p(f / 700.0) for f in (20.0, sampling_rate / 2))
    mel = low + (high - low) * np.arange(1, num_mel_bins + 1) / (num_mel_bins + 1)
    return 700.0 * np.expm1(mel / 1127.0)


def frames_of_window(window_seconds: float, sampling_rate: int) -> int:
    """Number of whole frames in a window."""
    frame, hop = frame_samples(sampling_rate)
    return 1 + (round(window_seconds * sampling_rate) - frame) // hop


def frame_samples(sampling_rate: int) -> tuple[int, int]:
    """Length of a frame and step between frames in samples."""
    # int() as in Kaldi, which rounds down.
    return int(FRAME_SECONDS * sampling_rate), int(HOP_SECONDS * sampling_rate)


@dataclass(frozen=True)
class LogMelFrames:
    """Log-mel frames of several recordings.

    Attributes:
        frames: ``[total_frames, M]`` float16, all recordings one after the other.
        power: ``[total_frames]`` float32 mean square of the 10 ms of audio that start a frame.
        starts: first frame of each recording.
        counts: frames of each recording.
    """

    frames: np.ndarray
    power: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def window(self, index: int, start: int, num_frames: int) -> np.ndarray:
        """Frames ``[num_frames, M]`` (float32) at ``REFERENCE_RMS``; short ones are tiled."""
        positions = self.starts[index] + (start + np.arange(num_frames)) % self.counts[index]
        return self._scaled(self.frames[positions].astype(np.float32), positions)

    def stretched_window(
        self, index: int, start: float, num_frames: int, tempo: float
    ) -> np.ndarray:
        """Like ``window``, played ``tempo`` times as fast (linear interpolation of frames)."""
        exact = start + np.arange(num_frames) * tempo
        below = exact.astype(np.int64)
        share = (exact - below).astype(np.float32)[:, None]
        first = self.starts[index] + below % self.counts[index]
        second = self.starts[index] + (below + 1) % self.counts[index]
        mixed = (1 - share) * self.frames[first] + share * self.frames[second]
        return self._scaled(mixed, first)

    def _scaled(self, frames: np.ndarray, positions: np.ndarray) -> np.ndarray:
        # A gain of g adds 2 ln(g) to a log energy.
        power = max(float(self.power[positions].mean()), 1e-10)
        return frames.astype(np.float32) + math.log(REFERENCE_RMS**2 / power)

    def random_window(
        self, index: int, num_frames: int, max_tempo_change: float, rng: np.random.Generator
    ) -> np.ndarray:
        """A window ``[num_frames, M]`` from anywhere, half of them at another tempo."""
        room = int(self.counts[index]) - num_frames
        start = int(rng.integers(room + 1)) if room > 0 else int(rng.integers(num_frames))
        if rng.random() < 0.5:
            return self.window(index, start, num_frames)
        tempo = 1 + rng.uniform(-1, 1) * max_tempo_change
        return self.stretched_window(index, start, num_frames, tempo)
