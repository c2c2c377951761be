"""What the Space says: answers, problems and the model's card as HTML, and rows for the API.

Everything that comes from outside (file names, labels, cards) is escaped.
"""

import base64
import csv
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hb_ssl.audio import load_audio, read_audio_info
from hb_ssl.errors import UserError
from hb_ssl.figures import PICTURE_SECONDS, class_colour
from hb_ssl.inference import INCONCLUSIVE, HeartSoundClassifier, Prediction
from hb_ssl.space_figures import (
    average_columns,
    mel_figure,
    picture_waveform,
    timeline_figure,
    waveform_figure,
)

MAX_MINUTES = 31.0
MAX_VALUES = 200_000_000  # samples times channels; 800 MB decoded
VERDICTS = {
    "normal": "Sounds most like a heart without murmur or extra sounds",
    "murmur": "Sounds most like a heart murmur",
    "extrahls": "Sounds most like an extra heart sound",
    "extrastole": "Sounds most like an extra beat (extrasystole)",
    "artifact": "Sounds most like noise, not a usable heart sound",
    INCONCLUSIVE: "Inconclusive, please re-record",
}
MEANINGS = {
    "normal": "Two clean sounds a beat. A normal sound does not rule out heart disease.",
    "murmur": "A whooshing sound between the beats. Many murmurs are harmless; a doctor can tell.",
    "extrahls": "A third sound in a beat, or a beat that comes early. Often harmless; a doctor can "
    "tell.",
    "extrastole": "A beat that comes early. Often harmless; a doctor can tell.",
    "artifact": "Talking, handling or background noise covers the heart. Record again in a quiet "
    "room.",
    INCONCLUSIVE: "The recording gives no clear answer. Record again in a quiet room: device flat "
    "on bare skin left of the breastbone, hold still, 10 seconds or more.",
}
SYNTHETIC_WARNING = (
    "This demo runs a model trained on SYNTHETIC recordings; its answers mean nothing for real "
    "hearts."
)


def read_recording(path: str | None) -> tuple[np.ndarray, int]:
    """Loads an uploaded file: mono ``[T]`` and its own rate in Hz.

    Raises:
        UserError: there is none, it can't be read or it is too long; names no server folder.
    """
    if not path:
        raise UserError("There is no recording yet: upload or record one first.")
    name = Path(path).name
    try:
        info = read_audio_info(path)
        if info.duration_seconds > MAX_MINUTES * 60:
            raise UserError(
                f"{name}: lasts {info.duration_seconds / 60:.0f} minutes; at most "
                f"{MAX_MINUTES - 1:.0f} are taken here. Cut out a minute with clear heart sounds."
            )
        if info.num_samples * info.num_channels > MAX_VALUES:
            raise UserError(
                f"{name}: too large once decoded; export it as mono at 8 kHz or lower, or cut it"
            )
        return load_audio(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error


def answer_row(name: str, prediction: Prediction) -> dict[str, Any]:
    """One recording as the API and the CSV give it."""
    heart_rate = prediction.heart_rate.bpm
    return {
        "file": name,
        "decision": prediction.decision,
        "calibrated": prediction.calibrated,
        "probabilities": {key: round(p, 4) for key, p in prediction.probabilities.items()},
        "heart_rate_bpm": None if heart_rate is None else round(heart_rate, 1),
        "duration_seconds": round(prediction.duration_seconds, 2),
        "signal_notes": [
            {"code": note.code, "message": note.message, "advice": note.advice}
            for note in prediction.signal_notes
        ],
    }


def problem_html(message: str) -> str:
    """A bad input, said in the page."""
    return (
        '<section class="hb-card hb-problem" role="alert"><h2>This did not work</h2>'
        f"<p>{escape(message)}</p></section>"
    )


def verdict_html(name: str, prediction: Prediction, preprocessing: dict[str, Any]) -> str:
    """Verdict, probabilities, heart rate and signal notes."""
    decision = prediction.decision
    title = VERDICTS.get(decision, f"Sounds most like: {decision}")
    calibration = preprocessing.get("calibration") or {}
    if prediction.calibrated:
        source = calibration.get("fitted_on")
        trust = "Probabilities are calibrated" + (f" on {source}." if source else ".")
        if "abstain_below" in calibration:
            trust += (
                f" Below {calibration['abstain_below']:.0%}, or when it does not sound like a "
                "heart, the answer is 'inconclusive'."
            )
    else:
        trust = "Probabilities are not calibrated: read them as a ranking, not as chances."
    warning = ""
    if preprocessing.get("synthetic"):
        warning = f'<p class="hb-warning">{SYNTHETIC_WARNING}</p>'
    return (
        '<section class="hb-card"><h2>Result</h2>'
        f'<p class="hb-file">{escape(name)}, {prediction.duration_seconds:.1f} s</p>'
        f'<p class="hb-verdict">{escape(title)}</p>'
        f"<p>{escape(MEANINGS.get(decision, ''))}</p>{warning}"
        f"{_probability_table(prediction.probabilities)}<p class='hb-small'>{escape(trust)}</p>"
        "<p class='hb-small'>Research and screening aid, not a diagnosis. With complaints, see a "
        "doctor, whatever this page says.</p></section>"
        f"{_heart_rate_html(prediction)}{_notes_html(prediction)}"
    )


def _probability_table(probabilities: dict[str, float]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="hb-number">{p:.0%}</td>'
        f'<td aria-hidden="true"><span class="hb-bar" style="width:{100 * p:.1f}%;'
        f'background:{class_colour(label)}"></span></td></tr>'
        for label, p in sorted(probabilities.items(), key=lambda item: -item[1])
    )
    return (
        '<table class="hb-probabilities"><caption>Probability of each class</caption>'
        "<thead class='hb-hidden'><tr><th scope='col'>class</th><th scope='col'>probability</th>"
        f"<th scope='col'>bar</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _heart_rate_html(prediction: Prediction) -> str:
    rate = prediction.heart_rate
    if rate.bpm is None:
        text = "<p>No regular heartbeat found, so there is no heart rate.</p>"
    else:
        text = (
            f'<p><span class="hb-verdict">{rate.bpm:.0f}</span> beats per minute, from '
            f"{len(rate.beat_seconds)} detected beats. An estimate from the sound alone.</p>"
        )
    return f'<section class="hb-card"><h2>Heart rate</h2>{text}</section>'


def _notes_html(prediction: Prediction) -> str:
    notes = "".join(
        f"<li><strong>{escape(note.message)}</strong> {escape(note.advice)}</li>"
        for note in prediction.signal_notes
    )
    text = f"<ul>{notes}</ul>" if notes else "<p>No problem found with the recording.</p>"
    return f'<section class="hb-card"><h2>Signal quality</h2>{text}</section>'


def pictures_html(waveform: np.ndarray, rate: int, prediction: Prediction) -> str:
    """Waveform with beats, spectrogram and window timeline."""
    picture = picture_waveform(waveform, rate)
    part = ""
    if len(waveform) / rate > PICTURE_SECONDS:
        part = f" The first {PICTURE_SECONDS:.0f} seconds are shown."
    beats = prediction.heart_rate.beat_seconds
    labels = list(prediction.probabilities)
    return (
        '<section class="hb-card"><h2>Pictures</h2><div class="hb-grid">'
        + figure_html(
            "Waveform with detected beats",
            waveform_figure(picture, beats),
            f"Waveform; {len(beats)} beats detected, marked by triangles.{part}",
        )
        + figure_html(
            "Log-mel spectrogram",
            mel_figure(picture),
            f"Spectrogram up to 1000 hertz; brighter is louder.{part}",
        )
        + figure_html(
            "Window timeline",
            timeline_figure(
                prediction.window_start_seconds,
                prediction.window_probabilities,
                labels,
                prediction.duration_seconds,
            ),
            "What the model makes of each window, over time; the numbers follow.",
            _timeline_table(prediction, labels),
        )
        + "</div></section>"
    )


def _timeline_table(prediction: Prediction, labels: Sequence[str]) -> str:
    starts, columns = average_columns(
        prediction.window_start_seconds, prediction.window_probabilities
    )
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    rows = "".join(
        f'<tr><th scope="row">{start:.1f} s</th>'
        + "".join(f"<td>{p:.0%}</td>" for p in row)
        + "</tr>"
        for start, row in zip(starts, columns, strict=True)
    )
    return (
        "<details><summary>The timeline in numbers</summary><div class='hb-scroll' tabindex='0' "
        "role='region' aria-label='Timeline table'><table><thead><tr>"
        f'<th scope="col">from</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def figure_html(title: str, svg: str, alt: str, more: str = "") -> str:
    """A titled figure with a text alternative."""
    return (
        f"<figure><h3>{escape(title)}</h3>"
        f'<div role="img" aria-label="{escape(alt)}">{svg}</div>'
        f"<figcaption>{escape(alt)}</figcaption>{more}</figure>"
    )


def occlusion_caption(seconds: np.ndarray, importance: np.ndarray, label: str) -> str:
    """One sentence that says where the evidence lies."""
    if not (importance > 0).any():
        return f"No stretch of the recording alone speaks for '{label}'."
    best = int(importance.argmax())
    return (
        f"Red stretches speak for '{label}', blue ones against it. The strongest lies around "
        f"{seconds[best]:.1f} s. A hint where to listen, not a proof."
    )


def batch_html(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> str:
    """Several recordings as a table and a CSV to download, which never touches the disk.

    Args:
        rows: from ``batch.prediction_row``, at least one.
        labels: class names.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "file": _harmless(row["file"])} for row in rows)
    data = base64.b64encode(buffer.getvalue().encode()).decode()
    names = ("file", "answer", *labels, "heart rate", "notes")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(_batch_line(row, labels) for row in rows)
    failed = sum(bool(row["error"]) for row in rows)
    return (
        f'<section class="hb-card"><h2>Results</h2><p>{len(rows)} recordings, '
        f"{failed} could not be read.</p>"
        "<div class='hb-scroll' tabindex='0' role='region' aria-label='Results table'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p><a class="hb-download" download="heart-sounds.csv" href="data:text/csv;base64,{data}">'
        "Download as CSV</a></p></section>"
    )


def _batch_line(row: dict[str, Any], labels: Sequence[str]) -> str:
    name = f'<tr><th scope="row">{escape(row["file"])}</th>'
    if row["error"]:
        blank = "<td></td>" * (len(labels) + 1)
        return (
            f'{name}<td class="hb-error">could not be read: {escape(row["error"])}</td>{blank}'
            "<td></td></tr>"
        )
    bpm = row["heart_rate_bpm"]
    cells = [
        row["decision"],
        *(f"{row[f'prob_{label}']:.0%}" for label in labels),
        "none found" if bpm == "" else f"{bpm:.0f} per minute",
        row["signal_notes"].replace(" ", ", ").replace("_", " "),
    ]
    return name + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _harmless(name: str) -> str:
    """A file name that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in "=+-@\t" else name


def model_card(folder: Path) -> str | None:
    """Text of the model's own card, without its metadata, headings two levels lower.

    Args:
        folder: from ``inference.locate_classifier``.

    Returns:
        ``None`` when the model has no card.
    """
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"^(#{1,4}) ", r"##\1 ", text, flags=re.MULTILINE).strip()


def model_facts(classifier: HeartSoundClassifier) -> str:
    """What ``preprocessing.json`` tells of the model, as Markdown."""
    about = classifier.preprocessing
    # A folder's name may be shown to visitors, where it lies on its owner's disk may not.
    trained = Path(str(about.get("trained_on", "unknown"))).name
    if about.get("synthetic"):
        trained = "SYNTHETIC recordings"
    lines = [
        f"- Classes: {', '.join(classifier.labels)}",
        f"- Trained on: {trained}",
        f"- Hears {about['window_seconds']:g}-second windows every {about['hop_seconds']:g} s at "
        f"{classifier.make_features.sampling_rate} Hz",
    ]
    if about.get("calibration"):
        lines.append(f"- Calibrated on: {about['calibration'].get('fitted_on')}")
    else:
        lines.append("- Probabilities are not calibrated, and it never abstains")
    return "\n".join(lines)
