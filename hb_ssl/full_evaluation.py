"""Everything that says how far a run's answers can be trusted: `hb-ssl evaluate RUN --full`."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hb_ssl.audio import band_limit, load_audio, split_windows
from hb_ssl.config import DataConfig
from hb_ssl.data.dataset import Waveforms, waveform_dataset
from hb_ssl.data.recording import Recording
from hb_ssl.data.splits import Item
from hb_ssl.data.task import HeartSoundTask, prepare_task
from hb_ssl.errors import UserError
from hb_ssl.evaluation.baselines import FEATURE_BASELINES, feature_classifier
from hb_ssl.evaluation.calibration import METHODS, calibration_scores, crossfit_calibration
from hb_ssl.evaluation.compare import probability_intervals
from hb_ssl.evaluation.device import (
    COMMON_BAND_HZ,
    cross_device,
    device_probe,
    device_share,
    shared_items,
)
from hb_ssl.evaluation.hand_made_features import FEATURE_RATE, feature_matrix, recording_features
from hb_ssl.evaluation.metrics import rows_by_part, score_recordings
from hb_ssl.evaluation.out_of_distribution import (
    FITTING_EACH,
    TESTING_EACH,
    evaluate_gate,
    synthetic_features,
)
from hb_ssl.evaluation.robustness import Classify, robustness_curves_each
from hb_ssl.evaluation.selective import RISK, fit_calibration, selective_scores
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.models.classifier import PREPROCESSING_FILE
from hb_ssl.report_run import Run, device_only_rows, load_run
from hb_ssl.runs import describe_environment

logger = logging.getLogger(__name__)

FULL_FILE = "full_evaluation.json"
NUM_DAMAGED = 120  # recordings for the robustness curves, at most


def evaluate_fully(run_folder: str | Path, risk: float = RISK) -> Path:
    """Calibration, abstention, heart-sound gate, device honesty and robustness of a finished run.

    Args:
        run_folder: of ``hb-ssl train`` (scores on its test recordings) or ``hb-ssl cv`` (out of
            fold).
        risk: the share of wrong answers to accept among those given.

    Returns:
        ``full_evaluation.json`` in the run folder. A part that this run does not allow is named
        under ``left_out`` with the reason.

    Raises:
        UserError: no finished run there.
    """
    run = load_run(run_folder)
    task: HeartSoundTask | UserError
    try:
        task = _task_of(run)
    except UserError as error:
        task = error
    features = _HandMade(task)
    sections: dict[str, Callable[[], Any]] = {
        "intervals": lambda: {
            part: probability_intervals(rows, run.labels)
            for part, rows in rows_by_part(run.rows).items()
        },
        "calibration": lambda: _calibration(run, risk),
        "selective": lambda: _selective(run, risk),
        "device": lambda: _device(run, features),
        "heart_sound_gate": lambda: _gate(features),
        "robustness": lambda: _robustness(run, features),
    }
    result: dict[str, Any] = {
        "synthetic": run.synthetic,
        "method": run.method,
        "labels": run.labels,
        "environment": describe_environment(),
    }
    left_out: dict[str, str] = {}
    for name, compute in tqdm(sections.items(), desc="full evaluation", disable=None):
        try:
            result[name] = compute()
        except UserError as error:
            left_out[name] = str(error)
            logger.warning("%s left out: %s", name, error)
    path = run.folder / FULL_FILE
    write_json_atomic(path, {**result, "left_out": left_out})
    return path


def evaluation_summary(run_folder: str | Path) -> dict[str, Any]:
    """The few numbers of the full evaluation that a model card shows.

    Returns:
        ``ece_before``, ``ece_after``, ``uar``, ``answered``, ``wrong_of_answered``,
        ``uar_answered``, ``device_sentence``, ``device_probe``, ``gate_auroc``,
        ``gate_false_accept``, ``gate_true_accept`` and ``robustness`` (lowest UAR by damage); a
        number that was not computed is absent, and the dict is empty where ``hb-ssl evaluate RUN
        --full`` never ran.
    """
    path = Path(run_folder) / FULL_FILE
    if not path.is_file():
        return {}
    full = read_json(path)
    found: dict[str, Any] = {}
    if "calibration" in full:
        found["ece_before"] = full["calibration"]["before"]["ece"]["value"]
        found["ece_after"] = full["calibration"]["after"]["ece"]["value"]
    if "selective" in full:
        selective = full["selective"]
        stated = selective["stated_risk"]  # what the model does with its threshold
        found["answered"] = stated["coverage"]["value"]
        found["wrong_of_answered"] = stated["risk"]["value"]
        found["uar_answered"] = stated["uar"]["value"]
        found["uar"] = selective["uar_all"]["value"]
    if "device" in full:
        found["device_sentence"] = full["device"].get("share", {}).get("sentence")
        probes = full["device"].get("probe", {})
        found["device_probe"] = {
            name: probe["balanced_accuracy"]["value"] for name, probe in probes.items()
        }
    if "heart_sound_gate" in full:
        scores = full["heart_sound_gate"]["scores"]
        found["gate_auroc"] = scores["auroc"]["value"]
        found["gate_false_accept"] = scores["false_accept"]
        found["gate_true_accept"] = scores["true_accept"]["all"]
    if "robustness" in full:
        found["robustness"] = {
            kind: min(point["uar"] for point in curve["points"])
            for kind, curve in full["robustness"]["curves"].items()
            if curve["points"]
        }
    return found


def attach_to_model(run_folder: str | Path, model_folder: str | Path) -> Path:
    """Writes a run's calibration and heart-sound gate into a model's ``preprocessing.json``.

    Args:
        run_folder: a fully evaluated run of the recipe that the model was trained with.
        model_folder: folder with ``preprocessing.json``, or a run folder that holds ``model/``.

    Raises:
        UserError: the run was not evaluated fully, or the model knows other classes.
    """
    path = Path(run_folder) / FULL_FILE
    if not path.is_file():
        raise UserError(f"{run_folder}: not fully evaluated; run `hb-ssl evaluate RUN --full`")
    full = read_json(path)
    target = Path(model_folder) / PREPROCESSING_FILE
    if not target.is_file():
        target = Path(model_folder) / "model" / PREPROCESSING_FILE
    about = read_json(target)
    if about["labels"] != full["labels"]:
        raise UserError(
            f"{target}: the model knows {', '.join(about['labels'])}, the run "
            f"{', '.join(full['labels'])}; expected the same classes in the same order"
        )
    for name, value in (
        ("calibration", full.get("calibration", {}).get("model")),
        ("heart_sound_gate", full.get("heart_sound_gate", {}).get("gate")),
    ):
        if value is None:
            reason = full["left_out"].get(name, "not computed")
            logger.warning("%s gets no %s: %s", target, name, reason)
        else:
            about[name] = value
    write_json_atomic(target, about)
    return target


def _task_of(run: Run) -> HeartSoundTask:
    defaults = DataConfig()
    return prepare_task(
        run.config["source"],
        run.config["label_mode"],
        run.config.get("num_synthetic", defaults.num_synthetic),
        run.config.get("keep_contradictions", defaults.keep_contradictions),
    )


class _HandMade:
    """Hand-made features of the labelled recordings, each kind computed once."""

    def __init__(self, task: HeartSoundTask | UserError) -> None:
        self._task = task
        self._made: dict[tuple[float, float] | None, np.ndarray] = {}

    @property
    def task(self) -> HeartSoundTask:
        if isinstance(self._task, UserError):
            raise UserError(f"the recordings can't be reached any more: {self._task}")
        return self._task

    def __call__(self, band: tuple[float, float] | None = None) -> np.ndarray:
        """``[N, F]`` in the order of ``task.items``, band-limited where ``band`` is given."""
        if band not in self._made:
            recordings = [self.task.recordings[item.recording_id] for item in self.task.items]
            waveforms = Waveforms(waveform_dataset(recordings, FEATURE_RATE, *(band or ())))
            self._made[band] = feature_matrix(
                (waveforms[r.recording_id] for r in recordings), FEATURE_RATE
            )
        return self._made[band]


def _calibration(run: Run, risk: float) -> dict[str, Any]:
    where = "out-of-fold" if run.cross_validated else "test"
    words = f"{where} predictions of {run.folder.name} ({len(run.rows)} rows)"
    model = fit_calibration(run.rows, run.labels, words, risk)
    tried = {}
    for method in METHODS:
        rows = crossfit_calibration(run.rows, run.labels, method)
        scores = calibration_scores(rows, run.labels)
        uar = score_recordings(rows, run.labels)["recording_uar"]
        tried[method] = {**scores, "uar": uar}
    before = {
        **calibration_scores(run.rows, run.labels),
        "uar": score_recordings(run.rows, run.labels)["recording_uar"],
    }
    return {"before": before, "after": tried[model["method"]], "tried": tried, "model": model}


def _selective(run: Run, risk: float) -> dict[str, Any]:
    from hb_ssl.evaluation.calibration import choose_method

    return selective_scores(run.rows, run.labels, choose_method(run.rows, run.labels), risk)


def _gate(features: "_HandMade") -> dict[str, Any]:
    items = features.task.items
    fitting, _ = synthetic_features("fitting", FITTING_EACH)
    testing, kinds = synthetic_features("testing", TESTING_EACH)
    gate, scores = evaluate_gate(features(), items, fitting, testing, kinds)
    return {"gate": gate, "scores": scores}


def _device(run: Run, features: "_HandMade") -> dict[str, Any]:
    result: dict[str, Any] = {
        "share": device_share(*_aligned(run.rows, device_only_rows(run)), run.labels),
        "within": {
            part: run.intervals[part]["recording_uar"]
            for part in ("set_a", "set_b")
            if part in run.intervals
        },
    }
    try:
        items = features.task.items
        low, high = COMMON_BAND_HZ
        plain, limited = "full band", f"{low:g} to {high:g} Hz"
        bands = {plain: features(), limited: features(COMMON_BAND_HZ)}
        result["probe"] = {
            f"hand-made features, {name}": device_probe(matrix, items)
            for name, matrix in bands.items()
        }
        result["cross_device"] = {
            name: cross_device(matrix, items) for name, matrix in bands.items()
        }
        if (run.folder / "model").is_dir():
            for name, band in ((plain, None), (limited, COMMON_BAND_HZ)):
                own, kept = _embeddings(run, features.task, band)
                result["probe"][f"embeddings, {name}"] = device_probe(own, kept)
    except UserError as error:
        result["left_out"] = str(error)
    return result


def _aligned(rows: list[dict[str, Any]], other: list[dict[str, Any]]) -> tuple[list, list]:
    """The second rows in the order of the first."""
    by_key = {(row["recording_id"], row.get("seed")): row for row in other}
    return rows, [by_key[row["recording_id"], row.get("seed")] for row in rows]


def _embeddings(
    run: Run, task: HeartSoundTask, band: tuple[float, float] | None
) -> tuple[np.ndarray, list[Item]]:
    """What the model's last layer sees, the mean over windows, for classes of both devices."""
    classifier = HeartSoundClassifier.from_pretrained(run.folder)
    chosen = shared_items(task.items)
    items = [item for item, use in zip(task.items, chosen, strict=True) if use]
    if not items:
        raise UserError("the two devices share no class here")
    make_features, about = classifier.make_features, classifier.preprocessing
    rate, hop = make_features.sampling_rate, about["hop_seconds"]
    seen: list[torch.Tensor] = []
    head = classifier.model.get_submodule("classifier")
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rows = []
    try:
        for item in tqdm(items, desc="embeddings", disable=None, leave=False):
            waveform, _ = load_audio(task.recordings[item.recording_id].path, rate)
            waveform = band_limit(waveform, rate, about["band_low_hz"], about["band_high_hz"])
            waveform = band_limit(waveform, rate, *(band or (None, None)))
            windows = split_windows(waveform, make_features.window, round(hop * rate))
            inputs = torch.from_numpy(make_features(windows))
            seen.clear()
            with torch.inference_mode():
                classifier.model(**{make_features.input_name: inputs})
            rows.append(torch.cat(seen).mean(dim=0).numpy())
    finally:
        handle.remove()
    return np.stack(rows), items


def _robustness(run: Run, features: "_HandMade") -> dict[str, Any]:
    task = features.task
    if run.cross_validated and run.method not in FEATURE_BASELINES:
        raise UserError(
            f"a cross-validation of {run.method} keeps no model to hear damaged recordings; "
            "evaluate a `hb-ssl train` run"
        )
    first = min(row.get("seed", 0) for row in run.rows)
    rows = _sample([row for row in run.rows if row.get("seed", 0) == first])
    recordings: list[Recording] = [task.recordings[row["recording_id"]] for row in rows]
    classifiers: list[Classify]
    if run.cross_validated:
        of_fold = _fold_models(run, features, int(first))
        classifiers = [of_fold[row["fold"]] for row in rows]
    else:
        classifier = HeartSoundClassifier.from_pretrained(run.folder)

        def classify(waveform: np.ndarray, rate: int) -> np.ndarray:
            answer = classifier.predict_one((waveform, rate))
            return np.array([answer.probabilities[name] for name in run.labels])

        classifiers = [classify] * len(rows)
    loaded = [load_audio(recording.path) for recording in recordings]
    label_ids = [run.labels.index(row["label"]) for row in rows]
    return robustness_curves_each(classifiers, loaded, label_ids)


def _sample(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``NUM_DAMAGED`` rows, the classes as evenly as they allow."""
    rng = np.random.default_rng(0)
    by_label: dict[str, list[dict[str, Any]]] = {}
    for index in rng.permutation(len(rows)):
        by_label.setdefault(rows[index]["label"], []).append(rows[index])
    chosen: list[dict[str, Any]] = []
    ranked = sorted(by_label.values(), key=len)
    for number, own in enumerate(ranked):
        chosen += own[: (NUM_DAMAGED - len(chosen)) // (len(ranked) - number)]
    return sorted(chosen, key=lambda row: row["recording_id"])


def _fold_models(run: Run, features: "_HandMade", seed: int) -> Mapping[int, Classify]:
    """The baseline of every fold of one repeat, fitted again on the recordings it was fitted on."""
    items, matrix = features.task.items, features()
    models: dict[int, Classify] = {}
    for plan in read_json(run.folder / "folds.json"):
        if plan["seed"] != seed:
            continue
        outer = set(plan["test"])
        train = [n for n, item in enumerate(items) if item.recording_id not in outer]
        label_ids = [run.labels.index(items[n].label) for n in train]
        fitted = feature_classifier(run.method, seed).fit(matrix[train], label_ids)

        def classify(waveform: np.ndarray, rate: int, fitted: Any = fitted) -> np.ndarray:
            probabilities = np.zeros(len(run.labels))
            own = fitted.predict_proba(recording_features(waveform, rate)[None])[0]
            probabilities[fitted.classes_] = own
            return probabilities

        models[plan["fold"]] = classify
    return models
