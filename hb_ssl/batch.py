"""Classify many files into one table; a bad file costs its own row only."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hb_ssl.audio import load_audio
from hb_ssl.errors import UserError
from hb_ssl.files import write_bytes_atomic
from hb_ssl.inference import HeartSoundClassifier, Prediction


def classify_files(
    classifier: HeartSoundClassifier,
    files: Sequence[Path],
    pictures: Mapping[Path, Path] | None = None,
) -> Iterator[dict[str, Any]]:
    """One row a file, in order (see ``prediction_row``).

    Args:
        classifier: the classifier.
        files: audio files.
        pictures: the PNG file to write for each readable one: waveform and class probabilities over
            time (see ``picture_files``).

    Raises:
        UserError: the pictures can't be written.
    """
    for file, answer in zip(files, classifier.predict_each(files), strict=True):
        if pictures is not None and isinstance(answer, Prediction):
            write_bytes_atomic(pictures[file], _plot(classifier, file, answer))
        yield prediction_row(str(file), answer, classifier.labels)


def picture_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A PNG in ``folder`` for each file; files of one name in two folders each get their own."""
    pictures: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in dict.fromkeys(files):
        name, number = file.stem, 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}"
        taken.add(name)
        pictures[file] = folder / f"{name}.png"
    return pictures


def prediction_row(name: str, answer: Prediction | UserError, labels: list[str]) -> dict[str, Any]:
    """The answer as one flat row; every row of a table has the same columns.

    Args:
        name: of the recording.
        answer: the prediction, or why there is none.
        labels: class names, one ``prob_`` column each.
    """
    row: dict[str, Any] = {
        "file": name, "decision": "", "prediction": "",
        **{f"prob_{label}": "" for label in labels},
        "calibrated": "", "duration_seconds": "", "heart_rate_bpm": "", "signal_notes": "",
        "error": "",
    }  # fmt: skip
    if isinstance(answer, UserError):
        return {**row, "error": str(answer)}
    bpm = answer.heart_rate.bpm
    return {
        **row,
        "decision": answer.decision,
        "prediction": answer.label,
        **{f"prob_{label}": round(p, 6) for label, p in answer.probabilities.items()},
        "calibrated": answer.calibrated,
        "duration_seconds": round(answer.duration_seconds, 3),
        "heart_rate_bpm": "" if bpm is None else round(bpm, 1),
        "signal_notes": " ".join(note.code for note in answer.signal_notes),
    }


def _plot(classifier: HeartSoundClassifier, file: Path, answer: Prediction) -> bytes:
    from hb_ssl.figures import PICTURE_RATE, prediction_figure

    waveform, _ = load_audio(file, PICTURE_RATE)
    sure = answer.probabilities[answer.label]
    name = file.name.encode(errors="backslashreplace").decode()  # it need not be valid text
    title = f"{name}: {answer.decision}"
    if answer.decision != answer.label:
        title += f" (most likely {answer.label})"
    return prediction_figure(
        f"{title}, {sure:.0%}",
        waveform,
        answer.window_start_seconds,
        classifier.preprocessing["window_seconds"],
        answer.window_probabilities,
        classifier.labels,
    ).png
