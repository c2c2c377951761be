"""One recording and the label spaces of the PASCAL challenge."""

from dataclasses import dataclass

from hb_ssl.errors import UserError

LABEL_MODES: dict[str, tuple[str, ...]] = {
    "merge": ("artifact", "extrahls", "murmur", "normal"),
    "drop": ("artifact", "extrahls", "murmur", "normal"),
    "set_a": ("artifact", "extrahls", "murmur", "normal"),
    "set_b": ("extrastole", "murmur", "normal"),
}
RAW_LABELS = ("artifact", "extrahls", "extrastole", "murmur", "normal")


@dataclass(frozen=True)
class Recording:
    """A heart-sound recording and what its file name says.

    Attributes:
        recording_id: unique and the same on every machine: ``<set>/<file stem>``.
        path: absolute path of the audio file.
        set: ``a`` (iPhone app) or ``b`` (digital stethoscope).
        raw_label: label as the challenge names it; ``None`` for the unlabelled test files.
        noisy: set B's ``noisynormal`` or ``noisymurmur``.
        subject: set B's subject number; ``None`` in set A, which has time stamps only.
        site: auscultation site in set B (``A``, ``B``, ``C``, ``D``, ... with a take number).
        timestamp: seconds since 1970 (UTC): set A to the minute or second, set B to the ms.
        sampling_rate: Hz, as shipped.
        num_samples: samples, as shipped.
        content_hash: SHA-256 of the file's bytes (hex).
    """

    recording_id: str
    path: str
    set: str
    raw_label: str | None
    noisy: bool
    subject: str | None
    site: str | None
    timestamp: float | None
    sampling_rate: int
    num_samples: int
    content_hash: str

    @property
    def duration_seconds(self) -> float:
        return self.num_samples / self.sampling_rate


def task_label(raw_label: str | None, set_: str, label_mode: str) -> str | None:
    """The label of a recording in a task, or ``None`` if it does not take part.

    extrahls (set A) and extrastole (set B) are different findings, so what happens to them is a
    named mode: ``merge`` calls both extrahls, ``drop`` leaves extrastole out, ``set_a`` and
    ``set_b`` are the two tasks of the challenge.
    """
    if label_mode not in LABEL_MODES:
        raise UserError(f"label mode '{label_mode}': expected one of {', '.join(LABEL_MODES)}")
    if raw_label is None:
        return None
    if label_mode in ("set_a", "set_b") and set_ != label_mode[-1]:
        return None
    if label_mode == "merge" and raw_label == "extrastole":
        return "extrahls"
    return raw_label if raw_label in LABEL_MODES[label_mode] else None
