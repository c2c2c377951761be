"""Makes the classifier that ships in the package from two finished runs."""

import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.full_evaluation import FULL_FILE, attach_to_model
from hb_ssl.hub import make_bundle
from hb_ssl.model_card import BUNDLED_NAME


def bundle_classifier(run: str | Path, cross_validation: str | Path, target: str | Path) -> Path:
    """Model of one run, scores and calibration of another: a model folder in half precision.

    Args:
        run: ``hb-ssl train --test_fraction 0``: trained on every labelled recording.
        cross_validation: ``hb-ssl cv`` of the same recipe, evaluated with ``--full``; out-of-fold,
            so its scores, calibration and abstention threshold saw no recording in training.
        target: folder to replace.

    Raises:
        UserError: a run is not finished, or the two are of different recipes.
    """
    run, cross_validation, target = Path(run), Path(cross_validation), Path(target)
    for folder, name, fix in (
        (run, "model", "`hb-ssl train`"),
        (cross_validation, FULL_FILE, "`hb-ssl cv` and `hb-ssl evaluate --full`"),
    ):
        if not (folder / name).exists():
            raise UserError(f"{folder}: has no {name}; expected a folder finished by {fix}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        staging = Path(scratch) / "run"
        shutil.copytree(run / "model", staging / "model")
        attach_to_model(cross_validation, staging)
        metrics = read_json(cross_validation / "metrics.json")
        metrics["run"] = {**metrics.get("run", {}), **read_json(run / "metrics.json")["run"]}
        write_json_atomic(staging / "metrics.json", metrics)
        shutil.copyfile(cross_validation / FULL_FILE, staging / FULL_FILE)
        shutil.copyfile(run / "splits.json", staging / "splits.json")
        made = make_bundle(staging, Path(scratch) / "bundle", BUNDLED_NAME)
        weights = made / "model.safetensors"
        half = {name: tensor.half() for name, tensor in load_file(weights).items()}
        save_file(half, weights, metadata={"format": "pt"})
        # Half precision is for storage: the model computes in the dtype that config.json names.
        write_json_atomic(
            made / "config.json", {**read_json(made / "config.json"), "dtype": "float32"}
        )
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target
