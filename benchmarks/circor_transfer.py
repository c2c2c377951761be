"""Murmur per CirCor patient from the frozen backbone, on patients that pre-training never saw.

    python benchmarks/circor_transfer.py --corpora CIRCOR_DIR PHYSIONET_DIR [--backbone DIR]

One vector a patient (mean and maximum of the embeddings of the auscultation sites), class-balanced
logistic regression with its penalty chosen by grouped folds of the training patients; tested once
on the held-out 20 % of patients (those that ``configs/pretrain_pcg.yaml`` holds out). Weighted
accuracy: the George B. Moody challenge 2022 (weights 5, 3, 1 for Present, Unknown, Absent; Reyna et
al. 2023). Its test set is not public, so these numbers stand beside published ones, not in their
ranking. Writes ``benchmarks/results/circor_transfer.json`` and ``.md``.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hb_ssl.cli import run_command
from hb_ssl.data.corpora import CIRCOR_TABLE, load_corpus, split_corpus
from hb_ssl.errors import UserError
from hb_ssl.evaluation.probes import FrozenBackbone, fit_predict_probe
from hb_ssl.files import cache_folder, write_json_atomic, write_text_atomic
from hb_ssl.models.pcg import PCG_SAMPLING_RATE
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.runs import describe_environment

RESULTS = Path(__file__).parent / "results"
CLASSES = ["Present", "Unknown", "Absent"]
WEIGHTS = np.array([5, 3, 1])
NUM_RESAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", required=True, help="as in pre-training")
    parser.add_argument("--backbone", default="bundled")
    arguments = parser.parse_args()
    tables = [Path(c) / CIRCOR_TABLE for c in arguments.corpora]
    tables = [table for table in tables if table.is_file()]
    if not tables:
        raise UserError(f"corpora: none holds {CIRCOR_TABLE}; expected the CirCor folder")
    with tables[0].open(newline="", encoding="utf-8") as stream:
        murmurs = {row["Patient ID"]: row["Murmur"] for row in csv.DictReader(stream)}
    corpus = load_corpus(arguments.corpora, PCG_SAMPLING_RATE, cache_folder() / "corpora")
    _, held_out = split_corpus(corpus, PretrainConfig(corpora=["x"]).held_out_fraction)
    sites: dict[str, list[int]] = {}
    for index, recording in enumerate(corpus.recordings):
        if recording.subject is not None:
            patient = recording.recording_id.split("/")[-1].split("_")[0]
            sites.setdefault(patient, []).append(index)
    tested = set(held_out)
    results: dict[str, Any] = {}
    for name, random_weights in (("random weights", True), ("pretrained", False)):
        backbone = FrozenBackbone(arguments.backbone, 5.0, 2.5, random_weights)
        described = {}
        for patient, indices in tqdm(sites.items(), desc=name, unit="patient", disable=None):
            rows = np.stack([backbone.embed(corpus.waveform(i)) for i in indices])
            described[patient] = np.concatenate([rows.mean(axis=0), rows.max(axis=0)])
        results[name] = _test(described, sites, tested, corpus, murmurs)
    environment = describe_environment()
    environment["command"] = ["circor_transfer.py", "--corpora", "DIR", "DIR"]
    write_json_atomic(
        RESULTS / "circor_transfer.json", {"environment": environment, "results": results}
    )
    write_text_atomic(RESULTS / "circor_transfer.md", table(results))
    print(table(results))


def _test(
    described: dict[str, np.ndarray],
    sites: dict[str, list[int]],
    tested: set[int],
    corpus: Any,
    murmurs: dict[str, str],
) -> dict[str, Any]:
    train = [p for p, indices in sites.items() if not set(indices) & tested]
    test = [p for p, indices in sites.items() if set(indices) & tested]
    subject = {p: str(corpus.recordings[indices[0]].subject) for p, indices in sites.items()}
    assert not {subject[p] for p in train} & {subject[p] for p in test}
    probabilities = fit_predict_probe(
        np.stack([described[p] for p in train]),
        [murmurs[p] for p in train],
        [subject[p] for p in train],
        np.stack([described[p] for p in test]),
        CLASSES,
        seed=0,
    )
    truth = np.array([CLASSES.index(murmurs[p]) for p in test])
    predicted = probabilities.argmax(axis=1)
    rng = np.random.default_rng(0)
    people = sorted({subject[p] for p in test})
    rows_of = [
        np.array([i for i, p in enumerate(test) if subject[p] == person]) for person in people
    ]
    draws = []
    for _ in range(NUM_RESAMPLES):
        chosen = np.concatenate([rows_of[i] for i in rng.integers(len(people), size=len(people))])
        draws.append(_scores(truth[chosen], predicted[chosen]))
    return {
        "train_patients": len(train),
        "test_patients": {c: int((truth == i).sum()) for i, c in enumerate(CLASSES)},
        **{
            name: {
                "value": value,
                "low": float(np.nanpercentile([d[name] for d in draws], 2.5)),
                "high": float(np.nanpercentile([d[name] for d in draws], 97.5)),
            }
            for name, value in _scores(truth, predicted).items()
        },
    }


def _scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    right = truth == predicted
    recalls = [right[truth == i].mean() if (truth == i).any() else np.nan for i in range(3)]
    known = [0, 2]
    return {
        "uar": float(np.mean(recalls)),
        "uar_present_absent": float(np.mean([recalls[i] for i in known])),
        "weighted_accuracy": float((WEIGHTS[truth] * right).sum() / WEIGHTS[truth].sum()),
        "accuracy": float(right.mean()),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: one row a set of weights."""
    first = next(iter(results.values()))
    counts = ", ".join(f"{n} {c}" for c, n in first["test_patients"].items())
    lines = [
        "# CirCor: murmur per patient, frozen backbone and logistic regression",
        "",
        f"Trained on {first['train_patients']} patients, tested on held-out ones ({counts}); 95 % "
        "intervals from a bootstrap over people. Made by `benchmarks/circor_transfer.py`.",
        "",
        "| backbone | UAR | weighted accuracy | accuracy | recall of Present and Absent, mean |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = [
            "{value:.3f} ({low:.3f}-{high:.3f})".format(**result[metric])
            for metric in ("uar", "weighted_accuracy", "accuracy", "uar_present_absent")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
