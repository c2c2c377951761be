"""The report of a run: ``report.html`` (one self-contained file) and ``report.md``."""

import json
import logging
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from hb_ssl.audio import load_audio
from hb_ssl.data.inspect import format_inspection
from hb_ssl.errors import UserError
from hb_ssl.evaluation.calibration import reliability_bins
from hb_ssl.evaluation.device import device_share
from hb_ssl.evaluation.intervals import paired_bootstrap
from hb_ssl.evaluation.metrics import score_recordings
from hb_ssl.figures import PICTURE_RATE, recording_figure, reliability_figure, training_figure
from hb_ssl.files import read_json, write_bytes_atomic, write_text_atomic
from hb_ssl.report_page import (
    Block,
    Code,
    Collapsed,
    Columns,
    Heading,
    KeyNumbers,
    Picture,
    Table,
    Text,
    pictures_of,
    to_html,
    to_markdown,
)
from hb_ssl.report_run import (
    Run,
    device_only_rows,
    label_of,
    load_run,
    worst_errors,
)
from hb_ssl.report_trust import trust_blocks

logger = logging.getLogger(__name__)

MAX_ERRORS = 12
PART_NAMES = {
    "overall": "all",
    "set_a": "set A",
    "set_b": "set B",
    "without_simulator": "without simulator",
}
HEADLINE_SCORES = {"uar": "UAR", "macro_f1": "macro-F1", "accuracy": "accuracy"}
TABLE_SCORES = {
    **HEADLINE_SCORES,
    "problem_sensitivity": "sensitivity",
    "problem_specificity": "specificity",
    "problem_auroc": "AUROC, any problem",
    "auroc_macro": "AUROC, mean of classes",
}
ADAPTATIONS = {"lora": "LoRA fine-tuning", "full": "full fine-tuning", "probe": "a linear probe"}


def write_report(run_folder: str | Path) -> Path:
    """Writes the report of a finished ``hb-ssl train`` or ``hb-ssl cv`` run into its folder.

    Returns:
        ``report.html``; ``report.md`` and its ``figures/`` lie beside it.

    Raises:
        UserError: no finished run there, a malformed file, or a folder that can't be written.
    """
    run = load_run(run_folder)
    blocks = [
        *_headline(run),
        *_parts(run),
        *_confusions(run),
        *_reliability(run),
        *_trust(run),
        *_training_curves(run),
        *_data_card(run),
        *_errors(run),
        *_reproduction(run),
    ]
    pictures = {f"{picture.name}.png": picture.figure.png for picture in pictures_of(blocks)}
    figures = run.folder / "figures"
    for name, png in pictures.items():
        write_bytes_atomic(figures / name, png)
    for old in figures.glob("misclassified-*.png"):  # of an earlier report with more errors
        if old.name not in pictures:
            old.unlink()
    title = _title(run)
    write_text_atomic(run.folder / "report.md", to_markdown(title, blocks))
    path = run.folder / "report.html"
    write_text_atomic(path, to_html(title, blocks))
    return path


def _title(run: Run) -> str:
    method = run.method
    if method == "fine_tune":
        backbone = run.config.get("backbone", "a backbone")
        name = Path(backbone).name if Path(backbone).exists() else backbone
        adaptation = ADAPTATIONS.get(run.config.get("adaptation", ""), "fine-tuning")
        method = f"{adaptation} of {name}"
    else:
        method = f"baseline {method}"
    source = run.data_card["source"]
    source = Path(source).name if Path(source).exists() else source
    checked = "cross-validated " if run.cross_validated else ""
    return f"Heart-sound classifier: {checked}{method} on {source} recordings"


def _headline(run: Run) -> list[Block]:
    overall, intervals = run.metrics["recording"]["overall"], run.intervals["overall"]
    groups = len({str(row["group"]) for row in run.rows})
    blocks: list[Block] = []
    if run.synthetic:
        blocks.append(
            Text("SYNTHETIC recordings: these scores say nothing about real hearts.", "banner")
        )
    if run.random_weights:
        blocks.append(
            Text(
                "RANDOM WEIGHTS: the backbone was not pretrained; this is a control experiment.",
                "banner",
            )
        )
    blocks.append(Text("A research and screening aid, not a diagnosis."))
    if run.cross_validated:
        how = (
            f"Each of {overall['n']} recordings ({groups} groups: subjects or recording sessions) "
            f"was tested once in each of {run.metrics['num_repeats']} repeat(s), in "
            f"{run.metrics['num_folds']} folds, by a model that saw no recording of its group. "
            "Scores are means over the repeats."
        )
    else:
        stopped = len(run.split["validation"])
        how = (
            f"Tested on {overall['n']} recordings of {groups} groups (subjects or recording "
            f"sessions); trained on {len(run.split['train'])} recordings"
            + (f" and stopped on {stopped} of other groups." if stopped else " of other groups.")
        )
    blocks.append(Text(f"{how} The classes are {', '.join(run.labels)}."))
    items = []
    for name, shown in HEADLINE_SCORES.items():
        interval = _range(intervals[f"recording_{name}"])
        more = f"95 % interval {interval}" if interval else "no interval: too few groups"
        items.append((shown, _number(overall[f"recording_{name}"]), more))
    blocks.append(KeyNumbers(items))
    blocks.append(
        Text(
            "UAR (unweighted average recall) is the share of each class that was found, averaged "
            f"so that every class counts the same; guessing gives 1/{len(run.labels)} = "
            f"{1 / len(run.labels):.3f}. Intervals come from a bootstrap over groups; they cover "
            "the choice of test subjects, not the variation between trainings.",
            "note",
        )
    )
    return [*blocks, *_device_alone(run)]


def _device_alone(run: Run) -> list[Block]:
    blocks: list[Block] = [Heading("How much the device alone explains", 3)]
    if run.method in ("device_only", "majority"):
        return [*blocks, Text("This run is itself a baseline that hears nothing.")]
    try:
        rows = device_only_rows(run)
    except UserError as error:
        return [*blocks, Text(f"Left out, as it can't be computed: {error}")]
    scores = score_recordings(rows, run.labels)
    shown = ", ".join(
        f"{name} {_number(scores[f'recording_{key}'])}" for key, name in HEADLINE_SCORES.items()
    )
    compared = paired_bootstrap(run.rows, rows, run.labels, names=("the model", "the device alone"))
    sets = sorted({row["set"].upper() for row in run.rows})
    known = f"from which device (set {' or '.join(sets)})" if len(sets) > 1 else "nothing else"
    by_key = {(row["recording_id"], row.get("seed")): row for row in rows}
    aligned = [by_key[row["recording_id"], row.get("seed")] for row in run.rows]
    return [
        *blocks,
        Text(device_share(run.rows, aligned, run.labels)["sentence"]),
        Text(
            f"Answering with the commonest class of the training recordings, knowing {known} and "
            f"hearing nothing, gives {shown} on the same recordings. UAR: "
            f"{compared['recording_uar']['verdict']}."
        ),
    ]


def _parts(run: Run) -> list[Block]:
    rows = []
    for part, block in run.metrics["recording"].items():
        present = sum(1 for c in block["recording_per_class"].values() if c["support"])
        cells = [PART_NAMES.get(part, part), str(block["n"]), str(present)]
        for name in TABLE_SCORES:
            interval = run.intervals.get(part, {}).get(f"recording_{name}")
            cells.append(f"{_number(block[f'recording_{name}'])}\n{_range(interval)}".rstrip())
        rows.append(cells)
    blocks: list[Block] = [
        Heading("Scores by part of the data"),
        Table(
            "Recording scores, with 95 % intervals",
            ["part", "n", "classes", *TABLE_SCORES.values()],
            rows,
        ),
        Text(
            "Set A and set B come from different devices and hold different classes, so look at "
            "each. Sensitivity and specificity are for any heart problem (murmur, extra sound or "
            "extrasystole against everything else, artifacts included). A part scores the classes "
            "it holds. Simulator recordings sound machine-made and are easy. AUROC has no interval "
            "here.",
            "note",
        ),
    ]
    window = run.metrics.get("window", {}).get("overall")
    if window:
        blocks.append(
            Text(
                f"Single windows ({window['n']} of them): UAR {_number(window['window_uar'])}, "
                f"accuracy {_number(window['window_accuracy'])}.",
                "note",
            )
        )
    return blocks


def _confusions(run: Run) -> list[Block]:
    parts = run.metrics["recording"]
    tables: list[list[Block]] = [
        [_confusion_table(run.labels, part, block["recording_confusion_matrix"])]
        for part, block in parts.items()
        if part != "without_simulator"
    ]
    note = "Under each count is its share of the true class, which is also the shading."
    if run.num_seeds > 1:
        note += " Counts are means over the repeats."
    per_class = parts["overall"]["recording_per_class"]
    rows = [
        [label, *(_number(per_class[label][name]) for name in ("precision", "recall", "f1")),
         _count(per_class[label]["support"])]
        for label in run.labels
    ]  # fmt: skip
    return [
        Heading("What is taken for what"),
        Text(note, "note"),
        Columns(tables, min_pixels=400),
        Table(
            "All: scores of each class",
            ["class", "precision", "recall", "F1", "recordings"],
            rows,
            class_rows=True,
        ),
    ]


def _confusion_table(labels: list[str], part: str, matrix: list[list[float]]) -> Table:
    shares = [[count / (sum(row) or 1) for count in row] for row in matrix]
    rows = [
        [label, *(f"{_count(n)}\n{share:.0%}" if sum(row) else "–" for n, share in zip(row, own))]
        for label, row, own in zip(labels, matrix, shares)
    ]
    caption = f"{PART_NAMES[part]}: rows are the true class, columns the prediction"
    caption = caption[0].upper() + caption[1:]
    return Table(caption, ["true class", *labels], rows, shares, class_rows=True)


def _reliability(run: Run) -> list[Block]:
    bins, error = reliability_bins(run.rows, run.labels)
    rows = [
        [f"{b['low']:.1f} to {b['high']:.1f}", str(b["n"]), _number(b["confidence"]),
         _number(b["accuracy"])]
        for b in bins
    ]  # fmt: skip
    pooled = " (all repeats pooled)" if run.num_seeds > 1 else ""
    return [
        Heading("Can the probabilities be trusted?"),
        Text(
            f"Expected calibration error (ECE) {_number(error)} over 10 bins of equal width"
            f"{pooled}: the stated probability is wrong by {error:.0%} on average. The "
            "probabilities are uncalibrated, as the model gives them. Points below the dotted "
            "line: the model is surer than it is right."
        ),
        Picture(
            "reliability",
            "Reliability curve: share correct against the highest class probability; the numbers "
            "are in the table below.",
            reliability_figure(bins),
        ),
        Collapsed(
            "The numbers of the reliability curve",
            [Table("Reliability", ["probability", "predictions", "mean", "share correct"], rows)],
        ),
    ]


def _trust(run: Run) -> list[Block]:
    path = run.folder / "full_evaluation.json"
    if not path.is_file():
        command = f"hb-ssl evaluate {shlex.quote(str(run.folder))} --full"
        return [
            Text(f"Calibration, abstention, robustness and more: run `{command}`.", "note"),
        ]
    return trust_blocks(read_json(path))


def _training_curves(run: Run) -> list[Block]:
    blocks: list[Block] = [Heading("Training")]
    if run.method != "fine_tune":
        return [*blocks, Text(f"A baseline ({run.method}): no epochs, so no curves.")]
    drawn = [
        ("training-loss", {"train_loss": "training", "validation_loss": "validation"}, "loss"),
        ("training-uar", {"validation_recording_uar": "validation"}, "validation UAR"),
        ("training-rate", {"learning_rate": "learning rate"}, "learning rate"),
    ]
    groups: list[list[Block]] = []
    for name, keys, label in drawn:
        figure = training_figure(name, run.histories, keys, label)
        if figure is not None:
            last = f" over {max(row['epoch'] for rows in run.histories for row in rows):g} epochs"
            groups.append([Picture(name, f"Curve of the {label}{last}.", figure)])
    summary = run.metrics.get("run", {})
    facts = []
    if "parameters" in summary:
        p = summary["parameters"]
        facts.append(f"{p['trainable']:,} of {p['total']:,} parameters were trained")
    if "steps" in summary:
        facts.append(f"{summary['steps']:,} steps, {summary['epochs']:g} epochs")
    if summary.get("best_validation_recording_uar") is not None:
        facts.append(f"best validation UAR {_number(summary['best_validation_recording_uar'])}")
    seconds = summary.get("train_seconds") or summary.get("mean_train_seconds")
    if seconds is not None:
        facts.append(f"{seconds:,.0f} s" + (" a fold" if run.cross_validated else ""))
    if run.cross_validated:
        facts.append(f"one thin line for each of {len(run.histories)} folds")
    if facts:
        text = "; ".join(facts) + "."
        blocks.append(Text(text[0].upper() + text[1:]))
    if not groups:
        return [*blocks, Text("The run kept no curves.")]
    return [*blocks, Columns(groups)]


def _data_card(run: Run) -> list[Block]:
    card, inspection = run.data_card, run.data_card["inspection"]
    rows = [
        [f"{row['set'].upper()}: {row['label']}", str(row["recordings"]), str(row["noisy"]),
         str(row["subjects"] or "–"), f"{row['duration_seconds']['median']:.1f}",
         f"{row['duration_seconds']['min']:.1f} to {row['duration_seconds']['max']:.1f}"]
        for row in inspection["classes"]
    ]  # fmt: skip
    header = ["set and label", "recordings", "noisy", "subjects", "median seconds", "seconds"]
    blocks: list[Block] = [
        Heading("Data"),
        Text(
            f"{card['num_labelled']} labelled recordings of {card['num_groups']} groups take part "
            f"(label mode {run.config['label_mode']})."
        ),
        Table("All recordings of the source, as labelled there", header, rows),
        _split_table(run),
    ]
    dropped = [[d["recording_id"], d["reason"]] for d in card["dropped"]]
    blocks += _list_or_none("Left out", ["recording", "reason"], dropped)
    pairs = [
        [d["first"], d["second"], f"{d['shared_seconds']:.1f}",
         "yes" if d["labels_disagree"] else "no"]
        for d in inspection.get("duplicates", [])
    ]  # fmt: skip
    header = ["recording", "shares audio with", "shared seconds", "labels disagree"]
    blocks += _list_or_none("Shared audio", header, pairs)
    problems = [[str(number), problem] for number, problem in enumerate(inspection["problems"], 1)]
    blocks += _list_or_none("Problems with the files", ["number", "problem"], problems)
    inner: list[Block] = [Code(format_inspection(inspection))]
    return [*blocks, Collapsed("The whole data card: durations, groups, shortcuts", inner)]


def _list_or_none(caption: str, header: list[str], rows: list[list[str]]) -> list[Block]:
    if not rows:
        return [Text(f"{caption}: none.")]
    table = Table(f"{caption} ({len(rows)})", header, rows)
    return [table] if len(rows) <= 10 else [Collapsed(f"{caption} ({len(rows)})", [table])]


def _split_table(run: Run) -> Block:
    """Recordings by class of every part of the split, or of every fold of the first repeat."""
    if run.cross_validated:
        first = min(row["seed"] for row in run.rows)
        parts = {
            f"fold {fold}": [
                r["label"] for r in run.rows if (r["seed"], r["fold"]) == (first, fold)
            ]
            for fold in sorted({row["fold"] for row in run.rows})
        }
        caption = "Test recordings of each fold (first repeat)"
    else:
        of_test = {row["recording_id"]: row["label"] for row in run.rows}
        parts = {
            part: [of_test.get(r) or label_of(run, r) or "unknown" for r in ids]
            for part, ids in run.split.items()
        }
        caption = "The split, by class"
    counts = {part: Counter(labels) for part, labels in parts.items()}
    names = list(run.labels)
    if any("unknown" in count for count in counts.values()):
        names.append("unknown")
        caption += f" (unknown where the source can't be listed: {run.unreachable or 'changed'})"
    rows = [
        [part, *(str(count[name]) for name in names), str(count.total())]
        for part, count in counts.items()
    ]
    return Table(caption, ["part", *names, "recordings"], rows)


def _errors(run: Run) -> list[Block]:
    wrong = worst_errors(run.rows, len(run.rows))
    blocks: list[Block] = [Heading("Misclassified recordings")]
    if not wrong:
        return [*blocks, Text("None.")]
    shown = wrong[:MAX_ERRORS]
    text = f"{len(wrong)} recordings were misclassified"
    if run.num_seeds > 1:
        text += " at least once"
    text += f"; here are the {len(shown)} most confident errors." if len(wrong) > 1 else "."
    text += " Pictures show the signal and its log-mel spectrogram from 0 to 1000 Hz"
    text += ", and the class of each window below." if run.windows else "."
    blocks.append(Text(text))
    if run.recordings is None:
        blocks.append(Text(f"No pictures, the audio can't be reached any more: {run.unreachable}"))
    progress = tqdm(shown, desc="pictures", unit="recording", leave=False, disable=None)
    return [*blocks, Columns([_error_card(run, n, row) for n, row in enumerate(progress, 1)], 380)]


def _error_card(run: Run, number: int, row: dict[str, Any]) -> list[Block]:
    recording_id = row["recording_id"]
    text = f"True class {row['label']}, predicted {row['prediction']}. Set {row['set'].upper()}"
    text += f", group {row['group']}"
    if row["times_tested"] > 1:
        text += f"; wrong in {row['times_wrong']} of {row['times_tested']} repeats, the surest here"
    probabilities = [row[f"prob_{label}"] for label in run.labels]
    blocks: list[Block] = [
        Heading(f"{number}. {recording_id}", 3),
        Text(text + "."),
        Table(
            "Probabilities (uncalibrated)",
            ["class", *run.labels],
            [["probability", *(f"{p:.2f}" for p in probabilities)]],
            [probabilities],
        ),
    ]
    if run.recordings is None:
        return blocks
    recording = run.recordings.get(recording_id)
    if recording is None:
        return [*blocks, Text("No picture: the source does not hold this recording any more.")]
    if run.hashes.get(recording_id, recording.content_hash) != recording.content_hash:
        return [*blocks, Text("No picture: the file has changed since the run.")]
    try:
        waveform, _ = load_audio(recording.path, PICTURE_RATE)
    except UserError as error:
        return [*blocks, Text(f"No picture: {error}")]
    windows = run.windows.get(recording_id, [])
    name = f"misclassified-{number:02d}"
    figure = recording_figure(name, waveform, windows, run.config["window_seconds"])
    alt = f"Waveform and log-mel spectrogram of {recording_id} ({recording.duration_seconds:.1f} s)"
    if windows:
        alt += "; windows: " + ", ".join(f"{label} at {t:.1f} s" for t, label in windows[:20])
    return [*blocks, Picture(name, alt + ".", figure)]


def _reproduction(run: Run) -> list[Block]:
    verb = "cv" if run.cross_validated else "train"
    script = "scripts/cross_validate.py" if run.cross_validated else "scripts/train.py"
    processes = run.environment["processes"]
    launch = f"hb-ssl {verb}"
    if processes > 1:
        launch = f"accelerate launch --num_processes {processes} {script}"
    config = shlex.quote(str(run.folder / "config.yaml"))
    again = shlex.quote(f"{run.config['output_dir']}-again")
    ran = shlex.join(str(part) for part in run.environment["command"])
    return [
        Heading("How to reproduce this"),
        Text("This repeats the run with the same settings and seeds:"),
        Code(f"{launch} --config {config} --output_dir {again}"),
        Text(f"It was started on {run.environment.get('time', 'an unknown date')} as:"),
        Code(ran),
        Collapsed("Configuration", [Code(yaml.safe_dump(run.config, sort_keys=False))]),
        Collapsed("Environment", [Code(json.dumps(run.environment, indent=2))]),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(value: float) -> str:
    """A count, with one decimal where it is a mean over repeats."""
    return str(round(value)) if float(value).is_integer() else f"{value:.1f}"


def _range(interval: dict[str, float | None] | None) -> str:
    if interval is None or interval["low"] is None:
        return ""
    return f"{interval['low']:.3f}–{interval['high']:.3f}"
