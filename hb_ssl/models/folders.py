"""Where the bundled models are, and what the folder of a saved classifier holds."""

from pathlib import Path
from typing import Any

from hb_ssl.errors import UserError
from hb_ssl.files import read_json

ASSETS = Path(__file__).parent / "assets"
BUNDLED_BACKBONE = ASSETS / "pcg-small"
BUNDLED_CLASSIFIER = ASSETS / "heart-sound-classifier"
PREPROCESSING_FILE = "preprocessing.json"
PREPROCESSING_KEYS = (
    "labels", "window_seconds", "hop_seconds", "band_low_hz", "band_high_hz", "synthetic",
    "label_mode",
)  # fmt: skip


def read_preprocessing(folder: Path) -> dict[str, Any]:
    """Reads ``preprocessing.json`` of a model folder.

    Raises:
        UserError: it is missing, malformed or incomplete.
    """
    preprocessing = read_json(folder / PREPROCESSING_FILE)
    known = preprocessing if isinstance(preprocessing, dict) else {}
    missing = [name for name in PREPROCESSING_KEYS if name not in known]
    if missing:
        raise UserError(
            f"{folder / PREPROCESSING_FILE}: lacks {', '.join(missing)}; expected the file as "
            "hb-ssl saves it beside a model"
        )
    return preprocessing
