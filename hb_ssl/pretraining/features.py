"""Log-mel features of a whole corpus, kept on disk, and pairs of windows drawn from them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from hb_ssl.data.corpora import Corpus
from hb_ssl.data.log_mel import LogMelFrames, frame_samples, log_mel_frames


def load_features(corpus: Corpus, num_mel_bins: int, cache_dir: str | Path) -> LogMelFrames:
    """Computes (once) or maps the features of every recording.

    Recordings shorter than a frame get no frames (count 0) and must not be drawn.
    """
    frame, hop = frame_samples(corpus.sampling_rate)
    lengths = np.array([r.num_samples for r in corpus.recordings])
    counts = np.maximum(1 + (lengths - frame) // hop, 0)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    stem = f"fbank-{corpus.content_hash[:16]}-{corpus.sampling_rate}-{num_mel_bins}"
    paths = [Path(cache_dir) / f"{stem}-{name}.npy" for name in ("frames", "power")]
    if not all(path.is_file() for path in paths):
        _extract(corpus, starts, counts, num_mel_bins, paths)
    frames, power = (np.load(path, mmap_mode="r") for path in paths)
    return LogMelFrames(frames, power, starts, counts)


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


class Pairs(NamedTuple):
    """Two windows of each of ``B`` recordings, all of distinct subjects.

    Attributes:
        views: ``[2, B, ...]``, not augmented.
        subjects: ``[B]`` what tells the people apart.
        murmur: ``[B]`` 1 where a murmur is heard, 0 where none, -1 unknown.
    """

    views: torch.Tensor
    subjects: list[Any]
    murmur: np.ndarray


class Windowed(Protocol):
    """Recordings that windows are cut from: ``LogMelFrames`` or ``WaveformSamples``."""

    @property
    def counts(self) -> np.ndarray:
        """Frames or samples of each recording."""

    def window(self, index: int, start: int, length: int, /) -> np.ndarray:
        """``length`` frames or samples from ``start`` on; short recordings are tiled."""

    def random_window(
        self, index: int, length: int, max_tempo_change: float, rng: np.random.Generator, /
    ) -> np.ndarray:
        """``length`` frames or samples from anywhere."""


class PairSampler:
    """Draws two windows of one recording, each recording of another subject.

    A batch depends on (seed, step) only, so a resumed run sees what the unbroken run would have.

    Args:
        features: the corpus.
        indices: recordings to draw from.
        subjects: subject of every recording of the corpus; ``None`` makes it its own subject.
        murmurs: ``[R]`` 1, 0 or -1 for every recording of the corpus.
        length: window length in frames or samples.
        max_tempo_change: largest relative change of tempo, e.g. 0.05.
        seed: any integer; give every process its own.
    """

    def __init__(
        self,
        features: Windowed,
        indices: Sequence[int],
        subjects: Sequence[str | None],
        murmurs: np.ndarray,
        length: int,
        max_tempo_change: float,
        seed: int,
    ) -> None:
        groups: dict[object, list[int]] = {}
        for index in indices:
            if features.counts[index]:
                groups.setdefault(subjects[index] or index, []).append(index)
        self._groups = [np.array(group) for group in groups.values()]
        self._names = list(groups)
        # Subjects count by their number of recordings, so that each recording is seen as often.
        sizes = np.array([len(group) for group in self._groups], dtype=float)
        self._weights = sizes / sizes.sum()
        self._features = features
        self._murmurs = murmurs
        self._length = length
        self._max_tempo_change = max_tempo_change
        self.seed = seed

    def batch(self, step: int, num_pairs: int) -> Pairs:
        """The pairs of a step, fewer than ``num_pairs`` if there are fewer subjects."""
        rng = np.random.default_rng([self.seed, step])
        num_pairs = min(num_pairs, len(self._groups))
        chosen = rng.choice(len(self._groups), num_pairs, replace=False, p=self._weights)
        recordings = [rng.choice(self._groups[group]) for group in chosen]
        views = [
            [
                self._features.random_window(i, self._length, self._max_tempo_change, rng)
                for i in recordings
            ]
            for _ in range(2)
        ]
        return Pairs(
            torch.from_numpy(np.stack([np.stack(view) for view in views])),
            [self._names[group] for group in chosen],
            self._murmurs[recordings],
        )
