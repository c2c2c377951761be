"""The Space on a free port of this machine, with a tiny random classifier."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile as sf

from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.inference import HeartSoundClassifier
from hb_ssl.models.backbones import load_feature_extractor
from hb_ssl.models.classifier import build_classifier, save_classifier
from tests.conftest import REPOSITORY
from tests.integration.helpers import LABELS, preprocessing

RATE = 4000  # Hz of the recordings here


def space_module() -> ModuleType:
    """``space/app.py``, which lies outside of any package."""
    if "space_app" not in sys.modules:
        spec = importlib.util.spec_from_file_location("space_app", REPOSITORY / "space" / "app.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["space_app"] = module
        spec.loader.exec_module(module)
    return sys.modules["space_app"]


def save_tiny_classifier(backbone: Path, folder: Path) -> Path:
    """A random classifier on 1 s windows, named synthetic as random weights must be."""
    model = build_classifier(str(backbone), LABELS)
    about = preprocessing(hop_seconds=1.0, trained_on="synthetic", synthetic=True)
    save_classifier(folder, model, load_feature_extractor(str(backbone)), about)
    return folder


@contextmanager
def running_space(
    model: Path, examples: Path, requests_per_minute: int = 100_000
) -> Iterator[tuple[str, HeartSoundClassifier]]:
    """Yields the address of the Space and the classifier behind it.

    All visitors of a test have one address, so the limit per visitor is high here.
    """
    space = space_module()
    classifier = HeartSoundClassifier.from_pretrained(model)
    app = space.build_app(classifier, space.model_card(model), examples)
    _, url, _ = space.launch_app(app, requests_per_minute, prevent_thread_lock=True, quiet=True)
    try:
        yield url, classifier
    finally:
        app.close(verbose=False)


def write_recordings(folder: Path) -> dict[str, Path]:
    """Good and bad files of every kind that users send."""
    rng = np.random.default_rng(5)
    heart, _ = simulate_recording("normal", 60.0, RATE, rng, "stethoscope", snr_db=20.0)
    files = {
        name: folder / f"{name}.wav"
        for name in ("heart", "silence", "text", "empty", "half_hour", "too_long", "short")
    }
    sf.write(files["heart"], heart[: 10 * RATE], RATE)
    sf.write(files["silence"], np.zeros(5 * RATE), RATE)
    files["text"].write_text("this is no sound\n" * 50)
    files["empty"].write_bytes(b"")
    sf.write(files["half_hour"], np.tile(heart, 30), RATE)
    sf.write(files["too_long"], np.zeros(40 * 60 * 1000), 1000, subtype="PCM_U8")
    sf.write(files["short"], heart[: RATE // 2], RATE)
    return files
