"""The official scores of the PASCAL Classifying Heart Sounds Challenge 2011, and honest variants.

Formulas: Bentley, Nordehn, Coimbra and Mannor 2011, the challenge's page; discriminant power as in
Sokolova et al. 2006 but with decimal logarithms, as the challenge has it. "Correct" always means
the exact class: a murmur taken for an extra sound is no correct heart problem.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hb_ssl.errors import UserError
from hb_ssl.evaluation.pascal_leaks import (
    group_of_test,
    is_simulator_key,
    read_manifests,
    subject_lookup,
)
from hb_ssl.evaluation.workbook import (
    SET_LABELS,
    ReferenceRow,
    read_challenge_predictions,
    read_reference,
)

BETA = 0.9
PROBLEMS = {"a": ("murmur", "extrahls"), "b": ("murmur", "extrastole")}
SET_SCORES = {
    "a": (
        "total_precision",
        "artifact_sensitivity",
        "artifact_specificity",
        "artifact_youden",
        "problem_sensitivity",
        "problem_precision",
        "problem_f_score",
    ),
    "b": (
        "total_precision",
        "problem_sensitivity",
        "problem_specificity",
        "problem_youden",
        "discriminant_power",
    ),
}
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Scored:
    """One test recording: key (see ``recording_key``), true and predicted class."""

    key: str
    label: str
    prediction: str


def challenge_scores(
    confusion: np.ndarray, set_: str, sheet_compatible: bool = False
) -> dict[str, float]:
    """Every score of the challenge for one set, from counts.

    Args:
        confusion: ``[C, C]`` in the order of ``SET_LABELS[set_]``, rows are true classes.
        set_: ``a`` or ``b``.
        sheet_compatible: the F-score as the published sheet computes it, with 0.81 for the
            1.81 = 1 + 0.9^2 of the formula.

    Returns:
        ``precision_<class>``, ``total_precision`` (their sum; a class never predicted adds 0) and
        the names in ``SET_SCORES``. NaN where a denominator is 0; the discriminant power is
        infinite where sensitivity or specificity is 0 or 1.
    """
    labels = SET_LABELS[set_]
    correct, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    at = {label: i for i, label in enumerate(labels)}
    problem = [at[label] for label in PROBLEMS[set_]]
    precision = {label: _ratio(correct[i], predicted[i]) for label, i in at.items()}
    scores = {f"precision_{label}": value for label, value in precision.items()}
    scores["total_precision"] = sum(v for v in precision.values() if not math.isnan(v))
    sensitivity = _ratio(correct[problem].sum(), true[problem].sum())
    if set_ == "b":
        specificity = _ratio(correct[at["normal"]], true[at["normal"]])
        return {
            **scores,
            "problem_sensitivity": sensitivity,
            "problem_specificity": specificity,
            "problem_youden": sensitivity + specificity - 1,
            "discriminant_power": math.sqrt(3)
            / math.pi
            * (_log10_odds(sensitivity) + _log10_odds(specificity)),
        }
    others = [i for label, i in at.items() if label != "artifact"]
    artifact_sensitivity = _ratio(correct[at["artifact"]], true[at["artifact"]])
    artifact_specificity = _ratio(correct[others].sum(), true[others].sum())
    problem_precision = _ratio(correct[problem].sum(), predicted[problem].sum())
    factor = BETA**2 if sheet_compatible else 1 + BETA**2
    return {
        **scores,
        "artifact_sensitivity": artifact_sensitivity,
        "artifact_specificity": artifact_specificity,
        "artifact_youden": artifact_sensitivity + artifact_specificity - 1,
        "problem_sensitivity": sensitivity,
        "problem_precision": problem_precision,
        "problem_f_score": _ratio(
            factor * problem_precision * sensitivity,
            BETA**2 * problem_precision + sensitivity,
        ),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def _log10_odds(share: float) -> float:
    if share in (0.0, 1.0):
        return math.inf if share else -math.inf
    return math.log10(share / (1 - share))


def score_pascal(
    reference: str | Path,
    predictions: str | Path,
    sets: Sequence[str] | None = None,
    sheet_compatible: bool = False,
    train_manifests: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Scores predictions of the challenge's test recordings.

    Args:
        reference: the challenge's workbook (``.xlsx``) or a CSV ``file,label``.
        predictions: CSV ``file,prediction``.
        sets: sets to score; by default both, and the reference must hold both.
        sheet_compatible: see ``challenge_scores``; also counts a key that the reference lists twice
            twice, as the sheet does.
        train_manifests: ``splits.json``, run folder or CSV naming the training recordings (one a
            model), for the scores without their subjects and the baseline that looks subjects up.

    Returns:
        ``{"sets": {set: {variant: {"n", "scores", "intervals", ...}}}, "notes": [...]}`` (JSON
        values; None where a score is undefined or infinite). Variants: ``all``,
        ``without_simulator`` (set A), ``unseen_groups`` and ``subject_lookup`` (given a manifest).

    Raises:
        UserError: a malformed file, or recordings that the two files don't share.
    """
    chosen = tuple(sets or ("a", "b"))
    rows = read_reference(reference, chosen)
    absent = [set_ for set_ in chosen if not any(row.set == set_ for row in rows)]
    if absent:
        raise UserError(
            f"{reference}: holds no recording of set {absent[0].upper()}; give --set "
            f"{'b' if absent[0] == 'a' else 'a'} to score the other set alone"
        )
    predicted = read_challenge_predictions(predictions, chosen)
    notes: list[str] = []
    manifest = read_manifests(train_manifests) if train_manifests else None
    result: dict[str, Any] = {}
    for set_ in chosen:
        own = [row for row in rows if row.set == set_]
        answers = {key: label for (s, key), label in predicted.items() if s == set_}
        pairs = _match(own, answers, set_, sheet_compatible, str(predictions), notes)
        result[set_] = _variants(pairs, set_, sheet_compatible, manifest, notes)
    return {
        "reference": Path(reference).name,
        "predictions": Path(predictions).name,
        "sheet_compatible": sheet_compatible,
        "sets": result,
        "notes": notes,
    }


def _match(
    rows: Sequence[ReferenceRow],
    answers: Mapping[str, str],
    set_: str,
    sheet_compatible: bool,
    where: str,
    notes: list[str],
) -> list[Scored]:
    """One entry a recording (a line, if sheet compatible); everything unmatched is an error."""
    shown = f"set {set_.upper()}"
    if not answers:
        raise UserError(
            f"{where}: holds no prediction for {shown}; add its recordings or give --set "
            f"{'b' if set_ == 'a' else 'a'} to score the other set alone"
        )
    lines: dict[str, list[ReferenceRow]] = defaultdict(list)
    for row in rows:
        lines[row.key].append(row)
    missing = sorted(key for key in lines if key not in answers)
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of the {len(lines)} {shown} recordings of the reference have "
            f"no prediction (first: {missing[0]}); predict all of them"
        )
    twice = {key: own for key, own in lines.items() if len(own) > 1}
    unknown = sorted(key for key in answers if key not in lines)
    # A key listed twice stands in the place of another recording, which then has no row.
    if len(unknown) > sum(len(own) - 1 for own in twice.values()):
        raise UserError(
            f"{where}: {len(unknown)} {shown} recordings are not in the reference (first: "
            f"{unknown[0]}); expected the test recordings only"
        )
    for key in unknown:
        notes.append(f"{shown}: {key} has a prediction but no row in the reference: not scored")
    for key, own in twice.items():
        labels = {row.label for row in own}
        places = " and ".join(row.where.rpartition(": ")[2] for row in own)
        if sheet_compatible:
            notes.append(f"{shown}: {key} is listed in {places}: each line counts, as in the sheet")
        elif len(labels) == 1:
            notes.append(f"{shown}: {key} is listed in {places} with one label: counted once")
        else:
            raise UserError(
                f"{own[0].where}: {key} is listed in {places} as {' and '.join(sorted(labels))}; "
                "remove the wrong line, or give --sheet-compatible to count each line as the sheet "
                "does"
            )
    return [
        Scored(key, row.label, answers[key])
        for key, own in lines.items()
        for row in (own if sheet_compatible else own[:1])
    ]


def _variants(
    pairs: list[Scored],
    set_: str,
    sheet_compatible: bool,
    manifest: Mapping[str, str] | None,
    notes: list[str],
) -> dict[str, Any]:
    keys = [(set_, pair.key) for pair in pairs]
    groups = group_of_test(keys, manifest or {})

    def block(chosen: list[Scored]) -> dict[str, Any]:
        own = [groups[set_, pair.key].group for pair in chosen]
        return _scored_block(chosen, own, set_, sheet_compatible)

    result = {"all": block(pairs)}
    if set_ == "a":
        result["without_simulator"] = block([p for p in pairs if not is_simulator_key("a", p.key)])
    if manifest is not None:
        unseen = [p for p in pairs if not groups[set_, p.key].in_training]
        result["unseen_groups"] = block(unseen)
        looked_up, known = subject_lookup(keys, manifest, set_)
        baseline = [Scored(p.key, p.label, label) for p, label in zip(pairs, looked_up)]
        result["subject_lookup"] = {**block(baseline), "found": int(sum(known))}
        notes.append(
            f"set {set_.upper()}: {len(pairs) - len(unseen)} of {len(pairs)} recordings come from "
            "a person or session that is in the training recordings"
        )
    return result


def _scored_block(
    pairs: Sequence[Scored], groups: Sequence[str], set_: str, sheet_compatible: bool
) -> dict[str, Any]:
    if not pairs:
        return {"n": 0, "num_groups": 0, "accuracy": None, "uar": None, "scores": {},
                "intervals": {}, "confusion_matrix": []}  # fmt: skip
    labels = SET_LABELS[set_]
    names = sorted(set(groups))
    counts = np.zeros((len(names), len(labels), len(labels)))
    for pair, group in zip(pairs, groups, strict=True):
        cell = labels.index(pair.label), labels.index(pair.prediction)
        counts[(names.index(group), *cell)] += 1
    confusion = counts.sum(axis=0)
    scores = challenge_scores(confusion, set_, sheet_compatible)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    return {
        "n": len(pairs),
        "num_groups": len(names),
        "accuracy": float(np.trace(confusion) / len(pairs)),
        "uar": float(recall.mean()),
        "scores": {name: _finite(value) for name, value in scores.items()},
        "intervals": _intervals(
            counts, lambda c: challenge_scores(c, set_, sheet_compatible), list(scores)
        ),
        "confusion_matrix": confusion.astype(int).tolist(),
    }


def _intervals(
    counts: np.ndarray, score: Callable[[np.ndarray], dict[str, float]], names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """95 % percentile intervals from a bootstrap over groups; ``counts`` is ``[G, C, C]``."""
    if len(counts) < 2:
        return {name: {"low": None, "high": None} for name in names}
    rng = np.random.default_rng(0)
    share = np.full(len(counts), 1 / len(counts))
    weights = rng.multinomial(len(counts), share, size=NUM_RESAMPLES)
    resampled = [score(confusion) for confusion in np.tensordot(weights, counts, axes=1)]
    result: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = np.array([scores[name] for scores in resampled])
        values = np.sort(values[~np.isnan(values)])
        # Order statistics, not interpolation: the discriminant power may be infinite.
        ends = [values[round(q * (len(values) - 1))] if len(values) else math.nan
                for q in (0.025, 0.975)]  # fmt: skip
        result[name] = {"low": _finite(ends[0]), "high": _finite(ends[1])}
    return result


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


VARIANT_TITLES = {
    "all": "all test recordings",
    "without_simulator": "without the simulator's recordings",
    "unseen_groups": "people and sessions that are not in the training recordings",
    "subject_lookup": "no-audio baseline: the commonest training class of the same person/session",
}


def format_challenge_scores(result: Mapping[str, Any]) -> str:
    """The result of ``score_pascal`` as text."""
    lines = []
    if result["sheet_compatible"]:
        lines.append("As the published sheet computes them (F-score numerator 0.81, not 1.81).")
    for set_, variants in result["sets"].items():
        for variant, block in variants.items():
            lines += ["", f"Set {set_.upper()}, {VARIANT_TITLES[variant]}: {block['n']} recordings"]
            if not block["n"]:
                lines.append("  none, so no score")
                continue
            if "found" in block:
                lines.append(f"  {block['found']} of {block['n']} were found in the training list")
            for name, value in block["scores"].items():
                interval = block["intervals"][name]
                lines.append(f"  {name.replace('_', ' '):<24}{_shown(value)}{_range(interval)}")
            lines.append(f"  {'accuracy':<24}{_shown(block['accuracy'])}")
            lines.append(f"  {'UAR':<24}{_shown(block['uar'])}")
    repeated = Counter(result["notes"])
    lines += ["", *(f"note: {note}" for note in repeated)] if repeated else []
    lines += [
        "",
        "In brackets: 95 % intervals from a bootstrap over people and sessions. '-': undefined (a "
        "class never predicted or absent) or infinite.",
    ]
    return "\n".join(lines).strip()


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _range(interval: Mapping[str, float | None]) -> str:
    if interval["low"] is None or interval["high"] is None:
        return ""
    return f"  ({interval['low']:.3f} to {interval['high']:.3f})"
