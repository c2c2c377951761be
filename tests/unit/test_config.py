"""One configuration mechanism: YAML keys, flags and dataclass fields are the same thing."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hb_ssl.config import (
    CrossValidationConfig,
    DataConfig,
    ModelConfig,
    TrainConfig,
    parse_config,
    save_config,
)
from hb_ssl.errors import UserError
from hb_ssl.pretraining.config import PretrainConfig

TYPES = [DataConfig, ModelConfig, TrainConfig, CrossValidationConfig]
REPOSITORY = Path(__file__).resolve().parents[2]


RECIPES = sorted((REPOSITORY / "configs").glob("*.yaml"))
PRETRAINING = [p for p in RECIPES if p.stem.startswith(("pretrain_", "continue_"))]


@pytest.mark.parametrize("path", PRETRAINING, ids=lambda p: p.stem)
def test_every_pretraining_recipe_parses(path: Path) -> None:
    (config,) = parse_config([PretrainConfig], ["--config", str(path), "--corpora", "somewhere"])
    assert config.output_dir.startswith("runs/")
    assert f"scripts/pretrain.py --config configs/{path.name}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", [p for p in RECIPES if p not in PRETRAINING], ids=lambda p: p.stem)
def test_every_recipe_parses_and_names_its_launch_command(path: Path) -> None:
    _, model, training, _ = parse_config(TYPES, ["--config", str(path)])
    assert model.backbone == yaml.safe_load(path.read_text())["backbone"]
    assert training.output_dir.startswith("runs/")
    assert path.name in path.read_text().splitlines()[0]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_accelerate_config_loads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines >= 1
    assert path.name in path.read_text().splitlines()[0]
    if path.stem == "multi_node":
        assert config.num_machines > 1
        assert config.main_process_ip and config.main_process_port


def test_flags_override_yaml_and_saved_config_reads_back(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "epochs: 3\nlearning_rate: 5e-4\nlora_targets: [q_proj, v_proj]\nresume: true\n"
        "mixed_precision: no\nlayer_weighted_sum: false\n"
    )
    configs = parse_config(TYPES, ["--config", str(recipe), "--epochs", "7"])
    assert configs[2].epochs == 7
    assert configs[2].learning_rate == 5e-4
    assert configs[1].lora_targets == ["q_proj", "v_proj"]
    assert configs[2].resume is True
    assert configs[2].mixed_precision == "no"
    assert configs[1].layer_weighted_sum is False
    save_config(tmp_path / "config.yaml", *configs)
    again = parse_config(TYPES, [f"--config={tmp_path / 'config.yaml'}"])
    assert [dataclasses.asdict(c) for c in again] == [dataclasses.asdict(c) for c in configs]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "did you mean 'epochs'"),
        (["--epochs", "many"], "invalid float"),
        (["--label_mode", "both"], "invalid choice"),
        (["--hop_seconds", "9"], "longer than window_seconds"),
        (["--batch_size", "0"], "above 0"),
        (["--num_folds", "1"], "at least 2"),
        (["--lora_dropout", "1.5"], "share from 0"),
        (["--keep_fraction", "0"], "above 0, up to 1"),
        (["--config", "absent.yaml"], "no such config file"),
        (["--config"], "expected a YAML file"),
    ],
)
def test_bad_options_are_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_config(TYPES, argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["epoch: 3", "- a\n- b", "a: {b: c}", "epochs: [", "epochs: x"])
def test_bad_yaml_is_refused(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError):
        parse_config(TYPES, ["--config", str(recipe)])


def test_an_augmentation_that_would_be_ignored_is_refused() -> None:
    argv = ["--augment_spectrogram", "True", "--mixup_alpha", "0.2"]
    with pytest.raises(UserError, match="mixup_alpha 0.2 together with augment_spectrogram"):
        parse_config(TYPES, argv)
