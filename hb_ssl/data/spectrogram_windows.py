"""Training windows cut from cached log-mel frames and augmented there, for AST backbones."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from hb_ssl.data.dataset import FeatureMaker, Waveforms, soft_label
from hb_ssl.data.log_mel import LogMelFrames, log_mel_frames, mel_centres
from hb_ssl.data.spectrogram_augment import augment
from hb_ssl.errors import UserError


class SpectrogramTrainingWindows(Dataset):
    """Random windows at another tempo, device, noise and level; same keys as ``TrainingWindows``.

    A batch depends on its keys alone.

    Filters, noise and gain are curves and sums on log energies, so a window costs a millisecond
    instead of decoding, filtering and transforming samples. Each window is scaled to one level
    before its random gain: how loud a recording is tells the model nothing.

    Raises:
        UserError: the backbone takes no Kaldi log-mel features.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        recording_ids: Sequence[str],
        label_ids: Sequence[int],
        num_classes: int,
        make_features: FeatureMaker,
        probability: float,
        max_tempo_change: float,
        windows_per_recording: int = 1,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        extractor = make_features.extractor
        if type(extractor).__name__ != "ASTFeatureExtractor":
            raise UserError(
                "augment_spectrogram: this backbone does not take log-mel frames as AST does; "
                "expected an audio-spectrogram-transformer, or set augment_spectrogram to false"
            )
        self.recording_ids = list(recording_ids)
        self.label_ids = np.asarray(label_ids)
        self.num_classes = num_classes
        self.windows_per_recording = windows_per_recording
        self.seed = seed
        self._probability = probability
        self._max_tempo_change = max_tempo_change
        self._label_smoothing = label_smoothing
        self._extractor = extractor
        rate, bins = make_features.sampling_rate, extractor.num_mel_bins
        self._centres = torch.from_numpy(mel_centres(bins, rate)).float()
        self._frames = _log_mel_of(waveforms, self.recording_ids, rate, bins)
        silence = np.zeros(make_features.window, dtype=np.float32)
        self._num_frames = len(log_mel_frames(silence, rate, bins)[0])

    def __len__(self) -> int:
        return len(self.recording_ids) * self.windows_per_recording

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> list[dict[str, torch.Tensor]]:
        """The items of a batch, augmented together: a third of the time of one after another."""
        frames, seeds = [], []
        for epoch, draw, index in keys:
            rng = np.random.default_rng([self.seed, epoch, draw, index])
            frames.append(
                self._frames.random_window(index, self._num_frames, self._max_tempo_change, rng)
            )
            seeds.append(int(rng.integers(2**32)))
        source = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1
        rng_of_batch = torch.Generator().manual_seed(int(source))
        windows = torch.from_numpy(np.stack(frames))
        windows = augment(windows, self._centres, rng_of_batch, self._probability)
        missing = self._extractor.max_length - self._num_frames
        windows = torch.nn.functional.pad(windows, (0, 0, 0, missing))  # as the extractor pads
        windows = self._extractor.normalize(windows)
        return [
            {"input_values": window, "labels": self._label(index)}
            for window, (_, _, index) in zip(windows, keys, strict=True)
        ]

    def _label(self, index: int) -> torch.Tensor:
        return soft_label(int(self.label_ids[index]), self.num_classes, self._label_smoothing)


def _log_mel_of(
    waveforms: Waveforms, recording_ids: Sequence[str], rate: int, num_mel_bins: int
) -> LogMelFrames:
    frames, power = [], []
    for recording_id in recording_ids:
        waveform = waveforms[recording_id]
        if len(waveform) < rate:  # below a second, repeat: a frame alone is no heartbeat
            waveform = np.tile(waveform, -(-rate // len(waveform)))
        rows, energy = log_mel_frames(waveform, rate, num_mel_bins)
        frames.append(rows)
        power.append(energy)
    counts = np.array([len(rows) for rows in frames])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return LogMelFrames(np.concatenate(frames), np.concatenate(power), starts, counts)
