"""Linear probes that say what a frozen backbone knows, cheap enough to run during pre-training.

For monitoring and for comparing recipes; reported results come from the cross-validation command.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from hb_ssl.data.corpora import Corpus
from hb_ssl.data.task import prepare_task
from hb_ssl.pretraining.features import Windowed

WINDOWS_PER_RECORDING = 4
BATCH_SIZE = 64  # windows at a time
NUM_FOLDS = 5
_RIDGE = 0.3


@dataclass(frozen=True)
class ProbeSet:
    """Windows of labelled recordings.

    Attributes:
        name: column of the results table.
        windows: log-mel ``[N, F, M]`` or samples ``[N, W]``, not yet normalised by the extractor.
        recording: recording number of each window ``[N]``.
        labels: ``[R]``.
        groups: ``[R]``; recordings of a group share a fold.
        scored: ``name -> mask [R]`` of the recordings that form a task of their own.
    """

    name: str
    windows: np.ndarray
    recording: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    scored: dict[str, np.ndarray]


def make_probe_set(
    name: str,
    features: Windowed,
    chosen: Sequence[tuple[int, str, str]],
    length: int,
    scored: dict[str, np.ndarray] | None = None,
) -> ProbeSet:
    """Cuts evenly spaced windows from ``(corpus index, label, group)`` rows."""
    windows, owner = [], []
    for number, (index, _, _) in enumerate(chosen):
        last = max(int(features.counts[index]) - length, 0)
        count = min(WINDOWS_PER_RECORDING, 1 + 2 * last // length)
        for start in np.linspace(0, last, count).astype(int):
            windows.append(features.window(index, int(start), length).astype(np.float16))
            owner.append(number)
    labels = np.array([row[1] for row in chosen])
    groups = np.array([row[2] for row in chosen])
    everything = {name: np.ones(len(labels), dtype=bool)}
    return ProbeSet(name, np.stack(windows), np.array(owner), labels, groups, scored or everything)


def murmur_rows(
    corpus: Corpus, murmurs: np.ndarray, indices: Sequence[int]
) -> list[tuple[int, str, str]]:
    """Murmur present or absent of some recordings, grouped by person; the unknown are left out."""
    return [
        (i, "Present" if murmurs[i] else "Absent", str(corpus.recordings[i].subject))
        for i in indices
        if murmurs[i] >= 0
    ]


def pascal_rows(
    corpus: Corpus, folder: str | Path
) -> tuple[list[tuple[int, str, str]], dict[str, np.ndarray]]:
    """Labelled PASCAL recordings of ``merge`` with their leak-free groups, and each set's mask."""
    task = prepare_task(str(folder), "merge")
    at = {r.recording_id.split("/")[-1]: i for i, r in enumerate(corpus.recordings)}
    rows, sets = [], []
    for item in task.items:
        stem = Path(task.recordings[item.recording_id].path).stem
        rows.append((at[stem], item.label, item.group))
        sets.append(item.set)
    of_set = np.array(sets)
    masks = {"pascal_merge": np.ones(len(rows), dtype=bool)}
    masks |= {f"pascal_{s}": of_set == s[-1] for s in ("set_a", "set_b")}
    return rows, masks


def enough_groups(rows: Sequence[tuple[int, str, str]]) -> bool:
    """Whether two classes at least exist, and each can be in every fold of grouped folds."""
    groups: dict[str, set[str]] = {}
    for _, label, group in rows:
        groups.setdefault(label, set()).add(group)
    return len(groups) > 1 and all(len(members) >= NUM_FOLDS for members in groups.values())


def log_mel_statistics(windows: np.ndarray) -> np.ndarray:
    """The probe baseline: mean and standard deviation of each mel bin, ``[N, 1, 2 M]``."""
    floats = windows.astype(np.float32)
    return np.concatenate([floats.mean(axis=1), floats.std(axis=1)], axis=1)[:, None]


def embed(
    model: Any, windows: np.ndarray, normalise: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """What a pre-training model makes of windows: its states averaged over time, ``[N, L, D]``."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    made = []
    for start in range(0, len(windows), BATCH_SIZE):
        batch = torch.from_numpy(windows[start : start + BATCH_SIZE].astype(np.float32)).to(device)
        made.append(model.describe(normalise(batch)).cpu())
    model.train(training)
    return torch.cat(made).numpy()


def probe_scores(probe: ProbeSet, embedded: np.ndarray, seeds: int = 2) -> dict[str, float]:
    """`recording_uar` of a ridge classifier in grouped 5-fold cross-validation.

    Args:
        probe: labels, groups and tasks.
        embedded: ``[N, L, D]`` per window; windows are averaged to recordings first.
        seeds: repeats with other folds, averaged.

    Returns:
        ``<task>/last`` (the class tokens), ``<task>/best_layer`` (optimistic: the best of the L
        scores) and ``<task>/all`` (all layers side by side).
    """
    count = np.bincount(probe.recording)[:, None, None]
    pooled = np.zeros((len(count), *embedded.shape[1:]))
    np.add.at(pooled, probe.recording, embedded)
    pooled /= count
    scores: dict[str, float] = {}
    for task, mask in probe.scored.items():
        labels, groups = probe.labels[mask], probe.groups[mask]

        def uar(values: np.ndarray, labels: np.ndarray = labels, groups: np.ndarray = groups):
            runs = [_grouped_uar(values, labels, groups, seed) for seed in range(seeds)]
            return round(float(np.mean(runs)), 4)

        layers = [uar(pooled[mask][:, layer]) for layer in range(pooled.shape[1])]
        scores[f"{task}/last"] = layers[-1]
        scores[f"{task}/best_layer"] = max(layers)
        scores[f"{task}/all"] = uar(pooled[mask].reshape(int(mask.sum()), -1))
    return scores


def _grouped_uar(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> float:
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    predicted = np.empty_like(labels)
    for train, test in folds.split(values, labels, groups):
        predicted[test] = _ridge_predict(values[train], labels[train], values[test])
    return float(np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)]))


def _ridge_predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    # Class-balanced ridge regression on +-1 targets: closed form, so it costs milliseconds.
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (train - mean) / spread, (test - mean) / spread
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weight = (1 / counts)[codes] / len(classes)
    targets = 2.0 * (labels[:, None] == classes) - 1
    centre, offset = weight @ train, weight @ targets
    centred = train - centre
    gram = (centred * weight[:, None]).T @ centred
    gram[np.diag_indices_from(gram)] += _RIDGE
    solution = np.linalg.solve(gram, (centred * weight[:, None]).T @ (targets - offset))
    return classes[((test - centre) @ solution + offset).argmax(axis=1)]
