"""Log-mel features of a whole corpus, computed once, and pairs of windows drawn from them.

The features are those of transformers' ``ASTFeatureExtractor`` before its mean/std normalisation
(Kaldi filter banks, 25 ms Hann frames every 10 ms). Every frame depends on its own samples only,
so any run of frames equals the features of that window of audio.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from numpy.lib.format import open_memmap
from tqdm import tqdm

from hb_ssl.data.corpora import Corpus

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.010
REFERENCE_RMS = 0.1  # every training window is scaled to this level before gain augmentation


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
    _, hop = _frame_samples(sampling_rate)
    squares = waveform[: len(frames) * hop].reshape(len(frames), hop) ** 2
    return frames, squares.mean(axis=1)


def mel_centres(num_mel_bins: int, sampling_rate: int) -> np.ndarray:
    """Centre frequencies ``[M]`` in Hz of the Kaldi filters (20 Hz to half the rate)."""
    low, high = (1127.0 * np.log1p(f / 700.0) for f in (20.0, sampling_rate / 2))
    mel = low + (high - low) * np.arange(1, num_mel_bins + 1) / (num_mel_bins + 1)
    return 700.0 * np.expm1(mel / 1127.0)


def frames_of_window(window_seconds: float, sampling_rate: int) -> int:
    """Number of whole frames in a window."""
    frame, hop = _frame_samples(sampling_rate)
    return 1 + (round(window_seconds * sampling_rate) - frame) // hop


def _frame_samples(sampling_rate: int) -> tuple[int, int]:
    # int() as in Kaldi, which rounds down.
    return int(FRAME_SECONDS * sampling_rate), int(HOP_SECONDS * sampling_rate)


@dataclass(frozen=True)
class CorpusFeatures:
    """Log-mel frames of a corpus.

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


def load_features(corpus: Corpus, num_mel_bins: int, cache_dir: str | Path) -> CorpusFeatures:
    """Computes (once) or maps the features of every recording.

    Recordings shorter than a frame get no frames (count 0) and must not be drawn.
    """
    frame, hop = _frame_samples(corpus.sampling_rate)
    lengths = np.array([r.num_samples for r in corpus.recordings])
    counts = np.maximum(1 + (lengths - frame) // hop, 0)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    stem = f"fbank-{corpus.content_hash[:16]}-{corpus.sampling_rate}-{num_mel_bins}"
    paths = [Path(cache_dir) / f"{stem}-{name}.npy" for name in ("frames", "power")]
    if not all(path.is_file() for path in paths):
        _extract(corpus, starts, counts, num_mel_bins, paths)
    frames, power = (np.load(path, mmap_mode="r") for path in paths)
    return CorpusFeatures(frames, power, starts, counts)


def _extract(
    corpus: Corpus, starts: np.ndarray, counts: np.ndarray, num_mel_bins: int, paths: list[Path]
) -> None:
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    total = int(counts.sum())
    frames = open_memmap(temporary[0], mode="w+", dtype=np.float16, shape=(total, num_mel_bins))
    power = open_memmap(temporary[1], mode="w+", dtype=np.float32, shape=(total,))
    for index in tqdm(range(len(counts)), desc="log-mel", unit="recording", disable=None):
        count, start = counts[index], starts[index]
        if not count:
            continue
        waveform = corpus.waveform(index)
        rows, energy = log_mel_frames(waveform, corpus.sampling_rate, num_mel_bins)
        frames[start : start + count], power[start : start + count] = rows, energy
    for array, source, target in zip((frames, power), temporary, paths):
        array.flush()
        source.replace(target)


class PairSampler:
    """Draws two windows of one recording, each recording of another subject.

    A batch depends on (seed, step) only, so a resumed run sees what the unbroken run would have.

    Args:
        features: the corpus.
        indices: recordings to draw from.
        subjects: subject of every recording of the corpus; ``None`` makes it its own subject.
        num_frames: window length in frames.
        max_tempo_change: largest relative change of tempo, e.g. 0.05.
        seed: any integer; give every process its own.
    """

    def __init__(
        self,
        features: CorpusFeatures,
        indices: Sequence[int],
        subjects: Sequence[str | None],
        num_frames: int,
        max_tempo_change: float,
        seed: int,
    ) -> None:
        groups: dict[object, list[int]] = {}
        for index in indices:
            if features.counts[index]:
                groups.setdefault(subjects[index] or index, []).append(index)
        self._groups = [np.array(group) for group in groups.values()]
        # Subjects count by their number of recordings, so that each recording is seen as often.
        sizes = np.array([len(group) for group in self._groups], dtype=float)
        self._weights = sizes / sizes.sum()
        self._features = features
        self._num_frames = num_frames
        self._max_tempo_change = max_tempo_change
        self.seed = seed

    def batch(self, step: int, num_pairs: int) -> tuple[torch.Tensor, np.ndarray]:
        """Views ``[2, num_pairs, F, M]``, level-normalised, not augmented; their recordings."""
        rng = np.random.default_rng([self.seed, step])
        num_pairs = min(num_pairs, len(self._groups))
        chosen = rng.choice(len(self._groups), num_pairs, replace=False, p=self._weights)
        recordings = [rng.choice(self._groups[group]) for group in chosen]
        views = [[self._view(index, rng) for index in recordings] for _ in range(2)]
        return torch.from_numpy(np.stack([np.stack(view) for view in views])), np.array(recordings)

    def _view(self, index: int, rng: np.random.Generator) -> np.ndarray:
        room = int(self._features.counts[index]) - self._num_frames
        start = int(rng.integers(room + 1)) if room > 0 else int(rng.integers(self._num_frames))
        if rng.random() < 0.5:
            return self._features.window(index, start, self._num_frames)
        tempo = 1 + rng.uniform(-1, 1) * self._max_tempo_change
        return self._features.stretched_window(index, start, self._num_frames, tempo)
