"""Murmur per CirCor patient, on patients that pre-training never saw: probes and fine-tuning.

    python benchmarks/circor_transfer.py --corpora CIRCOR_DIR PHYSIONET_DIR [--backbone DIR]
        [--without_labels DIR]

Tested on the held-out 20 % of patients (those that ``configs/pretrain_pcg.yaml`` holds out).

- Probes: one vector a patient (mean and maximum of the descriptions of the auscultation sites),
  class-balanced logistic regression, its penalty chosen by grouped folds of the training patients.
- Fine-tuned: ``configs/pcg_full.yaml``, as it stands, on 80 % of the training patients;
  how sites become a patient is chosen on the other 20 %. Sites of a murmur patient where no murmur
  was heard are left out of training, not of the prediction.

``--without_labels`` names a backbone that saw no murmur label: ``scripts/pretrain.py --config
configs/pretrain_pcg.yaml --murmur_weight 0 --steps 1500``. The bundled one saw those of the
training patients, so what it says of them is surer than what it says of others. Since the former
did not, its probes, and rows that need no pre-training, are tested on all patients too, in five
grouped folds; then the audio of most test patients, never a label, was heard in pre-training.

All give class-balanced probabilities, which are decided in up to three ways: by the highest (for
the mean recall); by the highest after the training patients' class frequencies and the challenge's
weights are put on (for its weighted accuracy: 5, 3, 1 for Present, Unknown, Absent; George B. Moody
challenge 2022, Reyna et al. 2023); and for probes by the highest after weights that made the
weighted accuracy of out-of-fold training patients best. The challenge's test set is not public, so
these numbers stand beside published ones, not in their ranking. Writes
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
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from hb_ssl.audio import read_audio_info
from hb_ssl.cli import run_command
from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
from hb_ssl.data.corpora import (
    CIRCOR_SUBJECTS,
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
from hb_ssl.evaluation.hand_made_features import recording_features
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
FOLDS = 5
# name: (backbone, whether hand-made features are added, whether all patients are tested in folds)
PROBES: dict[str, tuple[str | None, bool, bool]] = {
    "random weights: probe": ("random", False, True),
    "hand-made features: probe": (None, True, True),
    "pretrained: probe": ("backbone", False, False),
    "pretrained without labels: probe": ("without_labels", False, True),
    "pretrained without labels, and hand-made features: probe": ("without_labels", True, True),
}
FINE_TUNED = "pretrained: fine-tuned"
ROWS = (*PROBES, FINE_TUNED)
RELATIVE_WEIGHTS = np.exp(np.arange(-3.0, 3.01, 0.25))  # of Present and Unknown; Absent has 1

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
    parser.add_argument("--without_labels", help="backbone trained with --murmur_weight 0")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    folders = [Path(c) for c in arguments.corpora if (Path(c) / CIRCOR_TABLE).is_file()]
    if not folders:
        raise UserError(f"corpora: none holds {CIRCOR_TABLE}; expected the CirCor folder")
    patients = read_patients(folders[0])
    path = RESULTS / "circor_transfer.json"
    results: dict[str, Any] = read_json(path)["results"] if path.is_file() else {}
    for row in arguments.rows:
        if row == FINE_TUNED:
            results[row] = _fine_tune(patients, folders[0], arguments.backbone)
        elif PROBES[row][0] == "without_labels" and not arguments.without_labels:
            print(f"{row}: left out, --without_labels names no folder")
        else:
            results[row] = _probe(patients, row, arguments)
    results = {row: results[row] for row in ROWS if row in results}
    environment = describe_environment()
    environment["command"] = [
        "circor_transfer.py",
        "--corpora",
        "DIR",
        "DIR",
        "--without_labels",
        "DIR",
    ]
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
        subject = f"{CIRCOR_SUBJECTS}/{subjects[patient]}"  # as load_corpus names it
        patients[patient] = {
            "murmur": rows[patient]["Murmur"],
            "heard_at": rows[patient]["Murmur locations"].split("+"),
            "subject": subject,
            "tested": is_held_out(subject, HELD_OUT),
        }
    return patients


def _probe(
    patients: dict[str, dict[str, Any]], row: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    of, with_features, in_folds = PROBES[row]
    backbone = arguments.without_labels if of == "without_labels" else arguments.backbone
    frozen = FrozenBackbone(backbone, 5.0, 2.5, random_weights=of == "random") if of else None
    described = _describe_patients(arguments.corpora, frozen, with_features)
    train = [p for p in patients if not patients[p]["tested"]]
    test = [p for p in patients if patients[p]["tested"]]
    balanced = _fit_predict(patients, described, train, test)
    weights = _best_weights(patients, described, train)
    made = _scored(patients, train, test, balanced, np.tile(weights, (len(test), 1)))
    if in_folds:
        balanced, weights = np.zeros((len(patients), 3)), np.zeros((len(patients), 3))
        everyone = list(patients)
        for fit, check in tqdm(_folds(patients, everyone, seed=1), desc="Folds", disable=None):
            train, test = [everyone[i] for i in fit], [everyone[i] for i in check]
            balanced[check] = _fit_predict(patients, described, train, test)
            weights[check] = _best_weights(patients, described, train)
        made["all_patients"] = _scored(patients, None, everyone, balanced, weights)
    return made


def _describe_patients(
    corpora: list[str], frozen: FrozenBackbone | None, with_features: bool
) -> dict[str, np.ndarray]:
    """Patient id -> mean and maximum over sites of the embedding, hand-made features, or both."""
    corpus = load_corpus(corpora, PCG_SAMPLING_RATE, cache_folder() / "corpora")
    sites: dict[str, list[np.ndarray]] = defaultdict(list)
    progress = tqdm(corpus.recordings, desc="Describing", unit="recording", disable=None)
    for index, recording in enumerate(progress):
        if recording.subject is None:
            continue
        waveform = corpus.waveform(index)
        parts = [frozen.embed(waveform)] if frozen else []
        if with_features:
            parts.append(recording_features(waveform, PCG_SAMPLING_RATE))
        sites[recording.recording_id.split("/")[-1].split("_")[0]].append(np.concatenate(parts))
    return {
        patient: np.concatenate([np.mean(rows, axis=0), np.max(rows, axis=0)])
        for patient, rows in sites.items()
    }


def _fit_predict(
    patients: dict[str, dict[str, Any]],
    described: dict[str, np.ndarray],
    train: list[str],
    test: list[str],
) -> np.ndarray:
    return fit_predict_probe(
        np.stack([described[p] for p in train]),
        [patients[p]["murmur"] for p in train],
        [patients[p]["subject"] for p in train],
        np.stack([described[p] for p in test]),
        CLASSES,
        seed=0,
    )


def _folds(
    patients: dict[str, dict[str, Any]], chosen: list[str], seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    subjects = [patients[p]["subject"] for p in chosen]
    return list(folds.split(chosen, _truth(patients, chosen), subjects))


def _best_weights(
    patients: dict[str, dict[str, Any]], described: dict[str, np.ndarray], train: list[str]
) -> np.ndarray:
    """Class weights ``[C]`` with the best weighted accuracy of out-of-fold training patients."""
    balanced = np.zeros((len(train), len(CLASSES)))
    for fit, check in _folds(patients, train, seed=0):
        balanced[check] = _fit_predict(
            patients, described, [train[i] for i in fit], [train[i] for i in check]
        )
    truth = _truth(patients, train)

    def weighted_accuracy(weights: np.ndarray) -> float:
        return _scores(truth, (balanced * weights).argmax(axis=1))["weighted_accuracy"]

    candidates = [np.array([p, u, 1.0]) for p in RELATIVE_WEIGHTS for u in RELATIVE_WEIGHTS]
    return max(candidates, key=weighted_accuracy)


def _truth(patients: dict[str, dict[str, Any]], chosen: list[str]) -> np.ndarray:
    return np.array([CLASSES.index(patients[p]["murmur"]) for p in chosen])


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

    truth = _truth(patients, check)
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
    train: list[str] | None,
    test: list[str],
    balanced: np.ndarray,
    chosen_weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Scores of every decision on the test patients.

    Args:
        patients: see ``read_patients``.
        train: patients trained on; ``None``: every test patient had a fold's others.
        test: N patients.
        balanced: class-balanced probabilities ``[N, C]``.
        chosen_weights: ``[N, C]``, see ``_best_weights``.
    """
    if train is not None:
        assert not {patients[p]["subject"] for p in train} & {patients[p]["subject"] for p in test}
    decisions = {"highest probability": balanced.argmax(axis=1)}
    if train is not None:
        counts = np.bincount(_truth(patients, train), minlength=len(CLASSES))
        decisions["challenge weights"] = (balanced * counts * WEIGHTS).argmax(axis=1)
    if chosen_weights is not None:
        decisions["weights chosen in training"] = (balanced * chosen_weights).argmax(axis=1)
    truth = _truth(patients, test)
    people = [patients[p]["subject"] for p in test]

    def with_interval(name: str, predicted: np.ndarray) -> dict[str, float]:
        return bootstrap_statistic(
            people, lambda chosen: _scores(truth[chosen], predicted[chosen])[name]
        )

    return {
        "train_patients": None if train is None else len(train),
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
    """Markdown: one row a model and decision; held-out patients, then all in folds."""
    lines = [
        "# CirCor: murmur per patient",
        "",
        "95 % intervals from a bootstrap over people. Decided by the highest class-balanced "
        "probability (for UAR); after class frequencies and the challenge's weights, or after "
        "weights that out-of-fold training patients chose (both for weighted accuracy). The "
        "backbone of the rows `pretrained` saw the murmur labels of its training patients, that of "
        "`pretrained without labels` none. Made by `benchmarks/circor_transfer.py`.",
        "",
        f"## Patients that pre-training never heard ({_patients_of(results)})",
        "",
        *_rows(results),
    ]
    tuned = results.get(FINE_TUNED)
    if tuned:
        rules = tuned["uar_of_site_rules_on_validation_patients"].items()
        lines += [
            "",
            f"Fine-tuned in {tuned['train_seconds']} s, other programs running. From sites to a "
            f"patient: {tuned['site_rule']}, chosen on {tuned['validation_patients']} validation "
            "patients (" + ", ".join(f"{rule} {uar:.3f}" for rule, uar in rules) + ").",
        ]
    in_folds = {name: r["all_patients"] for name, r in results.items() if "all_patients" in r}
    if in_folds:
        lines += [
            "",
            f"## All patients, {FOLDS} grouped folds ({_patients_of(in_folds)})",
            "",
            "Transductive: pre-training heard the audio of four in five of these patients, without "
            "any label.",
            "",
            *_rows(in_folds),
        ]
    return "\n".join([*lines, ""])


def _patients_of(results: dict[str, Any]) -> str:
    first = next(iter(results.values()))
    return ", ".join(f"{n} {c}" for c, n in first["test_patients"].items())


def _rows(results: dict[str, Any]) -> list[str]:
    lines = [
        "| model | decided by | UAR | weighted accuracy | accuracy | recall of "
        f"{', '.join(CLASSES)} |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for decision, scores in result["decisions"].items():
            cells = [
                "{value:.3f} ({low:.3f}-{high:.3f})".format(**scores[metric])
                for metric in ("uar", "weighted_accuracy", "accuracy")
            ]
            recalls = ", ".join(f"{r:.2f}" for r in scores["recalls"].values())
            lines.append(f"| {name} | {decision} | {' | '.join(cells)} | {recalls} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(run_command(main))
