"""What the file names of the challenge say, in both of their forms."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hb_ssl.errors import UserError

_LABELS = {
    "a": {"artifact": "artifact", "murmur": "murmur", "normal": "normal"}
    | dict.fromkeys(("extrahls", "extrahs"), "extrahls"),
    "b": {"murmur": "murmur", "normal": "normal"}
    | dict.fromkeys(("extrastole", "extrasystole"), "extrastole"),
}
_NOISY = {"noisynormal": "normal", "noisymurmur": "murmur"}
_FOLDER = re.compile(r"(?P<set>[ab])_?(?:(?P<test>unlabelledtest)|training_(?P<kind>[a-z]+))")
_STEM_A = re.compile(r"\d{8,14}")
_STEM_B = re.compile(r"(?P<subject>\d+)_(?P<stamp>\d{13})_(?P<site>[A-Z])_?(?P<take>\d*)")


class UnknownName(UserError):
    """A file name that is not one of the challenge's; the file is left out, not guessed at."""


@dataclass(frozen=True)
class ParsedName:
    """What a file's name and folders say.

    Attributes:
        stem: the file stem in Kaggle's form, e.g. ``normal_noisynormal_125_1306332456645_C``.
        set: ``a`` or ``b``.
        label: as the challenge names it; ``None`` for the unlabelled test files.
        noisy: set B's ``noisynormal`` or ``noisymurmur``.
        subject: set B's subject number, else ``None``.
        site: set B's auscultation site with a take number (``D``, ``D1``), else ``None``.
        timestamp: seconds since 1970, UTC; ``None`` where the name has digits missing.
    """

    stem: str
    set: str
    label: str | None
    noisy: bool
    subject: str | None
    site: str | None
    timestamp: float | None


def parse_file_name(name: str, parents: Sequence[str] = ()) -> ParsedName:
    """Reads set, label and recording facts from a file name and the folders around it.

    Args:
        name: file name, e.g. ``normal__103_1305031931979_D1.wav`` or ``201101070538.aiff``.
        parents: names of the enclosing folders, outermost first.

    Raises:
        UnknownName: the name is not the challenge's, or neither it nor a folder says the class.
        UserError: the name and its folders contradict each other.
    """
    shown = "/".join([*parents, name])
    words, rest = _split_stem(Path(name).stem)
    if match := _STEM_B.fullmatch(rest):
        set_ = "b"
    elif _STEM_A.fullmatch(rest):
        set_ = "a"
    else:
        raise UnknownName(
            f"{shown}: not a name of the challenge, left out; expected e.g. "
            "normal__201101070538.wav or normal__103_1305031931979_D1.wav"
        )
    # One entry per source of evidence; "" stands for the unlabelled test files.
    labels: set[str] = set()
    noisy = False
    for folder in parents:
        if folder.lower() in ("set_a", "set_b"):
            _same_set(shown, set_, folder[-1].lower())
            continue
        # The challenge's Btraining_normal.zip really unpacks to "Training B Normal".
        plain = "btraining_normal" if folder.lower() == "training b normal" else folder.lower()
        if found := _FOLDER.fullmatch(plain):
            _same_set(shown, set_, found["set"])
            kind = found["kind"] or ""
            noisy |= kind in _NOISY
            labels.add(_label(shown, set_, kind))
    for word in words:
        if found := _FOLDER.fullmatch(word):
            _same_set(shown, set_, found["set"])
        kind = found["kind"] or "" if found else word
        noisy |= kind in _NOISY
        labels.add(_label(shown, set_, kind))
    if len(labels) > 1:
        raise UserError(
            f"{shown}: the name and its folders say "
            f"{' and '.join(sorted(label or 'unlabelled' for label in labels))}; expected one "
            "class, move or rename the file"
        )
    if not labels:
        raise UnknownName(
            f"{shown}: neither the name nor a folder says the class, left out; expected e.g. "
            f"normal__{rest}.wav or a folder {set_.upper()}training_normal"
        )
    label = labels.pop() or None
    prefix = f"{label}_noisy{label}_" if noisy else f"{label or set_.upper() + 'unlabelledtest'}__"
    return ParsedName(
        stem=prefix + rest,
        set=set_,
        label=label,
        noisy=noisy,
        subject=match["subject"] if match else None,
        site=match["site"] + match["take"] if match else None,
        timestamp=int(match["stamp"]) / 1000 if match else _stamp_a(rest),
    )


def recording_key(name: str) -> tuple[str, str] | None:
    """Set and digits of a recording's name in any of its forms, with or without class and suffix.

    ``201101091156.aiff``, ``__201101091156.wav`` and ``a/Aunlabelledtest__201101091156`` all give
    ``("a", "201101091156")``; set B gives ``subject_stamp_site`` with the take number.

    Returns:
        ``None`` for a name that is not the challenge's.
    """
    file_name = name.strip().replace("\\", "/").split("/")[-1]
    _, rest = _split_stem(re.sub(r"\.(wav|aiff?|flac)$", "", file_name, flags=re.IGNORECASE))
    if match := _STEM_B.fullmatch(rest):
        return "b", f"{match['subject']}_{match['stamp']}_{match['site']}{match['take']}"
    return ("a", rest) if _STEM_A.fullmatch(rest) else None


def _split_stem(stem: str) -> tuple[list[str], str]:
    """``Btraining_normal_Btraining_noisynormal_1_2_C`` -> its class words, and ``1_2_C``."""
    found = re.fullmatch(r"(?P<words>[A-Za-z_]*)_(?P<rest>\d.*)", stem)
    if not found:
        return [], stem
    # "btraining_normal" is one word: join it with a dash while the rest is split.
    text = re.sub(r"([ab]training)_+", r"\1-", found["words"].lower())
    words = [word.replace("-", "_") for word in text.split("_") if word]
    return words, found["rest"]


def _label(shown: str, set_: str, kind: str) -> str:
    if kind == "":
        return ""
    label = _NOISY.get(kind) if set_ == "b" else None
    label = label or _LABELS[set_].get(kind)
    if label is None:
        raise UnknownName(
            f"{shown}: '{kind}' is not a class of set {set_.upper()}, left out; expected one of "
            f"{', '.join(sorted(set(_LABELS[set_].values())))}"
        )
    return label


def _same_set(shown: str, from_name: str, from_folder: str) -> None:
    if from_name != from_folder:
        raise UserError(
            f"{shown}: the digits are those of set {from_name.upper()} but the name or folder says "
            f"set {from_folder.upper()}; move or rename the file"
        )


def _stamp_a(digits: str) -> float | None:
    """yyyymmddhhmm[ss] as seconds since 1970; two unlabelled files lack digits and give None."""
    formats = {12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
    if len(digits) not in formats:
        return None
    try:
        return datetime.strptime(digits, formats[len(digits)]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
