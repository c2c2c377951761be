"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# Tests never reach the network; set before any Hugging Face library is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parents[1]


def shared_folder(variable: str, *parts: str) -> Path:
    """The folder that ``variable`` names, else ``../shared/<parts>``; skips when absent."""
    folder = Path(os.environ.get(variable) or REPOSITORY.parent.joinpath("shared", *parts))
    if not folder.is_dir():
        pytest.skip(f"{variable} is not set and {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def pascal_dir() -> Path:
    """The real PASCAL recordings (Kaggle layout)."""
    return shared_folder("HB_SSL_PASCAL_DIR", "data", "pascal")


@pytest.fixture(scope="session")
def whisper_dir() -> Path:
    """Real pretrained Whisper-tiny encoder weights."""
    return shared_folder("HB_SSL_WHISPER_DIR", "weights", "whisper-tiny-en-encoder-10s")
