"""Classify recordings with a trained model; nothing here imports training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from hb_ssl.audio import (
    MAX_AMPLITUDE,
    MAX_SAMPLING_RATE,
    MIN_SAMPLING_RATE,
    band_limit,
    load_audio,
    resample,
    tile_to_length,
    window_starts,
)
from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.errors import UserError
from hb_ssl.evaluation.verdict import calibrate, is_heart_sound, pool_windows
from hb_ssl.heart_rate import HeartRate, estimate_heart_rate
from hb_ssl.models.folders import BUNDLED_CLASSIFIER, PREPROCESSING_FILE, read_preprocessing
from hb_ssl.models.light import load_light_classifier, load_light_features
from hb_ssl.signal_quality import SignalNote, check_signal

if TYPE_CHECKING:
    from hb_ssl.onnx_model import OnnxModel

BATCH_SIZE = 32  # windows
INCONCLUSIVE = "inconclusive"
CHECKED_SECONDS = 60.0  # signal quality is judged on the first minute, at the file's own rate
LOUDEST_PEAK = 2.0  # full scale is 1, and resampling may overshoot it
NOT_A_HEART = SignalNote(
    "not_a_heart",
    "It does not sound like a heart.",
    "In a quiet room, press the stethoscope or phone flat on bare skin left of the breastbone.",
)
Runtime = Literal["torch", "onnx", "onnx-int8"]
Audio = str | Path | tuple[np.ndarray, int]


@dataclass(frozen=True)
class Prediction:
    """The answer for one recording.

    Attributes:
        label: the most probable class.
        probabilities: class name to probability; they sum to 1.
        decision: ``label``, or ``inconclusive`` where the classifier is not sure enough or the
            signal is no heart sound: record again.
        calibrated: whether the probabilities were calibrated. Without calibration the classifier
            never abstains for being unsure.
        heart_rate: beats per minute and where the beats are.
        signal_notes: what is wrong with the recording, with advice; empty when all is well.
        window_start_seconds: start of every window, ``[N]``.
        window_probabilities: ``[N, C]``, columns in the order of ``probabilities``.
        duration_seconds: length of the recording.
    """

    label: str
    probabilities: dict[str, float]
    decision: str
    calibrated: bool
    heart_rate: HeartRate
    signal_notes: list[SignalNote]
    window_start_seconds: np.ndarray
    window_probabilities: np.ndarray
    duration_seconds: float


@dataclass
class _Recording:
    """A recording on its way through the network, window by window."""

    waveform: np.ndarray  # [T] at the model's rate, band-limited
    starts: list[int]
    duration_seconds: float
    heart_rate: HeartRate
    signal_notes: list[SignalNote]
    logits: list[np.ndarray] = field(default_factory=list)


class HeartSoundClassifier:
    """A trained classifier with its preprocessing.

    A research and screening aid, not a diagnosis.

    Attributes:
        labels: class names in the order of every ``[..., C]`` array.
        preprocessing: the content of ``preprocessing.json``.
        model: the network; ``OnnxModel`` when run by onnxruntime.
    """

    def __init__(
        self,
        model: nn.Module | OnnxModel,
        feature_extractor: Any,
        preprocessing: dict[str, Any],
    ) -> None:
        self.model: Any = model.eval() if isinstance(model, nn.Module) else model
        self.preprocessing = preprocessing
        self.labels: list[str] = preprocessing["labels"]
        self.make_features = FeatureMaker(feature_extractor, preprocessing["window_seconds"])

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | Path | None = None,
        revision: str | None = None,
        runtime: Runtime = "torch",
    ) -> HeartSoundClassifier:
        """Loads a classifier; weights are safetensors and no remote code runs.

        Args:
            repo_or_folder: a run folder, its ``model/`` folder, a folder made by ``hb-ssl export``,
                or a Hub repo ``org/name`` (merged, or an adapter alone); by default the classifier
                bundled with the package.
            revision: branch, tag or commit of a Hub repo.
            runtime: ``torch``, or ``onnx`` and ``onnx-int8`` for an exported folder.

        Raises:
            UserError: nothing usable is there.
        """
        folder = locate_classifier(repo_or_folder, revision)
        if runtime != "torch":
            from hb_ssl.onnx_model import OnnxModel

            network = OnnxModel(folder, int8=runtime == "onnx-int8")
            about = read_preprocessing(folder)
            return cls(network, load_light_features(folder) or _stock_features(folder), about)
        light = load_light_classifier(folder)
        if light is not None:
            return cls(*light)
        # From here on transformers is needed, whose import takes seconds.
        from hb_ssl.models.adapters import is_adapter_only, load_adapted_classifier
        from hb_ssl.models.classifier import load_classifier

        if is_adapter_only(folder):
            return cls(*load_adapted_classifier(folder))
        return cls(*load_classifier(folder))

    def predict(self, audio: Audio | list[Audio]) -> Prediction | list[Prediction]:
        """Classifies one recording, or each of a list.

        Args:
            audio: a file; or a mono waveform ``[T]`` with its sampling rate in Hz; or a list of
                these.

        Raises:
            UserError: a recording can't be decoded or holds no finite sound.
        """
        if isinstance(audio, list):
            return [_raised(answer) for answer in self.predict_each(audio)]
        return self.predict_one(audio)

    def predict_one(self, audio: Audio) -> Prediction:
        """Classifies one recording; see ``predict``."""
        return _raised(next(self.predict_each([audio])))

    def predict_each(self, audios: Iterable[Audio]) -> Iterator[Prediction | UserError]:
        """Classifies many recordings, in order; an unusable one yields its error.

        Windows of several recordings share a batch, and no more than one batch of features is held
        at a time, however long the recordings are.
        """
        waiting: deque[_Recording | UserError] = deque()
        batch: list[tuple[_Recording, int]] = []
        for audio in audios:
            try:
                recording = self._open(audio)
            except UserError as error:
                waiting.append(error)
            else:
                waiting.append(recording)
                for start in recording.starts:
                    batch.append((recording, start))
                    if len(batch) == BATCH_SIZE:
                        self._classify(batch)
                        batch = []
            while waiting and _is_done(waiting[0]):
                yield self._answer(waiting.popleft())
        self._classify(batch)
        for done in waiting:
            yield self._answer(done)

    def window_logits(self, windows: np.ndarray) -> np.ndarray:
        """Windows ``[N, W]`` at the model's rate to logits ``[N, C]``, batch by batch."""
        parts = [
            self._logits(windows[start : start + BATCH_SIZE])
            for start in range(0, len(windows), BATCH_SIZE)
        ]
        return np.concatenate(parts)

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """Window logits ``[N, C]`` to the recording's probabilities ``[C]``, calibrated if set."""
        pooled = pool_windows(logits)
        calibration = self.preprocessing.get("calibration")
        if calibration is None:
            return pooled
        return calibrate(pooled, calibration)

    def _open(self, audio: Audio) -> _Recording:
        rate = self.make_features.sampling_rate
        if isinstance(audio, tuple):
            original, orig_rate = _checked_waveform(audio)
            waveform = resample(original, orig_rate, rate)
            head = original[: round(CHECKED_SECONDS * orig_rate)]
        elif not isinstance(audio, str | Path):
            raise UserError(
                f"audio of type {type(audio).__name__}: expected a file, or a waveform [T] with "
                "its sampling rate as in (waveform, 4000)"
            )
        else:
            head, orig_rate = load_audio(audio, max_seconds=CHECKED_SECONDS)
            if len(head) < round(CHECKED_SECONDS * orig_rate):  # that was all of it
                waveform = resample(head, orig_rate, rate)
            else:
                waveform, _ = load_audio(audio, rate)
        peak = float(np.abs(waveform).max())
        if peak > LOUDEST_PEAK:  # integers kept as floats: no full scale of 1
            waveform, head = waveform / np.float32(peak), head / np.float32(peak)
        about = self.preprocessing
        gate = about.get("heart_sound_gate")
        heard = True
        if gate is not None:
            heard = is_heart_sound(head, orig_rate, None, gate)
        limited = band_limit(waveform, rate, about["band_low_hz"], about["band_high_hz"])
        window = self.make_features.window
        hop = round(about["hop_seconds"] * rate)
        heart_rate = estimate_heart_rate(waveform, rate)
        notes = check_signal(head, orig_rate, heart_rate)
        if not heard and not any(note.code == "silence" for note in notes):
            notes.append(NOT_A_HEART)
        return _Recording(
            waveform=tile_to_length(limited, window),
            starts=window_starts(len(limited), window, hop),
            duration_seconds=len(waveform) / rate,
            heart_rate=heart_rate,
            signal_notes=notes,
        )

    def _classify(self, batch: list[tuple[_Recording, int]]) -> None:
        if not batch:
            return
        window = self.make_features.window
        windows = np.stack([r.waveform[start : start + window] for r, start in batch])
        for (recording, _), row in zip(batch, self._logits(windows), strict=True):
            recording.logits.append(row)

    def _logits(self, windows: np.ndarray) -> np.ndarray:
        features = self.make_features(windows)
        if not isinstance(self.model, nn.Module):
            return self.model(features)
        with torch.inference_mode():
            inputs = {self.make_features.input_name: torch.from_numpy(features)}
            return self.model(**inputs).logits.numpy()

    def _answer(self, recording: _Recording | UserError) -> Prediction | UserError:
        if isinstance(recording, UserError):
            return recording
        logits = np.stack(recording.logits)
        probabilities = self.probabilities_of(logits)
        label = self.labels[int(probabilities.argmax())]
        calibration = self.preprocessing.get("calibration")
        threshold = calibration["abstain_below"] if calibration else 0.0
        codes = {note.code for note in recording.signal_notes}
        strange = bool({"not_a_heart", "speech_or_music"} & codes)
        # An artifact is a fair answer to what is no heart sound, but not to what is hardly heard;
        # nothing is one to silence.
        unfit = "too_quiet" in codes if label == "artifact" else strange
        unsure = probabilities.max() < threshold or unfit
        return Prediction(
            label=label,
            probabilities=dict(zip(self.labels, map(float, probabilities), strict=True)),
            decision=INCONCLUSIVE if unsure or "silence" in codes else label,
            calibrated=calibration is not None,
            heart_rate=recording.heart_rate,
            signal_notes=recording.signal_notes,
            window_start_seconds=np.array(recording.starts) / self.make_features.sampling_rate,
            window_probabilities=np.stack([self.probabilities_of(row[None]) for row in logits]),
            duration_seconds=recording.duration_seconds,
        )


def locate_classifier(
    repo_or_folder: str | Path | None = None, revision: str | None = None
) -> Path:
    """The folder of a classifier: the bundled one, a run's ``model/``, or a download.

    Raises:
        UserError: nothing is there.
    """
    if repo_or_folder is None:
        if not BUNDLED_CLASSIFIER.is_dir():
            raise UserError(
                "this version of hb-ssl bundles no classifier; train one with "
                "`hb-ssl train` and give its folder as --model"
            )
        return BUNDLED_CLASSIFIER
    folder = Path(repo_or_folder)
    if (folder / "model" / PREPROCESSING_FILE).is_file():
        return folder / "model"
    if folder.is_dir():
        if not (folder / PREPROCESSING_FILE).is_file():
            raise UserError(
                f"{folder}: has no {PREPROCESSING_FILE}; expected a finished `hb-ssl train` folder "
                "or its model/ folder"
            )
        return folder
    if folder.is_absolute() or str(repo_or_folder).startswith((".", "~")):
        raise UserError(f"{repo_or_folder}: no such folder; check the path")
    repo = str(repo_or_folder)
    # The weights come second: a repository that is not ours may hold many gigabytes of them.
    about = _download(repo, revision, ["*.json"])
    if not (about / PREPROCESSING_FILE).is_file():
        raise UserError(
            f"{repo}: has no {PREPROCESSING_FILE}; expected a repository made by `hb-ssl push`"
        )
    return _download(repo, revision, ["*.json", "*.safetensors", "README.md"])


def _stock_features(folder: Path) -> Any:
    from hb_ssl.models.backbones import load_feature_extractor

    return load_feature_extractor(str(folder))


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    from hb_ssl.hub_requests import ask_hub

    def download() -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))

    return ask_hub(download, repo, revision)


def _is_done(recording: _Recording | UserError) -> bool:
    return isinstance(recording, UserError) or len(recording.logits) == len(recording.starts)


def _raised(answer: Prediction | UserError) -> Prediction:
    if isinstance(answer, UserError):
        raise answer
    return answer


def _checked_waveform(audio: tuple[Any, ...]) -> tuple[np.ndarray, int]:
    if len(audio) != 2:
        raise UserError(f"tuple of {len(audio)}: expected a waveform [T] and its sampling rate")
    samples, rate = audio
    known = isinstance(rate, int | float | np.integer | np.floating)
    if not known or rate != rate // 1:  # NaN is unlike itself
        raise UserError(f"sampling rate {rate!r}: expected a whole number of Hz; pass e.g. 4000")
    if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise UserError(
            f"sampling rate {rate} Hz: expected {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz; "
            "pass the rate that the recording was made at"
        )
    waveform = np.asarray(samples)
    if waveform.ndim != 1 or not len(waveform):
        raise UserError(
            f"waveform of shape {waveform.shape}: expected mono samples [T] with T >= 1; average "
            "the channels first"
        )
    if waveform.dtype.kind not in "iuf":
        raise UserError(
            f"waveform of type {waveform.dtype}: expected numbers; pass a float or integer array"
        )
    if waveform.dtype.kind in "iu":
        limits = np.iinfo(waveform.dtype)
        middle = (int(limits.max) + int(limits.min) + 1) / 2  # unsigned samples rest there
        waveform = (waveform - middle) / (float(limits.max) - middle)
    if not np.isfinite(waveform).all():
        raise UserError("waveform holds NaN or infinite samples; expected finite numbers")
    if np.abs(waveform).max() > MAX_AMPLITUDE:
        raise UserError(
            f"waveform holds samples up to {np.abs(waveform).max():.0e}; expected about 1 at most, "
            "divide them by their full scale"
        )
    return waveform.astype(np.float32), int(rate)
