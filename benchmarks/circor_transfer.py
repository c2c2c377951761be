"""Murmur per CirCor patient, on patients that pre-training never saw: probes and fine-tuning.

    python benchmarks/circor_transfer.py --corpora CIRCOR_DIR PHYSIONET_DIR [--backbone DIR]

Tested once on the held-out 20 % of patients (those that ``configs/pretrain_pcg.yaml`` holds out).

- Probes: one vector a patient (mean and maximum of the embeddings of the auscultation sites),
  class-balanced logistic regression, its penalty chosen by grouped folds of the training patients.
- Fine-tuned: ``configs/pcg_full.yaml``, as it stands, on 80 % of the training patients;
  how sites become a patient is chosen on the other 20 %. Sites of a murmur patient where no murmur
  was heard are left out of training, not of the prediction.

Both give class-balanced probabilities. Each is decided in two ways, without tuning: by the highest
(for the mean recall), and by the highest after the training patients' class frequencies and the
challenge's weights are put on (for its weighted accuracy: 5, 3, 1 for Present, Unknown, Absent;
George B. Moody challenge 2022, Reyna et al. 2023). The challenge's test set is not public, so these
numbers stand beside published ones, not in their ranking. Writes
``benchmarks/results/circor_transfer.json`` and ``.md``.
"""

import argparse
import csv
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hb_ssl.audio import read_audio_info
from hb_ssl.cli import run_command
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.data.corpora import (
    CIRCOR_TABLE,
    circor_subjects,
    is_held_out,
    list_audio_files,
    load_corpus,
)
from hb_ssl.data.groups import Group
from hb_ssl.data.recording import Recording
from hb_ssl.data.splits import Item
from hb_ssl.data.task import HeartSoundTask
from hb_ssl.errors import UserError
from hb_ssl.evaluation.intervals import bootstrap_statistic
from hb_ssl.evaluation.probes import FrozenBackbone, fit_predict_probe
from hb_ssl.files import cache_folder, file_sha256, read_json, write_json_atomic, write_text_atomic
from hb_ssl.models.pcg import PCG_SAMPLING_RATE
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.runs import describe_environment
from hb_ssl.training import fine_tune

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
CLASSES = ["Present", "Unknown", "Absent"]
WEIGHTS = np.array([5, 3, 1])
HELD_OUT = PretrainConfig(corpora=["x"]).held_out_fraction
VALIDATION = 0.2  # of the training patients, to choose how sites become a patient
RECIPE = ["--config", str(REPOSITORY / "configs" / "pcg_full.yaml"), "--tracker", "none"]
ROWS = ("random weights: probe", "pretrained: probe", "pretrained: fine-tuned")

# Balanced probabilities of a patient's sites [S, C] to one vector [C], not normalised.
SITE_RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean of probabilities": lambda sites: sites.mean(axis=0),
    "mean of log probabilities": lambda sites: np.exp(np.log(sites + 1e-6).mean(axis=0)),
    "site most likely Present": lambda sites: sites[sites[:, 0].argmax()],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", required=True, help="as in pre-training")
    parser.add_argument("--backbone", default="bundled")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    folders = [Path(c) for c in arguments.corpora if (Path(c) / CIRCOR_TABLE).is_file()]
    if not folders:
        raise UserError(f"corpora: none holds {CIRCOR_TABLE}; expected the CirCor folder")
    patients = read_patients(folders[0])
    path = RESULTS / "circor_transfer.json"
    results: dict[str, Any] = read_json(path)["results"] if path.is_file() else {}
    for row in arguments.rows:
        if row.endswith("probe"):
            random_weights = row.startswith("random")
            made = _probe(patients, arguments.corpora, arguments.backbone, random_weights)
        else:
            made = _fine_tune(patients, folders[0], arguments.backbone)
        results[row] = made
    results = {row: results[row] for row in ROWS if row in results}
    environment = describe_environment()
    environment["command"] = ["circor_transfer.py", "--corpora", "DIR", "DIR"]
    write_json_atomic(path, {"environment": environment, "results": results})
    write_text_atomic(path.with_suffix(".md"), table(results))
    print(table(results))


def read_patients(folder: Path) -> dict[str, dict[str, Any]]:
    """Patient id -> murmur, sites where it is heard, subject, and whether it is a test patient."""
    subjects = circor_subjects(folder / CIRCOR_TABLE)
    with (folder / CIRCOR_TABLE).open(newline="", encoding="utf-8") as stream:
        rows = {row["Patient ID"]: row for row in csv.DictReader(stream)}
    recorded = {path.stem.split("_")[0] for path in list_audio_files(folder)}
    patients = {}
    for patient in sorted(recorded & set(rows)):
        subject = f"{folder.resolve().name}/{subjects[patient]}"  # as load_corpus names it
        patients[patient] = {
            "murmur": rows[patient]["Murmur"],
            "heard_at": rows[patient]["Murmur locations"].split("+"),
            "subject": subject,
            "tested": is_held_out(subject, HELD_OUT),
        }
    return patients


def _probe(
    patients: dict[str, dict[str, Any]], corpora: list[str], backbone: str, random_weights: bool
) -> dict[str, Any]:
    corpus = load_corpus(corpora, PCG_SAMPLING_RATE, cache_folder() / "corpora")
    sites: dict[str, list[int]] = defaultdict(list)
    for index, recording in enumerate(corpus.recordings):
        if recording.subject is not None:
            sites[recording.recording_id.split("/")[-1].split("_")[0]].append(index)
    frozen = FrozenBackbone(backbone, 5.0, 2.5, random_weights)
    described = {}
    for patient, indices in tqdm(sites.items(), desc="Embedding", unit="patient", disable=None):
        rows = np.stack([frozen.embed(corpus.waveform(i)) for i in indices])
        described[patient] = np.concatenate([rows.mean(axis=0), rows.max(axis=0)])
    train = [p for p in patients if not patients[p]["tested"]]
    test = [p for p in patients if patients[p]["tested"]]
    probabilities = fit_predict_probe(
        np.stack([described[p] for p in train]),
        [patients[p]["murmur"] for p in train],
        [patients[p]["subject"] for p in train],
        np.stack([described[p] for p in test]),
        CLASSES,
        seed=0,
    )
    return _scored(patients, train, test, probabilities)


def _fine_tune(patients: dict[str, dict[str, Any]], folder: Path, backbone: str) -> dict[str, Any]:
    types: list[type[Any]] = [DataConfig, ModelConfig, TrainConfig]
    data, model, training = parse_config(types, [*RECIPE, "--backbone", backbone])
    task, patient_of, silent = circor_task(patients, folder)
    train = [p for p in patients if not patients[p]["tested"]]
    test = [p for p in patients if patients[p]["tested"]]
    # Another hash than the one that chose the test patients.
    check = [p for p in train if is_held_out(f"check/{patients[p]['subject']}", VALIDATION)]
    fitted = set(train) - set(check)
    predicted = set(check) | set(test)
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for recording_id, patient in patient_of.items():
        if patient in predicted:
            split["test"].append(recording_id)
        elif patient in fitted and recording_id not in silent:
            split["train"].append(recording_id)
    with tempfile.TemporaryDirectory() as scratch:
        tuned = fine_tune(task, split, data, model, training, Path(scratch))
    sites: dict[str, list[list[float]]] = defaultdict(list)
    for row in tuned.recording_rows:
        sites[patient_of[row["recording_id"]]].append([row[f"prob_{c}"] for c in CLASSES])

    def of_patients(chosen: list[str], rule: str) -> np.ndarray:
        return np.stack([SITE_RULES[rule](np.array(sites[p])) for p in chosen])

    truth = np.array([CLASSES.index(patients[p]["murmur"]) for p in check])
    by_rule = {
        rule: _recalls(truth, of_patients(check, rule).argmax(axis=1)).mean() for rule in SITE_RULES
    }
    best = max(by_rule, key=lambda rule: by_rule[rule])
    return {
        **_scored(patients, sorted(fitted), test, of_patients(test, best)),
        "site_rule": best,
        "uar_of_site_rules_on_validation_patients": by_rule,
        "validation_patients": len(check),
        "train_recordings": len(split["train"]),
        "train_seconds": round(tuned.summary["train_seconds"]),
    }


def circor_task(
    patients: dict[str, dict[str, Any]], folder: Path
) -> tuple[HeartSoundTask, dict[str, str], set[str]]:
    """The recordings as a task, the patient of each, and those of murmur patients without one."""
    recordings, items, groups, patient_of, silent = {}, [], {}, {}, set()
    files = list_audio_files(folder)
    for path in tqdm(files, desc="Reading", unit="recording", disable=None):
        patient, _, site = path.stem.partition("_")
        about = patients.get(patient)
        if about is None:
            continue
        info = read_audio_info(path)
        name = f"circor/{path.stem}"
        recordings[name] = Recording(
            name, str(path.resolve()), "circor", about["murmur"], False, patient, site, None,
            info.sampling_rate, info.num_samples, file_sha256(path),
        )  # fmt: skip
        items.append(Item(name, about["murmur"], "circor", about["subject"]))
        groups[name] = Group(about["subject"], simulator=False)
        patient_of[name] = patient
        if about["murmur"] == "Present" and site.split("_")[0] not in about["heard_at"]:
            silent.add(name)
    task = HeartSoundTask(
        str(folder), False, "circor", CLASSES, items, recordings, groups, [], [], {}
    )
    return task, patient_of, silent


def _scored(
    patients: dict[str, dict[str, Any]],
    train: list[str],
    test: list[str],
    balanced: np.ndarray,
) -> dict[str, Any]:
    """Scores of both decisions on the test patients; ``balanced`` is ``[N, C]``."""
    assert not {patients[p]["subject"] for p in train} & {patients[p]["subject"] for p in test}
    counts = np.array([sum(patients[p]["murmur"] == c for p in train) for c in CLASSES])
    decisions = {
        "highest probability": balanced.argmax(axis=1),
        "challenge weights": (balanced * counts * WEIGHTS).argmax(axis=1),
    }
    truth = np.array([CLASSES.index(patients[p]["murmur"]) for p in test])
    people = [patients[p]["subject"] for p in test]

    def with_interval(name: str, predicted: np.ndarray) -> dict[str, float]:
        return bootstrap_statistic(
            people, lambda chosen: _scores(truth[chosen], predicted[chosen])[name]
        )

    return {
        "train_patients": len(train),
        "test_patients": {c: int((truth == i).sum()) for i, c in enumerate(CLASSES)},
        "decisions": {
            decision: {
                **{name: with_interval(name, predicted) for name in _scores(truth, predicted)},
                "recalls": dict(zip(CLASSES, _recalls(truth, predicted).tolist())),
            }
            for decision, predicted in decisions.items()
        },
    }


def _recalls(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    right = truth == predicted
    return np.array([right[truth == i].mean() if (truth == i).any() else np.nan for i in range(3)])


def _scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    right = truth == predicted
    return {
        "uar": float(np.nanmean(_recalls(truth, predicted))),
        "weighted_accuracy": float((WEIGHTS[truth] * right).sum() / WEIGHTS[truth].sum()),
        "accuracy": float(right.mean()),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: one row a model and decision."""
    first = next(iter(results.values()))
    counts = ", ".join(f"{n} {c}" for c, n in first["test_patients"].items())
    lines = [
        "# CirCor: murmur per patient",
        "",
        f"Tested on patients that pre-training never saw ({counts}); 95 % intervals from a "
        "bootstrap over people. Decided by the highest class-balanced probability (for UAR), or "
        "after class frequencies and the challenge's weights (for weighted accuracy); neither is "
        "tuned. Made by `benchmarks/circor_transfer.py`.",
        "",
        "| model | training patients | decided by | UAR | weighted accuracy | accuracy | recall of "
        f"{', '.join(CLASSES)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for decision, scores in result["decisions"].items():
            cells = [
                "{value:.3f} ({low:.3f}-{high:.3f})".format(**scores[metric])
                for metric in ("uar", "weighted_accuracy", "accuracy")
            ]
            recalls = ", ".join(f"{r:.2f}" for r in scores["recalls"].values())
            lines.append(
                f"| {name} | {result['train_patients']} | {decision} | {' | '.join(cells)} | "
                f"{recalls} |"
            )
    tuned = results.get("pretrained: fine-tuned")
    if tuned:
        rules = tuned["uar_of_site_rules_on_validation_patients"].items()
        lines += [
            "",
            f"Fine-tuned in {tuned['train_seconds']} s, other programs running. From sites to a "
            f"patient: {tuned['site_rule']}, chosen on {tuned['validation_patients']} validation "
            "patients (" + ", ".join(f"{rule} {uar:.3f}" for rule, uar in rules) + ").",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
