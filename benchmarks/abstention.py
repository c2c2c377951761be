"""Ways to choose which 20 % of the recordings to leave unanswered, and what each gains in UAR.

    python benchmarks/abstention.py RUN [RUN ...]      folders of `hb-ssl cv` in the same folds

The first run is scored alone, then the mean of all of them. Out-of-fold rows, seed by seed; the
method in use (highest probability) has its interval from a bootstrap over subjects in ``trust.md``.
Writes ``benchmarks/results/abstention.{json,md}``.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from foundation_model import mean_probabilities

from hb_ssl.cli import run_command
from hb_ssl.evaluation.calibration import (
    crossfit_calibration,
    label_ids_of,
    probability_matrix,
)
from hb_ssl.evaluation.metrics import labels_of, read_predictions
from hb_ssl.evaluation.selective import uar_of
from hb_ssl.files import write_json_atomic, write_text_atomic

RESULTS = Path(__file__).parent / "results"
COVERAGE, TARGET = 0.8, 0.06


def _margin(p: np.ndarray) -> np.ndarray:
    ordered = np.sort(p, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def _rank_in_class(p: np.ndarray) -> np.ndarray:
    """Share of the recordings of the same answer that are less sure: each class loses 20 %."""
    chosen, best = p.argmax(axis=1), p.max(axis=1)
    rank = np.empty(len(p))
    for c in np.unique(chosen):
        own = np.flatnonzero(chosen == c)
        rank[own[np.argsort(best[own])]] = (np.arange(len(own)) + 0.5) / len(own)
    return rank


def _over_prior(p: np.ndarray) -> np.ndarray:
    """Highest probability after dividing by how often the classes are expected: rare ones count."""
    relative = p / p.mean(axis=0)
    return relative.max(axis=1) / relative.sum(axis=1)


CONFIDENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "highest probability": lambda p: p.max(axis=1),
    "margin to the second": _margin,
    "negative entropy": lambda p: (p * np.log(np.clip(p, 1e-12, 1))).sum(axis=1),
    "rank within the answer": _rank_in_class,
    "highest over prior": _over_prior,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    folders = [Path(run) for run in parser.parse_args().runs]
    runs = [read_predictions(folder / "predictions.csv") for folder in folders]
    labels = labels_of(runs[0])
    models = {folders[0].name: runs[0]}
    if len(runs) > 1:
        models["mean of " + ", ".join(f.name for f in folders)] = mean_probabilities(runs)
    results = []
    for model, rows in models.items():
        for scaling in ("none", "temperature", "vector"):
            scaled = rows if scaling == "none" else crossfit_calibration(rows, labels, scaling)
            for name, confidence in CONFIDENCES.items():
                scores = _gain(scaled, labels, confidence)
                results.append({"model": model, "scaling": scaling, "confidence": name, **scores})
    write_json_atomic(RESULTS / "abstention.json", {"coverage": COVERAGE, "results": results})
    write_text_atomic(RESULTS / "abstention.md", table(results))
    print(table(results))


def _gain(
    rows: list[dict[str, Any]], labels: list[str], confidence: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    everything, kept = [], []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        p, truth = probability_matrix(own, labels), label_ids_of(own, labels)
        predicted = p.argmax(axis=1)
        sure = np.argsort(-confidence(p), kind="stable")[: round(COVERAGE * len(own))]
        everything.append(uar_of(truth, predicted))
        kept.append(uar_of(truth[sure], predicted[sure]))
    return {
        "uar_all": float(np.mean(everything)),
        "uar_at_coverage": float(np.mean(kept)),
        "gain": float(np.mean(kept) - np.mean(everything)),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a way."""
    lines = [
        "# Leaving 20 % unanswered",
        "",
        f"Out of fold; target: UAR higher by {TARGET} or more. Made by `benchmarks/abstention.py`.",
        "",
        "| model | scaling | confidence | UAR of all | UAR of surest 80 % | gain |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['scaling']} | {r['confidence']} | {r['uar_all']:.3f} | "
        f"{r['uar_at_coverage']:.3f} | {r['gain']:+.3f} |"
        for r in results
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
