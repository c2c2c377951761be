"""Classify recordings with a trained model; nothing here imports training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import PreTrainedModel

from hb_ssl.audio import band_limit, load_audio, resample, split_windows, window_starts
from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.errors import UserError, first_line
from hb_ssl.evaluation.metrics import pool_windows
from hb_ssl.models.backbones import ASSETS
from hb_ssl.models.classifier import PREPROCESSING_FILE, load_classifier

BUNDLED_CLASSIFIER = ASSETS / "heart-sound-classifier"
BATCH_SIZE = 32  # windows


@dataclass(frozen=True)
class Prediction:
    """The answer for one recording.

    Attributes:
        label: the most probable class.
        probabilities: class name to probability; they sum to 1.
        window_start_seconds: start of every window, ``[N]``.
        window_probabilities: ``[N, C]``, columns in the order of ``probabilities``.
        duration_seconds: length of the recording.
    """

    label: str
    probabilities: dict[str, float]
    window_start_seconds: np.ndarray
    window_probabilities: np.ndarray
    duration_seconds: float


class HeartSoundClassifier:
    """A trained classifier with its preprocessing.

    A research and screening aid, not a diagnosis.
    """

    def __init__(
        self, model: PreTrainedModel, feature_extractor: Any, preprocessing: dict[str, Any]
    ) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.labels: list[str] = preprocessing["labels"]
        self.make_features = FeatureMaker(feature_extractor, preprocessing["window_seconds"])

    @classmethod
    def from_pretrained(
        cls, repo_or_folder: str | Path | None = None, revision: str | None = None
    ) -> "HeartSoundClassifier":
        """Loads a classifier; weights are safetensors and no remote code runs.

        Args:
            repo_or_folder: a run folder, its ``model/`` folder, or a Hub repo ``org/name``; by
                default the classifier bundled with the package.
            revision: branch, tag or commit of a Hub repo.

        Raises:
            UserError: nothing usable is there.
        """
        if repo_or_folder is None:
            if not BUNDLED_CLASSIFIER.is_dir():
                raise UserError(
                    "this version of hb-ssl bundles no classifier; train one with "
                    "`hb-ssl train` and give its folder as --model"
                )
            repo_or_folder = BUNDLED_CLASSIFIER
        folder = Path(repo_or_folder)
        if (folder / "model" / PREPROCESSING_FILE).is_file():
            folder = folder / "model"
        elif not folder.is_dir():
            folder = _download(str(repo_or_folder), revision)
        return cls(*load_classifier(folder))

    def predict(
        self, audio: str | Path | tuple[np.ndarray, int] | Sequence[Any]
    ) -> Prediction | list[Prediction]:
        """Classifies one recording, or each of a list.

        Args:
            audio: a file; or a mono waveform ``[T]`` with its sampling rate in Hz; or a list of
                these.

        Raises:
            UserError: a recording can't be decoded or holds no finite sound.
        """
        if isinstance(audio, list):
            return [self.predict_one(item) for item in audio]
        return self.predict_one(audio)

    def predict_one(self, audio: Any) -> Prediction:
        """Classifies one recording; see ``predict``."""
        rate = self.make_features.sampling_rate
        if isinstance(audio, tuple):
            samples, orig_rate = audio
            waveform = _checked_waveform(samples)
            duration = len(waveform) / orig_rate
            waveform = resample(waveform, orig_rate, rate)
        else:
            waveform, orig_rate = load_audio(audio)
            duration = len(waveform) / orig_rate
            waveform = resample(waveform, orig_rate, rate)
        about = self.preprocessing
        waveform = band_limit(waveform, rate, about["band_low_hz"], about["band_high_hz"])
        hop = round(about["hop_seconds"] * rate)
        windows = split_windows(waveform, self.make_features.window, hop)
        starts = window_starts(len(waveform), self.make_features.window, hop)
        logits = self._window_logits(windows)
        pooled = pool_windows(logits)
        return Prediction(
            label=self.labels[int(pooled.argmax())],
            probabilities={name: float(p) for name, p in zip(self.labels, pooled, strict=True)},
            window_start_seconds=np.array(starts) / rate,
            window_probabilities=np.stack([pool_windows(row[None]) for row in logits]),
            duration_seconds=duration,
        )

    def _window_logits(self, windows: np.ndarray) -> np.ndarray:
        """``[N, W]`` windows to ``[N, C]`` logits."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(windows), BATCH_SIZE):
                features = self.make_features(windows[start : start + BATCH_SIZE])
                inputs = {self.make_features.input_name: torch.from_numpy(features)}
                parts.append(self.model(**inputs).logits.numpy())
        return np.concatenate(parts)


def _checked_waveform(samples: Any) -> np.ndarray:
    waveform = np.asarray(samples)
    if waveform.ndim != 1 or not len(waveform):
        raise UserError(
            f"waveform of shape {waveform.shape}: expected mono samples [T] with T >= 1; average "
            "the channels first"
        )
    if np.issubdtype(waveform.dtype, np.integer):
        waveform = waveform / float(np.iinfo(waveform.dtype).max)
    if not np.isfinite(waveform).all():
        raise UserError("waveform holds NaN or infinite samples; expected finite numbers")
    return waveform.astype(np.float32)


def _download(repo: str, revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=["*.json", "*.safetensors", "README.md"]
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{repo}: is neither a model folder nor a Hub repo reachable from here "
            f"({first_line(error)}); check the name and the connection"
        ) from error
