"""Tiny random backbones of every family, a small synthetic task, and one run on both."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

from hb_ssl import cli
from hb_ssl.data.synthetic_dataset import write_synthetic_dataset

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONVOLUTIONS = {
    "conv_dim": [8, 8],
    "conv_stride": [10, 4],
    "conv_kernel": [20, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}
FAMILY_NAMES = ("wav2vec2", "hubert", "data2vec-audio", "audio-spectrogram-transformer", "whisper")


def make_backbone(family: str, folder: Path) -> Path:
    """Saves a random backbone that takes 1 s windows, with its feature extractor."""
    torch.manual_seed(0)
    model: PreTrainedModel
    if family == "audio-spectrogram-transformer":
        config = ASTConfig(
            **SIZES, patch_size=8, frequency_stride=8, time_stride=8, max_length=98, num_mel_bins=16
        )
        model = ASTForAudioClassification(config)
        extractor = ASTFeatureExtractor(
            sampling_rate=2000, num_mel_bins=16, max_length=98, mean=-7.0, std=3.0
        )
    elif family == "whisper":
        model = WhisperForAudioClassification(
            WhisperConfig(
                d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
                decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=8,
                num_mel_bins=80, max_source_positions=50, classifier_proj_size=8, pad_token_id=0,
                bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            )
        )  # fmt: skip
        extractor = WhisperFeatureExtractor(chunk_length=1)
    else:
        makers = {
            "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, {"feat_extract_norm": "layer"}),
            "hubert": (HubertConfig, HubertModel, {"feat_extract_norm": "layer"}),
            "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel, {}),
        }
        config_class, model_class, extra = makers[family]
        model = model_class(config_class(**SIZES, **CONVOLUTIONS, **extra))
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=2000)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=FAMILY_NAMES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone of each supported family."""
    return make_backbone(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def wav2vec2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone("wav2vec2", tmp_path_factory.mktemp("wav2vec2"))


@pytest.fixture(scope="session")
def ast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone("audio-spectrogram-transformer", tmp_path_factory.mktemp("ast"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own for the commands of these tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("HB_SSL_CACHE")
    os.environ["HB_SSL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["HB_SSL_CACHE"]
    else:
        os.environ["HB_SSL_CACHE"] = before


@pytest.fixture(scope="session")
def recordings(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(tmp_path_factory.mktemp("data") / "pcg", 60, seed=1)


@pytest.fixture(scope="session")
def options(recordings: Path, wav2vec2_folder: Path) -> list[str]:
    return [
        "--source", str(recordings), "--backbone", str(wav2vec2_folder), "--window_seconds", "1",
        "--hop_seconds", "1", "--epochs", "3", "--windows_per_recording", "1", "--batch_size", "4",
        "--tracker", "none", "--early_stopping_patience", "0", "--pooling", "attentive",
        "--layer_weighted_sum",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "plain"
    assert cli.main(["train", *options, "--output_dir", str(folder)]) == 0
    return folder
