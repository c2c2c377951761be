"""Linear probes: what a frozen backbone, or log-mel statistics alone, tell about a recording."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from hb_ssl.audio import split_windows
from hb_ssl.data.dataset import FeatureMaker, Waveforms
from hb_ssl.data.log_mel import log_mel
from hb_ssl.models.backbones import family_of, load_feature_extractor, locate_backbone
from hb_ssl.models.classifier import build_classifier
from hb_ssl.models.pooling import NUM_CLASS_TOKENS

PROBES = ("embedding_probe", "log_mel_probe")
LOG_MEL_RATE, LOG_MEL_BINS = 2000, 20  # what the bundled backbone hears
INVERSE_PENALTIES = (0.001, 0.01, 0.1)  # C of logistic regression, from strong to weak L2
INNER_FOLDS = 3
BATCH_SIZE = 32


def log_mel_matrix(
    waveforms: Waveforms, recording_ids: Sequence[str], window_seconds: float, hop_seconds: float
) -> np.ndarray:
    """Mean, standard deviation and maximum of every mel bin, averaged over windows: ``[R, 3 M]``.

    Args:
        waveforms: at ``LOG_MEL_RATE``.
        recording_ids: R recordings.
        window_seconds: window length.
        hop_seconds: step between windows.
    """
    window, hop = round(window_seconds * LOG_MEL_RATE), round(hop_seconds * LOG_MEL_RATE)
    rows = []
    for recording_id in recording_ids:
        parts = []
        for samples in split_windows(waveforms[recording_id], window, hop):
            # Scaled to one level, as the pre-trained model learned to ignore it.
            samples = samples * (0.1 / max(float(np.sqrt(np.mean(samples**2))), 1e-5))
            frames = log_mel(samples.astype(np.float32), LOG_MEL_RATE, LOG_MEL_BINS)
            parts.append(np.concatenate([frames.mean(0), frames.std(0), frames.max(0)]))
        rows.append(np.mean(parts, axis=0))
    return np.stack(rows)


class FrozenBackbone:
    """A backbone that only describes recordings.

    Args:
        backbone: ``bundled``, a Hub id or a folder.
        window_seconds: window length.
        hop_seconds: step between windows.
        random_weights: draw the weights at random instead (the control).
        seed: of random weights.

    Raises:
        UserError: see ``build_classifier`` and ``FeatureMaker``.
    """

    def __init__(
        self,
        backbone: str,
        window_seconds: float,
        hop_seconds: float,
        random_weights: bool = False,
        seed: int = 0,
    ) -> None:
        classifier: Any = build_classifier(
            backbone, ["no", "yes"], random_weights=random_weights, seed=seed
        )
        self.model = getattr(classifier, family_of(classifier.config).backbone_name).eval()
        self.has_class_tokens = classifier.config.model_type == "audio-spectrogram-transformer"
        extractor = load_feature_extractor(locate_backbone(backbone))
        self.make_features = FeatureMaker(extractor, window_seconds)
        self.hop = round(hop_seconds * self.make_features.sampling_rate)

    @torch.inference_mode()
    def embed(self, waveform: np.ndarray) -> np.ndarray:
        """``[T]`` to ``[L D]``: every hidden state averaged over frames and windows, side by side.

        With class tokens (AST), their last state comes after.
        """
        windows = split_windows(waveform, self.make_features.window, self.hop)
        total: np.ndarray | None = None
        for start in range(0, len(windows), BATCH_SIZE):
            inputs = torch.from_numpy(self.make_features(windows[start : start + BATCH_SIZE]))
            outputs = self.model(inputs, output_hidden_states=True)
            first = NUM_CLASS_TOKENS if self.has_class_tokens else 0
            pooled = [state[:, first:].mean(dim=1) for state in outputs.hidden_states]
            if self.has_class_tokens:
                pooled.append(outputs.last_hidden_state[:, :NUM_CLASS_TOKENS].mean(dim=1))
            summed = torch.cat(pooled, dim=1).sum(dim=0).double().numpy()
            total = summed if total is None else total + summed
        assert total is not None
        return (total / len(windows)).astype(np.float32)


def embedding_matrix(
    backbone: FrozenBackbone, waveforms: Waveforms, recording_ids: Sequence[str]
) -> np.ndarray:
    """``FrozenBackbone.embed`` of every recording ``[R, L D]``.

    Args:
        backbone: the describer.
        waveforms: at the backbone's rate.
        recording_ids: R recordings.
    """
    progress = tqdm(recording_ids, desc="Embedding", unit="recording", disable=None)
    return np.stack([backbone.embed(waveforms[recording_id]) for recording_id in progress])


def fit_predict_probe(
    train_features: np.ndarray,
    train_labels: Sequence[str],
    train_groups: Sequence[str],
    test_features: np.ndarray,
    labels: Sequence[str],
    seed: int,
) -> np.ndarray:
    """Class-balanced logistic regression; its penalty is chosen by grouped folds of the training.

    Args:
        train_features: ``[M, F]``.
        train_labels: M label names.
        train_groups: M groups; recordings of a group share an inner fold.
        test_features: ``[N, F]``.
        labels: label names of the task, the columns of the result.
        seed: of the inner folds.

    Returns:
        Probabilities ``[N, C]``; 0 for a class that training does not hold.
    """
    y = np.array([list(labels).index(label) for label in train_labels])
    scores = np.zeros(len(INVERSE_PENALTIES))
    inner = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=seed)
    for fit, check in inner.split(train_features, y, train_groups):
        for number, penalty in enumerate(INVERSE_PENALTIES):
            model = _logistic(penalty).fit(train_features[fit], y[fit])
            predicted = model.predict(train_features[check])
            scores[number] += balanced_accuracy_score(y[check], predicted)
    best = INVERSE_PENALTIES[int(scores.argmax())]  # the strongest of equals
    model = _logistic(best).fit(train_features, y)
    probabilities = np.zeros((len(test_features), len(labels)))
    probabilities[:, model.classes_] = model.predict_proba(test_features)
    return probabilities


def _logistic(inverse_penalty: float) -> Pipeline:
    logistic = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), logistic)
