"""The wav2vec 2.0 objective: from scratch at 2 kHz, and continued from a 16 kHz checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
)

from hb_ssl.data.corpora import load_corpus
from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.errors import UserError
from hb_ssl.files import read_json
from hb_ssl.models.classifier import build_classifier
from hb_ssl.models.wav2vec2 import small_feature_extractor, small_wav2vec2_config
from hb_ssl.pretraining.checkpoint import read_checkpoint
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.inputs import WaveformInputs
from hb_ssl.pretraining.run import pretrain
from hb_ssl.pretraining.wav2vec2 import Wav2Vec2Pretraining
from hb_ssl.pretraining.windows import Batch
from tests.integration.conftest import CONVOLUTIONS, SIZES
from tests.integration.helpers import interrupt_pretraining
from tests.integration.test_pretraining import RATE, recordings, write_patients

__all__ = ["recordings"]  # the fixture

SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}


def settings(recordings: Path, output: Path, **changes) -> PretrainConfig:
    values = {
        "corpora": [str(recordings)], "output_dir": str(output), "objective": "wav2vec2",
        "held_out_fraction": 0.0, "window_seconds": 1.0, "steps": 4, "batch_pairs": 4,
        "log_steps": 1, "eval_steps": 2, "mixed_precision": "no", **SMALL,
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})


@pytest.fixture(autouse=True)
def any_precision() -> Iterator[None]:
    """accelerate refuses a second precision in one process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", params=["group", "layer"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 16 kHz wav2vec2 with its quantiser; `group` norm is that of wav2vec2-base."""
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **SIZES, **{**CONVOLUTIONS, "conv_stride": [20, 16], "conv_kernel": [40, 16]},
        feat_extract_norm=request.param, do_stable_layer_norm=request.param == "layer",
        num_codevectors_per_group=8, codevector_dim=8, proj_codevector_dim=8, num_negatives=5,
        mask_time_prob=0.05, layerdrop=0.1, attention_dropout=0.1, hidden_dropout=0.1,
    )  # fmt: skip
    Wav2Vec2ForPreTraining(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True).save_pretrained(folder)
    return folder


def test_the_small_model_makes_50_frames_a_second() -> None:
    config = small_wav2vec2_config(192, 4, 4)
    model = Wav2Vec2ForPreTraining(config)
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 8e6
    assert int(model._get_feat_extract_output_lengths(10 * RATE)) == pytest.approx(500, abs=1)


def test_frames_do_not_depend_on_the_rest_of_the_window() -> None:
    torch.manual_seed(0)
    encoder = Wav2Vec2ForPreTraining(small_wav2vec2_config(16, 2, 2)).wav2vec2.feature_extractor
    window = torch.randn(1, RATE)
    louder = torch.cat([window[:, : RATE // 2], 50 * window[:, RATE // 2 :]], dim=1)
    torch.testing.assert_close(encoder(window)[..., :24], encoder(louder)[..., :24])


def test_windows_are_normalised_as_by_the_stock_extractor(recordings: Path, tmp_path: Path) -> None:
    inputs = WaveformInputs(1.0, small_feature_extractor())
    corpus = load_corpus([recordings], RATE, tmp_path / "cache")
    windows = inputs.of_corpus(corpus, tmp_path)
    window = windows.window(2, 300, RATE)
    np.testing.assert_array_equal(window, corpus.waveform(2)[300 : 300 + RATE])
    stock = inputs.extractor(window, sampling_rate=RATE, return_tensors="pt").input_values
    torch.testing.assert_close(inputs.normalise(torch.from_numpy(window)[None]), stock)
    long = windows.window(0, 4000, 2 * RATE)  # a short recording is tiled
    np.testing.assert_array_equal(long[1000:], corpus.waveform(0)[: len(long) - 1000])


def test_every_weight_is_trained_and_draws_depend_on_the_generator_only() -> None:
    torch.manual_seed(0)
    model = Wav2Vec2Pretraining(Wav2Vec2ForPreTraining(small_wav2vec2_config(16, 2, 2)), 0.65)
    views = torch.randn(2, 3, RATE)
    batch = Batch(views, views[0], torch.tensor([-1, -1, -1]), progress=0.5)

    def parts(seed: int) -> dict[str, torch.Tensor]:
        return model(batch, torch.Generator().manual_seed(seed))

    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = parts(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert model.backbone.quantizer.temperature == pytest.approx(1.0)  # half way from 2 to 0.5
    torch.testing.assert_close(first["loss"], parts(1)["loss"], rtol=0, atol=0)
    assert first["loss"] != parts(2)["loss"]
    weight = model.backbone.config.diversity_loss_weight
    torch.testing.assert_close(first["loss"], first["contrastive"] + weight * first["diversity"])
    first["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_floating_point_operations_are_those_of_the_layers() -> None:
    config = small_wav2vec2_config(16, 2, 2)
    model = Wav2Vec2Pretraining(Wav2Vec2ForPreTraining(config), 0.65)
    counted = 0

    def count(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    encoder = model.backbone.wav2vec2
    for part in (encoder.feature_extractor, encoder.encoder.layers):
        for layer in part.modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv1d)):
                layer.register_forward_hook(count)
    encoder(torch.randn(1, RATE))
    assert model.flops_per_pair(RATE) == 2 * 6 * counted


def test_a_run_from_scratch_writes_a_backbone_for_everyone(
    recordings: Path, tmp_path: Path
) -> None:
    folder = pretrain(
        settings(recordings, tmp_path / "run", mixed_precision="bf16", peak_tflops=1.0)
    )
    model = AutoModel.from_pretrained(folder / "backbone")
    extractor = AutoFeatureExtractor.from_pretrained(folder / "backbone")
    assert type(model).__name__ == "Wav2Vec2Model"
    assert extractor.sampling_rate == RATE
    assert model.dtype == torch.float32
    saved = load_file(folder / "backbone" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[f"wav2vec2.{name}"].float()), name
    classifier = build_classifier(str(folder / "backbone"), ["no", "yes"]).eval()
    windows = FeatureMaker(extractor, 1.0)(np.random.default_rng(0).standard_normal((2, RATE)))
    with torch.no_grad():
        assert classifier(torch.from_numpy(windows)).logits.isfinite().all()
    last = read_json(folder / "history.json")[-1]
    assert {"train_contrastive", "train_diversity", "train_perplexity", "mfu"} < set(last)
    card = (folder / "backbone" / "README.md").read_text()
    assert "wav2vec 2.0" in card and "CirCor" not in card and "PASCAL" not in card


def test_training_lowers_the_loss_and_scores_held_out_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HB_SSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hb_ssl.pretraining.probe.NUM_FOLDS", 2)
    folder = write_patients(tmp_path / "beats", range(16))
    config = settings(
        folder, tmp_path / "run", held_out_fraction=0.5, steps=20, eval_steps=20, log_steps=5
    )
    history = read_json(pretrain(config) / "history.json")
    losses = [row["train_contrastive"] for row in history[1:]]
    assert losses[-1] < losses[0]
    assert history[-1]["validation_contrastive"] > 0
    for row in (history[0], history[-1]):
        assert 0 <= row["probe/circor_murmur/last"] <= 1


def test_a_resumed_run_equals_an_unbroken_one(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    # The checkpoint has dropout, so random numbers outside the batch count too.
    changes = {"backbone": str(checkpoint)}
    whole = pretrain(settings(recordings, tmp_path / "whole", **changes))
    interrupt_pretraining(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(recordings, tmp_path / "broken", **changes))
    resumed = pretrain(settings(recordings, tmp_path / "broken", resume=True, **changes))
    states = [read_checkpoint(folder) for folder in (whole, resumed)]
    assert states[0]["step"] == states[1]["step"] == 4
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], rtol=0, atol=0)


def test_a_checkpoint_goes_on_at_its_own_rate(
    recordings: Path, tmp_path: Path, checkpoint: Path
) -> None:
    folder = pretrain(
        settings(
            recordings, tmp_path / "run", backbone=str(checkpoint), steps=20, eval_steps=20,
            log_steps=5, learning_rate=0.01,
        )
    )  # fmt: skip
    backbone = folder / "backbone"
    losses = [row["train_loss"] for row in read_json(folder / "history.json")[1:]]
    assert losses[-1] < losses[0]
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, backbone))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if not name.endswith("k_proj.bias"):  # softmax takes no notice of it
            assert (tensor - after[name].float()).abs().max() > 0.003, name
    configs = [read_json(f / "config.json") for f in (checkpoint, backbone)]
    assert configs[0] == configs[1]
    extractors = [read_json(f / "preprocessor_config.json") for f in (checkpoint, backbone)]
    assert extractors[0] == extractors[1]
    assert extractors[0]["sampling_rate"] == 16_000
    AutoModel.from_pretrained(backbone)
    build_classifier(str(backbone), ["no", "yes"])
    # And once more from there, quantiser and all.
    again = pretrain(settings(recordings, tmp_path / "again", backbone=str(backbone), steps=1))
    assert (again / "backbone" / "model.safetensors").is_file()


def test_a_checkpoint_without_its_quantiser_says_so(
    recordings: Path, tmp_path: Path, wav2vec2_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(settings(recordings, tmp_path / "run", backbone=str(wav2vec2_folder), steps=1))
    assert "saved without its quantiser" in caplog.text and "RANDOM" in caplog.text


def test_bad_backbones(recordings: Path, tmp_path: Path, ast_folder: Path) -> None:
    for backbone, message in (
        (str(ast_folder), "is of type audio-spectrogram-transformer: objective wav2vec2 goes on"),
        (str(tmp_path / "nothing"), "no such folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            pretrain(settings(recordings, tmp_path / "run", backbone=backbone, overwrite=True))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "agreement", "backbone": "x/y"}, "log-mel objectives start from scratch"),
        ({"murmur_weight": 0.5}, "murmur_weight 0.5: objective wav2vec2"),
        ({"simulated_weight": 1.0}, "simulated_weight 1.0: objective wav2vec2"),
        ({"mask_fraction": 1.0}, "mask_fraction"),
    ],
)
def test_settings_that_would_be_ignored(
    recordings: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        settings(recordings, tmp_path, **changes)


def test_a_window_shorter_than_a_hidden_span(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make window_seconds longer"):
        pretrain(settings(recordings, tmp_path / "run", window_seconds=0.2))
