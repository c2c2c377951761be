"""Recordings as HF datasets, and windows of them as training and evaluation batches."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hb_ssl.audio import band_limit, load_audio, tile_to_length, window_starts
from hb_ssl.data.augment import Augmentation, augmented_window, mask_spectrogram
from hb_ssl.data.recording import Recording
from hb_ssl.errors import UserError, first_line
from hb_ssl.files import cache_folder

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

KEPT_FEATURE_BYTES = 32 * 2**20  # of all evaluation windows together; more is computed each time
DECODING_VERSION = 1  # raise it when decoded waveforms change, so that old caches are not used


def waveform_dataset(
    recordings: Sequence[Recording],
    sampling_rate: int,
    band_low_hz: float | None = None,
    band_high_hz: float | None = None,
) -> datasets.Dataset:
    """Decodes, resamples and band-limits recordings into a memory-mapped HF dataset.

    The cache is keyed on the content of the files and on the arguments, not on paths or times: a
    changed file is decoded again, a moved folder is not.

    Args:
        recordings: what to decode, in this order.
        sampling_rate: target rate in Hz.
        band_low_hz: see ``hb_ssl.audio.band_limit``.
        band_high_hz: see ``hb_ssl.audio.band_limit``.

    Returns:
        A dataset with columns ``recording_id``, ``audio`` (path, undecoded) and ``waveform``
        (float32 ``[T]``).
    """
    import datasets  # a second to import, and inference needs this module without it
    import pyarrow as pa

    key: list[Any] = [DECODING_VERSION, sampling_rate, band_low_hz, band_high_hz]
    key += [[r.recording_id, r.content_hash] for r in recordings]
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = cache_folder() / "waveforms"
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(
        {
            "recording_id": [r.recording_id for r in recordings],
            "audio": [r.path for r in recordings],
        }
    ).cast_column("audio", datasets.Audio(decode=False))
    features = table.features.copy()
    features["waveform"] = datasets.List(datasets.Value("float32"))
    file = folder / f"{fingerprint}.arrow"
    decode = functools.partial(
        table.map,
        _decode_row,
        fn_kwargs={
            "sampling_rate": sampling_rate,
            "band_low_hz": band_low_hz,
            "band_high_hz": band_high_hz,
        },
        features=features,
        cache_file_name=str(file),
        new_fingerprint=fingerprint,
        writer_batch_size=32,
        desc=f"Decoding to {sampling_rate} Hz",
    )
    try:
        return decode()
    except pa.ArrowInvalid as error:
        logger.warning("%s can't be used (%s) and is made again", file, first_line(error))
        file.unlink(missing_ok=True)
        return decode()


def _decode_row(
    row: dict[str, Any], sampling_rate: int, band_low_hz: float | None, band_high_hz: float | None
) -> dict[str, Any]:
    waveform, _ = load_audio(row["audio"]["path"], sampling_rate)
    return {"waveform": band_limit(waveform, sampling_rate, band_low_hz, band_high_hz)}


class Waveforms:
    """Waveforms ``[T]`` by recording id, read from the memory map when asked for."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self._dataset = dataset.select_columns(["waveform"]).with_format("numpy")
        self._row_of = {r: i for i, r in enumerate(dataset["recording_id"])}

    def __getitem__(self, recording_id: str) -> np.ndarray:
        return self._dataset[self._row_of[recording_id]]["waveform"].astype(np.float32, copy=False)


class FeatureMaker:
    """Turns windows into model inputs with the backbone's stock feature extractor.

    Each window is normalised alone, and all have one length, so neither the batch nor the padding
    can change a prediction.

    Args:
        feature_extractor: of wav2vec2, AST or Whisper type.
        window_seconds: length of every window.

    Raises:
        UserError: the backbone takes no window of this length.
    """

    def __init__(self, feature_extractor: Any, window_seconds: float) -> None:
        self.extractor = feature_extractor
        self.sampling_rate: int = feature_extractor.sampling_rate
        self.window = round(window_seconds * self.sampling_rate)
        self.input_name: str = feature_extractor.model_input_names[0]
        kind = type(feature_extractor).__name__
        # [T, M] for AST, [M, T] for Whisper; wav2vec2 takes samples
        self.time_axis = {"ASTFeatureExtractor": 0, "WhisperFeatureExtractor": 1}.get(kind)
        longest = None
        if kind == "WhisperFeatureExtractor":
            longest = float(feature_extractor.chunk_length)
        elif kind == "ASTFeatureExtractor":
            longest = feature_extractor.max_length * 0.010 + 0.024  # 25 ms frames every 10 ms
        if longest is not None and window_seconds > longest:
            raise UserError(
                f"window_seconds {window_seconds}: this backbone takes at most {longest:g} s; "
                "choose a shorter window"
            )

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Windows ``[N, W]`` to model inputs ``[N, W]``, ``[N, T, M]`` or ``[N, M, T]``."""
        made = self.extractor(list(windows), sampling_rate=self.sampling_rate, return_tensors="np")
        return np.asarray(made[self.input_name], dtype=np.float32)


def soft_label(label_id: int, num_classes: int, smoothing: float) -> torch.Tensor:
    """One class as a distribution ``[C]``, a share of it spread over all (label smoothing)."""
    label = torch.full((num_classes,), smoothing / num_classes)
    label[label_id] += 1 - smoothing
    return label


class TrainingWindows(Dataset):
    """Random augmented windows; item ``(epoch, draw, recording)`` depends on nothing else.

    Items have the model input and ``labels``: a distribution over the classes ``[C]``.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        recording_ids: Sequence[str],
        label_ids: Sequence[int],
        num_classes: int,
        make_features: FeatureMaker,
        augmentation: Augmentation,
        windows_per_recording: int = 1,
        hop_seconds: float | None = None,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        spec_augment_time: float = 0.0,
        spec_augment_frequency: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.waveforms = waveforms
        self.recording_ids = list(recording_ids)
        self.label_ids = np.asarray(label_ids)
        self.num_classes = num_classes
        self.make_features = make_features
        self.augmentation = augmentation
        self.windows_per_recording = windows_per_recording
        self.hop_seconds = hop_seconds  # None: windows start anywhere
        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.spec_augment = (spec_augment_time, spec_augment_frequency)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.recording_ids) * self.windows_per_recording

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        epoch, draw, index = key
        rng = np.random.default_rng([self.seed, epoch, draw, index])
        window = self._window(index, rng)
        label = self._label(index)
        if self.mixup_alpha:
            # mixup (Zhang et al. 2018), at equal loudness so that the shares mean something
            other = int(rng.integers(len(self.recording_ids)))
            share = float(rng.beta(self.mixup_alpha, self.mixup_alpha))
            window = share * _unit_rms(window) + (1 - share) * _unit_rms(self._window(other, rng))
            label = share * label + (1 - share) * self._label(other)
        features = self.make_features(window[None].astype(np.float32))[0]
        if self.make_features.time_axis is not None and any(self.spec_augment):
            features = mask_spectrogram(
                features, self.make_features.time_axis, *self.spec_augment, rng=rng
            )
        return {
            self.make_features.input_name: torch.from_numpy(features),
            "labels": label,
        }

    def _window(self, index: int, rng: np.random.Generator) -> np.ndarray:
        waveform = self.waveforms[self.recording_ids[index]]
        window, rate = self.make_features.window, self.make_features.sampling_rate
        if self.hop_seconds is not None:
            hop = round(self.hop_seconds * rate)
            start = int(rng.choice(window_starts(len(waveform), window, hop)))
            waveform = tile_to_length(waveform, window)[start : start + window]
        return augmented_window(waveform, window, rate, self.augmentation, rng)

    def _label(self, index: int) -> torch.Tensor:
        return soft_label(int(self.label_ids[index]), self.num_classes, self.label_smoothing)


def _unit_rms(window: np.ndarray) -> np.ndarray:
    return window / max(float(np.sqrt(np.mean(window**2))), 1e-8)


class EpochSampler(Sampler[tuple[int, int, int]]):
    """The keys of one epoch of ``TrainingWindows``, shuffled by seed and epoch alone.

    Args:
        windows: the training windows.
        balanced: draw the classes equally often instead of every recording equally often.
        current_epoch: returns the epoch about to start; asked at the start of each, so a run
            resumed in mid-epoch sees the same order again.
    """

    def __init__(
        self, windows: TrainingWindows, balanced: bool, current_epoch: Callable[[], int]
    ) -> None:
        self.windows = windows
        self.balanced = balanced
        self.current_epoch = current_epoch

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch = self.current_epoch()
        rng = np.random.default_rng([self.windows.seed, epoch])
        num_recordings = len(self.windows.recording_ids)
        if self.balanced:
            counts = np.bincount(self.windows.label_ids, minlength=self.windows.num_classes)
            weights = 1.0 / counts[self.windows.label_ids]
            indices = rng.choice(num_recordings, size=len(self), p=weights / weights.sum())
        else:
            indices = np.tile(np.arange(num_recordings), self.windows.windows_per_recording)
            rng.shuffle(indices)
        for draw, index in enumerate(indices):
            yield epoch, draw, int(index)


class EvaluationWindows(Dataset):
    """All windows of all recordings, in order; ``recording_of[i]`` tells whose window ``i`` is.

    Small model inputs (log-mel at a low rate) are computed once and kept, since validation asks for
    them every epoch.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        recording_ids: Sequence[str],
        label_ids: Sequence[int],
        num_classes: int,
        make_features: FeatureMaker,
        hop_seconds: float,
    ) -> None:
        self.make_features = make_features
        self.recording_of: list[str] = []
        self.start_of: list[int] = []  # in samples
        self._windows: list[tuple[str, int]] = []
        self._waveforms = waveforms
        self._hop = round(hop_seconds * make_features.sampling_rate)
        self._num_classes = num_classes
        self._kept: dict[int, np.ndarray] = {}
        for recording_id, label_id in zip(recording_ids, label_ids, strict=True):
            num_samples = len(waveforms[recording_id])
            starts = window_starts(num_samples, make_features.window, self._hop)
            for start in starts:
                self._windows.append((recording_id, label_id))
                self.recording_of.append(recording_id)
                self.start_of.append(start)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        recording_id, label_id = self._windows[index]
        features = self._kept.get(index)
        if features is None:
            start, length = self.start_of[index], self.make_features.window
            waveform = tile_to_length(self._waveforms[recording_id], length)
            features = self.make_features(waveform[None, start : start + length])[0]
            if features.nbytes * len(self) <= KEPT_FEATURE_BYTES:
                self._kept[index] = features
        label = torch.zeros(self._num_classes)
        label[label_id] = 1.0
        return {self.make_features.input_name: torch.from_numpy(features), "labels": label}
