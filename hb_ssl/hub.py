"""Push a trained classifier to the Hub: the bundle of files, the upload, what can go wrong."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hb_ssl.config import read_yaml
from hb_ssl.data.splits import read_split
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.full_evaluation import evaluation_summary
from hb_ssl.hub_requests import Pushed, push_folder
from hb_ssl.model_card import model_card
from hb_ssl.models.adapters import ADAPTER_WEIGHTS
from hb_ssl.models.backbones import family_of, load_backbone_config
from hb_ssl.models.classifier import ADAPTER_FOLDER, PREPROCESSING_FILE

CARD_FILE, METRICS_FILE = "README.md", "metrics.json"
MODEL_FILES = ("model.safetensors", "config.json", "preprocessor_config.json", PREPROCESSING_FILE)
ADAPTER_CONFIG = f"{ADAPTER_FOLDER}/adapter_config.json"


def is_stock_head(config: PreTrainedConfig) -> bool:
    """Whether stock transformers classes compute the same logits from this checkpoint.

    They average the frames of the last layer; AST averages its two class tokens.
    """
    head = getattr(config, "heart_sound_head", None)
    if head is None or head["layer_weighted_sum"]:
        return False
    is_ast = config.model_type == "audio-spectrogram-transformer"
    return head["pooling"] == ("class_token" if is_ast else "mean")


def make_bundle(
    run_folder: str | Path,
    target: str | Path,
    repo: str,
    adapter_only: bool = False,
    license_id: str = "apache-2.0",
) -> Path:
    """Collects the files of a model repository, and nothing else.

    Args:
        run_folder: a finished ``hb-ssl train`` run (or a model folder with a ``metrics.json``).
        target: new folder.
        repo: ``org/name``, for the card.
        adapter_only: leave the merged model out; the base is downloaded when it is loaded.
        license_id: the Hub's name of the licence.

    Raises:
        UserError: the run is not finished, or has no adapter that could stand alone.
    """
    run_folder, target = Path(run_folder), Path(target)
    source = run_folder / "model" if (run_folder / "model").is_dir() else run_folder
    missing = [name for name in MODEL_FILES if not (source / name).is_file()]
    if missing or not (run_folder / METRICS_FILE).is_file():
        raise UserError(
            f"{run_folder}: has no {', '.join(missing) or METRICS_FILE}; expected the folder of a "
            "finished `hb-ssl train` run"
        )
    about = read_json(source / PREPROCESSING_FILE)
    config = load_backbone_config(str(source))
    # An adapter on random weights is worth nothing: nobody else has those weights.
    has_adapter = (source / ADAPTER_WEIGHTS).is_file() and not about["random_weights"]
    if adapter_only:
        _check_adapter_stands_alone(run_folder, about, has_adapter)
    target.mkdir(parents=True)
    for name in MODEL_FILES:
        if not (adapter_only and name.endswith(".safetensors")):
            shutil.copyfile(source / name, target / name)
    content = read_json(source / "config.json")
    if is_stock_head(config):
        content["architectures"] = [family_of(config).stock_class.__name__]
    write_json_atomic(target / "config.json", content)
    if has_adapter:
        (target / ADAPTER_FOLDER).mkdir()
        shutil.copyfile(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS)
        adapter = read_json(source / ADAPTER_CONFIG)
        adapter["base_model_name_or_path"] = about["backbone"]  # not somebody's own folder
        write_json_atomic(target / ADAPTER_CONFIG, adapter)
    metrics = read_json(run_folder / METRICS_FILE)
    write_json_atomic(target / METRICS_FILE, metrics)
    split_file, config_file = run_folder / "splits.json", run_folder / "config.yaml"
    split = read_split(split_file) if split_file.is_file() else {}
    settings = read_yaml(config_file) if config_file.is_file() else {}
    card = model_card(
        repo, about, metrics,
        stock_head=is_stock_head(config), has_model=not adapter_only, has_adapter=has_adapter,
        license_id=license_id, split_sizes={part: len(ids) for part, ids in split.items()} or None,
        keeps_contradictions=settings.get("keep_contradictions", False),
        evaluation=evaluation_summary(run_folder),
    )  # fmt: skip
    write_text_atomic(target / CARD_FILE, card)
    return target


def _check_adapter_stands_alone(run_folder: Path, about: dict[str, Any], has_adapter: bool) -> None:
    backbone = about["backbone"]
    if about["random_weights"]:
        reason = "its base are random weights that nobody else has"
    elif not has_adapter:
        reason = f"the run trained no adapter (adaptation '{about['adaptation']}')"
    elif "/" not in backbone and backbone != "bundled":
        reason = f"its base is the local folder '{backbone}', which others can't download"
    else:
        return
    raise UserError(
        f"{run_folder}: an adapter alone is no use here: {reason}; push the whole model"
    )


def bundle_files(folder: Path) -> list[Path]:
    """The files of a bundle, relative and sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def push_run(
    run_folder: str | Path,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    adapter_only: bool = False,
    license_id: str = "apache-2.0",
) -> Pushed:
    """Uploads a finished run as a model repository, in one commit (see ``push_folder``).

    Args:
        run_folder: see ``make_bundle``.
        repo: ``org/name``; created if it does not exist.
        private: make a new repository private.
        revision: branch to commit to, created if it does not exist; by default ``main``.
        adapter_only: see ``make_bundle``.
        license_id: see ``make_bundle``.

    Raises:
        UserError: the run can't be pushed, no token is set, or the Hub refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_bundle(run_folder, Path(temporary) / "bundle", repo, adapter_only, license_id)
        return push_folder(
            folder,
            repo,
            "Upload a heart sound classifier with hb-ssl",
            _is_stale,
            private=private,
            revision=revision,
        )


def _is_stale(name: str) -> bool:
    """Weights of an earlier push; what people added themselves stays."""
    weights = name.endswith((".safetensors", ".safetensors.index.json", "adapter_config.json"))
    return weights and name.startswith((f"{ADAPTER_FOLDER}/", "model"))
