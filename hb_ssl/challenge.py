"""Answers for the challenge's 247 unlabelled test recordings."""

import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hb_ssl.data.pascal import list_recordings
from hb_ssl.data.recording import LABEL_MODES
from hb_ssl.data.sources import resolve_source
from hb_ssl.errors import UserError
from hb_ssl.inference import HeartSoundClassifier

logger = logging.getLogger(__name__)


def predict_unlabelled(
    source: str, model_a: str | Path | None, model_b: str | Path | None
) -> list[dict[str, Any]]:
    """Classifies the unlabelled recordings of set A, set B or both.

    Args:
        source: see ``resolve_source``.
        model_a: classifier for set A, with the classes of label mode ``set_a``; ``None`` leaves set
            A out.
        model_b: for set B, with those of ``set_b``.

    Returns:
        Rows ``file, prediction, error, prob_<label>`` as ``hb-ssl predict`` writes; a class that a
        set does not have is empty.

    Raises:
        UserError: no model, one with other classes, or no unlabelled recording of a set.
    """
    models = {set_: m for set_, m in (("a", model_a), ("b", model_b)) if m is not None}
    if not models:
        raise UserError("no model given; expected --model-a, --model-b or both")
    loaded = {set_: _load(model, set_) for set_, model in models.items()}
    recordings = [r for r in list_recordings(resolve_source(source)).recordings if not r.raw_label]
    labels = list(dict.fromkeys(name for set_ in loaded for name in LABEL_MODES[f"set_{set_}"]))
    rows = []
    for set_, classifier in loaded.items():
        own = [recording for recording in recordings if recording.set == set_]
        if not own:
            raise UserError(
                f"{source}: holds no unlabelled recording of set {set_.upper()}; expected files "
                f"named {set_.upper()}unlabelledtest__..."
            )
        for recording in tqdm(own, desc=f"Classifying set {set_.upper()}", disable=None):
            row: dict[str, Any] = {"file": Path(recording.path).name, "prediction": "", "error": ""}
            probabilities: dict[str, float] = {}
            try:
                answer = classifier.predict_one(recording.path)
            except UserError as error:
                row["error"] = str(error)
            else:
                row["prediction"], probabilities = answer.label, answer.probabilities
            rows.append({**row, **{f"prob_{n}": _rounded(probabilities.get(n)) for n in labels}})
    return rows


def _load(model: str | Path, set_: str) -> HeartSoundClassifier:
    classifier = HeartSoundClassifier.from_pretrained(model)
    expected = LABEL_MODES[f"set_{set_}"]
    if sorted(classifier.labels) != sorted(expected):
        raise UserError(
            f"{model}: knows {', '.join(classifier.labels)}; set {set_.upper()} of the challenge "
            f"asks for {', '.join(expected)}, train with --label_mode set_{set_}"
        )
    if classifier.preprocessing["synthetic"]:
        logger.warning("%s was trained on SYNTHETIC recordings: its answers mean nothing", model)
    return classifier


def _rounded(probability: float | None) -> float | str:
    return "" if probability is None else round(probability, 6)
