"""The model card of a pushed classifier: what it is, how good it is, what it must not be used for.

Every number comes from the run's ``metrics.json``; what the run does not know is left out.
"""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hb_ssl.data.hub_dataset import PASCAL_CITATION
from hb_ssl.scoring import format_interval, summary_table

PASCAL_NAME = "PASCAL Classifying Heart Sounds Challenge 2011"
SYNTHETIC_NAME = "Heart sounds simulated by hb-ssl"
# name in metrics.json, metric id of the Hub, name on the card
CARD_METRICS = (
    ("recording_uar", "recall", "UAR (mean recall of the classes)"),
    ("recording_macro_f1", "f1", "macro-F1"),
    ("recording_accuracy", "accuracy", "accuracy"),
)
BUNDLED_NAME = "heart-sound-classifier"  # its folder in the package; it is on no Hub
LABEL_MEANINGS = {
    "artifact": "no heart sound to speak of",
    "extrahls": "an extra heart sound, or (set B) an extrasystole",
    "extrastole": "an extrasystole: a beat out of rhythm now and then",
    "murmur": "noise between the two heart sounds",
    "normal": "two clear sounds a beat",
}
LABEL_MODES = {
    "merge": "both sets; the extrasystoles of set B are called `extrahls`, which they are not",
    "drop": "both sets, without the extrasystoles of set B",
    "set_a": "set A (phone app) only",
    "set_b": "set B (digital stethoscope) only",
}


def model_card(
    repo: str,
    preprocessing: dict[str, Any],
    metrics: dict[str, Any],
    stock_head: bool,
    has_model: bool,
    has_adapter: bool,
    license_id: str,
    split_sizes: dict[str, int] | None = None,
    keeps_contradictions: bool = False,
    evaluation: dict[str, Any] | None = None,
) -> str:
    """The README.md of a model repository, with metadata for the Hub.

    Args:
        repo: ``org/name``, or ``BUNDLED_NAME`` for the classifier that ships in the package.
        preprocessing: the content of ``preprocessing.json``.
        metrics: the content of the run's ``metrics.json``.
        stock_head: whether stock transformers classes compute the same logits.
        has_model: whether the merged model is in the repository.
        has_adapter: whether ``adapter/`` is.
        license_id: the Hub's name of the licence.
        split_sizes: recordings by part of the split.
        keeps_contradictions: whether audio under two labels was used.
        evaluation: ``evaluation_summary`` of the run.
    """
    metadata = _metadata(repo, preprocessing, metrics, stock_head and has_model, license_id)
    sections = [
        f"---\n{metadata}\n---",
        f"# {repo.split('/')[-1]}",
        _warnings(preprocessing),
        _what(preprocessing, metrics, has_model),
        _usage(repo, preprocessing, stock_head, has_model, has_adapter),
        _scores(metrics),
        _trust(evaluation or {}),
        _data(preprocessing, split_sizes, keeps_contradictions),
        _LIMITS,
        f"## Citation\n\nThe recordings:\n\n{PASCAL_CITATION}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(
    repo: str, about: dict[str, Any], metrics: dict[str, Any], stock: bool, license_id: str
) -> str:
    source = str(about.get("trained_on", ""))
    dataset = source.removeprefix("hub:") if source.startswith("hub:") else "pascal-chsc-2011"
    if about["synthetic"]:
        dataset = "hb-ssl-synthetic"
    results = [
        EvalResult(
            task_type="audio-classification",
            task_name="Heart sound classification",
            dataset_type=dataset,
            dataset_name=SYNTHETIC_NAME if about["synthetic"] else PASCAL_NAME,
            dataset_config=part,
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(float(scores[key]), 4),
        )
        for part, scores in metrics["recording"].items()
        for key, kind, name in CARD_METRICS
        if scores[key] is not None
    ]
    backbone = str(about.get("backbone", ""))
    return ModelCardData(
        base_model=backbone if "/" in backbone else None,
        datasets=[dataset],
        eval_results=results,
        library_name="transformers" if stock else "hb-ssl",
        license=license_id,
        metrics=["recall", "f1", "accuracy"],
        model_name=repo.split("/")[-1],
        pipeline_tag="audio-classification",
        tags=[
            "hb-ssl", "heart-sounds", "phonocardiogram", "self-supervised-learning",
            *(["lora"] if about.get("adaptation") == "lora" else []),
            *(["synthetic-data"] if about["synthetic"] else []),
            *(["random-weights"] if about.get("random_weights") else []),
        ],
    ).to_yaml()  # fmt: skip


def _warnings(about: dict[str, Any]) -> str:
    lines = ["> A research and screening aid, **not a diagnosis**. Not a medical device."]
    if about["synthetic"]:
        lines.append(
            "> **Trained on SYNTHETIC recordings**: its answers and scores mean nothing for real "
            "hearts."
        )
    if about.get("random_weights"):
        lines.append(
            "> **Started from RANDOM weights**: nothing in it comes from self-supervised "
            "pre-training."
        )
    return "\n>\n".join(lines)


def _what(about: dict[str, Any], metrics: dict[str, Any], has_model: bool) -> str:
    backbone = str(about.get("backbone", "unknown"))
    if backbone == "bundled":
        base = "the phonocardiogram backbone in the hb-ssl package"
    elif "/" in backbone:
        base = f"[{backbone}](https://huggingface.co/{backbone})"
    else:
        base = f"`{backbone}`, a model that is not on the Hub under this name"
    how = {
        "lora": "LoRA adapters and a classification head",
        "full": "all weights",
        "probe": "a classification head on the frozen backbone",
    }.get(str(about.get("adaptation")), "a classification head")
    parameters = metrics.get("run", {}).get("parameters")
    size = (
        f" ({parameters['trainable']:,} of {parameters['total']:,} parameters trained)"
        if parameters
        else ""
    )
    labels = "\n".join(
        f"- `{label}`: {LABEL_MEANINGS.get(label, 'see the data')}" for label in about["labels"]
    )
    here = "" if has_model else " This repository holds the adapter only; the base is downloaded."
    return f"""Classifies recordings of heart sounds (phonocardiograms). Trained: {how}{size}.
Base: {base}.{here}

{labels}

Made for research, teaching and for sorting recordings that a person listens to anyway. Not for
deciding about a patient, not for emergencies, not for recordings of other organs."""


def _usage(
    repo: str, about: dict[str, Any], stock_head: bool, has_model: bool, has_adapter: bool
) -> str:
    bundled = repo == BUNDLED_NAME
    name, option = ("", "") if bundled else (f'"{repo}"', f" --model {repo}")
    place = f"hb_ssl/models/assets/{repo}" if bundled else repo
    text = f"""## How to use

```python
from hb_ssl.inference import HeartSoundClassifier

answer = HeartSoundClassifier.from_pretrained({name}).predict("heart.wav")
print(answer.decision, answer.probabilities, answer.heart_rate.bpm)
```

It cuts recordings of any length and rate into windows of {about["window_seconds"]:g} s and pools
them. On the command line: `hb-ssl predict heart.wav{option}`."""
    if stock_head and has_model:
        text += f"""

The merged model also loads without hb-ssl. It then takes one window of {about["window_seconds"]:g}
s and knows nothing of windows, band limit or calibration:

```python
import soundfile
from transformers import pipeline

samples, rate = soundfile.read("window.wav", dtype="float32")  # one channel
pipeline("audio-classification", model="{place}")({{"raw": samples, "sampling_rate": rate}})
```"""
    elif has_model:
        text += """

**Load it with hb-ssl only.** Its pooling is not that of stock transformers classes:
`pipeline(...)` would load it and answer wrongly."""
    if has_adapter and has_model:
        text += "\n\nThe LoRA adapter alone is in `adapter/`."
    if about.get("calibration"):
        below = about["calibration"]["abstain_below"]
        text += (
            f"\n\nProbabilities are calibrated; below {below:.2f} the decision is `inconclusive`: "
            "record again."
        )
    else:
        text += "\n\nProbabilities are not calibrated: 0.9 does not mean right in 9 of 10 cases."
    return text


def _scores(metrics: dict[str, Any]) -> str:
    per_class = metrics["recording"]["overall"]["recording_per_class"]
    rows = [
        f"| {label} | {row['support']:g} | {_number(row['precision'])} | {_number(row['recall'])} |"
        for label, row in per_class.items()
    ]
    problem = metrics["intervals"]["overall"]
    sides = [
        f"{name} {format_interval(problem[key])}"
        for name, key in (
            ("sensitivity", "recording_problem_sensitivity"),
            ("specificity", "recording_problem_specificity"),
        )
        if key in problem
    ]
    table = summary_table(metrics).strip()
    how = "On recordings of subjects that training never heard"
    if "num_folds" in metrics:
        how = (
            f"Cross-validated: {metrics['num_folds']} folds x {metrics['num_repeats']} repeats, "
            "each tested on subjects that its training never heard"
        )
    text = f"""## Scores

{how}:

{table}

Set A comes from a phone app, set B from a digital stethoscope; `without_simulator` leaves out what
is almost surely a simulator in set A."""
    if sides:
        text += f"\n\nFinding a problem (extra sound, extrasystole or murmur): {', '.join(sides)}."
    return (
        text
        + "\n\n"
        + "\n".join(["| class | n | precision | recall |", "|---|---|---|---|", *rows])
    )


def _trust(evaluation: dict[str, Any]) -> str:
    """The full evaluation in a few lines; a number that was not computed is left out."""
    lines = []
    if "ece_after" in evaluation:
        lines.append(
            f"Calibration error (ECE): {evaluation['ece_before']:.3f} before and "
            f"{evaluation['ece_after']:.3f} after calibration, cross-fitted over people."
        )
    if evaluation.get("wrong_of_answered") is not None:
        lines.append(
            f"It answers {evaluation['answered']:.0%} of the recordings and calls the others "
            f"`inconclusive`; {evaluation['wrong_of_answered']:.0%} of the answers are wrong. UAR "
            f"{_number(evaluation['uar_answered'])} on those answered, "
            f"{_number(evaluation['uar'])} on all, cross-fitted over people."
        )
    if "gate_auroc" in evaluation:
        lines.append(
            f"Sounds that are no heart: gate AUROC {evaluation['gate_auroc']:.3f}; it lets "
            f"{evaluation['gate_true_accept']:.0%} of heart sounds and "
            f"{evaluation['gate_false_accept']:.0%} of other sounds through."
        )
    if evaluation.get("device_sentence"):
        lines.append(f"Device: {evaluation['device_sentence']}")
    if evaluation.get("robustness"):
        worst = ", ".join(f"{kind} {uar:.3f}" for kind, uar in evaluation["robustness"].items())
        lines.append(f"Lowest UAR under growing damage to the recording: {worst}.")
    if not lines:
        return ""
    return "## How far to trust it\n\n" + "\n".join(f"- {line}" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _data(
    about: dict[str, Any], split_sizes: dict[str, int] | None, keeps_contradictions: bool
) -> str:
    if about["synthetic"]:
        origin = "Heart sounds simulated by hb-ssl; no person was recorded."
    else:
        origin = (
            f"Recordings in the layout of the {PASCAL_NAME} (source `{about.get('trained_on')}`)."
        )
    mode = about.get("label_mode")
    task = f" Task `{mode}`: {LABEL_MODES[mode]}." if mode in LABEL_MODES else ""
    sizes = ""
    if split_sizes:
        listed = ", ".join(f"{count} {part}" for part, count in split_sizes.items())
        sizes = f" Recordings: {listed}."
    return f"""## Data and leakage

{origin}{task}{sizes}{_trained_with(about.get("training"))}

Subjects (set B) and recording sessions (set A) stand on one side of the split only; copies of the
same audio, found from the sound itself, join their groups. Training refuses to start otherwise.
Audio that stands under two labels is {"kept" if keeps_contradictions else "left out"}. Windows
have a fixed length and short recordings are repeated, never padded, because in this data the length
alone tells one class."""


def _trained_with(training: dict[str, Any] | None) -> str:
    if not training:
        return ""
    return f"""

- Command: `{training["command"]}`
- Seed {training["seed"]}, {training["epochs"]:g} epochs, peak learning rate
  {training["learning_rate"]:g}
- {training["num_recordings"]} recordings trained on; SHA-256 over their sorted content hashes:
  `{training["data_sha256"]}`"""


_LIMITS = """## What it can't do

- It was tested on one small collection. Other devices, children, other rooms and other illnesses
  may sound different, and nothing here says how well it does there.
- The device is a shortcut: some classes come from one device only. Read the scores per set.
- A missed murmur is possible at any probability. A person with complaints sees a doctor, whatever a
  program says."""
