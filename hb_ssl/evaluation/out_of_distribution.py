"""Is this a heart sound at all? A gate in front of the classifier, and how well it keeps its post.

The gate is a logistic regression on the hand-made features of ``baselines`` and their squares (so
that "unlike a heart" can mean too much or too little of something). It is fitted on real heart
sounds against synthetic other sounds; it is tested on people it was not fitted on, against sounds
from other synthesisers and against PASCAL's real artifacts, which it never saw either. Both PASCAL
sets weigh the same, else the gate would learn that a phone recording is no heart sound.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from hb_ssl.data.non_heart_sounds import KINDS, simulate_non_heart
from hb_ssl.data.splits import Item
from hb_ssl.evaluation.calibration import fold_numbers
from hb_ssl.evaluation.compare import auroc
from hb_ssl.evaluation.hand_made_features import FEATURE_RATE, recording_features
from hb_ssl.evaluation.intervals import bootstrap_statistic
from hb_ssl.evaluation.verdict import expand_features, score_features

TRUE_ACCEPT = 0.95  # share of the heart sounds to let through, both sets weighing the same
STRENGTH = 0.001  # inverse L2 penalty: there are as many features as recordings
FITTING_EACH, TESTING_EACH = 70, 50  # synthetic sounds of each kind
DIGITS = 6  # significant, in the saved gate


def synthetic_features(family: str, num_each: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Features ``[N, F]`` of sounds that are not a heart, and the kind of each.

    Args:
        family: ``fitting`` or ``testing`` (see ``non_heart_sounds``).
        num_each: sounds of every kind, 2 to 12 s long.
        seed: of the sounds.
    """
    rows, kinds = [], []
    total = num_each * len(KINDS[family])
    with tqdm(total=total, desc=f"{family} sounds", disable=None, leave=False) as bar:
        for number, kind in enumerate(KINDS[family]):
            rng = np.random.default_rng([seed, len(family), number])
            for _ in range(num_each):
                sound = simulate_non_heart(family, kind, rng.uniform(2, 12), FEATURE_RATE, rng)
                rows.append(recording_features(sound, FEATURE_RATE))
                kinds.append(kind)
                bar.update()
    return np.stack(rows), kinds


def fit_gate(
    heart: np.ndarray, heart_sets: Sequence[str], other: np.ndarray, fitted_on: str = ""
) -> dict[str, Any]:
    """A gate without its threshold.

    Args:
        heart: features ``[N, F]`` of real heart sounds.
        heart_sets: ``a`` or ``b`` each.
        other: features ``[M, F]`` of other sounds.
        fitted_on: what these are, in words.

    Returns:
        JSON values: ``mean``, ``scale``, ``linear``, ``square`` (``[F]`` each), ``intercept``,
        ``fitted_on``.
    """
    sets = np.asarray(heart_sets)
    weight = np.concatenate([np.ones(len(heart)), np.full(len(other), 1 / len(other))])
    for name in np.unique(sets):
        weight[: len(heart)][sets == name] = 1 / (sets == name).sum() / len(np.unique(sets))
    mean, scale = _moments(heart, weight[: len(heart)])
    expanded = expand_features(np.vstack([heart, other]), mean, scale)
    centre, spread = _moments(expanded, weight)
    is_other = np.r_[np.zeros(len(heart)), np.ones(len(other))]
    model = LogisticRegression(C=STRENGTH, max_iter=3000)
    model.fit((expanded - centre) / spread, is_other, sample_weight=weight * len(weight) / 2)
    slope = model.coef_[0] / spread
    half = heart.shape[1]
    return {
        "mean": _short(mean),
        "scale": _short(scale),
        "linear": _short(slope[:half]),
        "square": _short(slope[half:]),
        "intercept": float(model.intercept_[0] - slope @ centre),
        "fitted_on": fitted_on,
    }


def _moments(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.average(values, axis=0, weights=weight)
    deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    return mean, np.where(deviation > 1e-6, deviation, 1.0)


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def evaluate_gate(
    features: np.ndarray,
    items: Sequence[Item],
    fitting: np.ndarray,
    testing: np.ndarray,
    testing_kinds: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cross-validates the gate over people and sessions and fits the final one on all of them.

    Args:
        features: ``[N, F]`` of the labelled recordings.
        items: these recordings; those labelled ``artifact`` are a test only.
        fitting: synthetic features to fit on.
        testing: synthetic features to test on.
        testing_kinds: the kind of each.

    Returns:
        The gate (with ``threshold`` and ``true_accept``) and its scores: ``auroc`` (with interval),
        ``false_accept`` at the threshold, overall and by kind (and where 95 % of all recordings
        are let through, whatever their set), ``true_accept`` by set, and
        ``artifacts``, the same for PASCAL's artifacts where there are any. ``honest`` repeats both
        shares with thresholds chosen without the recordings they are applied to.

    Raises:
        UserError: too few groups to cross-validate.
    """
    heart = np.array([item.label != "artifact" for item in items])
    sets = np.array([item.set for item in items])
    groups = np.array([item.group for item in items])
    fold = fold_numbers(items)
    num_folds = int(fold.max()) + 1
    scores = np.zeros(len(items))
    of_testing = np.zeros((num_folds, len(testing)))
    for number in range(num_folds):
        train = heart & (fold != number)
        gate = fit_gate(features[train], sets[train], fitting)
        scores[fold == number] = score_features(features[fold == number], gate)
        of_testing[number] = score_features(testing, gate)
    threshold = _threshold(scores[heart], sets[heart])
    kinds = np.asarray(testing_kinds)
    accepted = of_testing <= threshold
    chosen = [
        _threshold(scores[heart & (fold != n)], sets[heart & (fold != n)]) for n in range(num_folds)
    ]
    let_in = scores[heart] <= np.array(chosen)[fold[heart]]
    results: dict[str, Any] = {
        "num_heart": {
            "all": int(heart.sum()),
            **{f"set_{s}": int((sets[heart] == s).sum()) for s in np.unique(sets[heart])},
        },
        "num_testing": len(testing),
        "auroc": _auroc_interval(scores[heart], groups[heart], of_testing.mean(axis=0)),
        "false_accept": float(accepted.mean()),
        "false_accept_at_95_of_all": float(
            (of_testing <= np.quantile(scores[heart], TRUE_ACCEPT)).mean()
        ),
        "false_accept_by_kind": {
            str(kind): float(accepted[:, kinds == kind].mean()) for kind in dict.fromkeys(kinds)
        },
        "true_accept": {
            "all": float((scores[heart] <= threshold).mean()),
            **{f"set_{s}": float((scores[heart & (sets == s)] <= threshold).mean())
               for s in np.unique(sets[heart])},
        },
        "honest": {
            "true_accept": float(let_in.mean()),
            "false_accept": float((of_testing <= np.array(chosen)[:, None]).mean()),
        },
    }  # fmt: skip
    if (~heart).any():
        artifacts = scores[~heart]
        results["artifacts"] = {
            "n": int((~heart).sum()),
            "false_accept": float((artifacts <= threshold).mean()),
            "auroc": auroc(np.r_[scores[heart], artifacts],
                           np.r_[np.zeros(heart.sum()), np.ones(len(artifacts))] > 0),
        }  # fmt: skip
    words = (
        f"{int(heart.sum())} heart sounds of {len(set(groups[heart]))} people and sessions against "
        f"{len(fitting)} synthetic other sounds"
    )
    final = fit_gate(features[heart], sets[heart], fitting, words)
    return {**final, "threshold": threshold, "true_accept": TRUE_ACCEPT}, results


def _threshold(scores: np.ndarray, sets: np.ndarray) -> float:
    """Lets ``TRUE_ACCEPT`` of the heart sounds through, every set weighing the same."""
    order = np.argsort(scores, kind="stable")
    names = np.unique(sets)
    weight = np.sum([(sets == s) / (sets == s).sum() / len(names) for s in names], axis=0)
    reached = np.cumsum(weight[order]) >= TRUE_ACCEPT - 1e-9
    return float(scores[order][np.argmax(reached)])


def _auroc_interval(
    heart: np.ndarray, groups: np.ndarray, other: np.ndarray
) -> dict[str, float | None]:
    """Resamples people; the synthetic sounds stay."""

    def of(index: np.ndarray) -> float:
        positive = np.r_[np.zeros(len(index)), np.ones(len(other))] > 0
        return auroc(np.r_[heart[index], other], positive)

    return bootstrap_statistic([str(group) for group in groups], of, num_resamples=500)
