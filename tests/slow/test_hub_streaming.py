"""Pre-training on shards that lie on a Hub (a server on this machine): read, and never kept."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hb_ssl.data.shards import write_shards
from tests.hub_server import HubServer, Repo
from tests.integration.test_pretraining import write_patients

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_run_streams_from_the_hub(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "beats", range(16))
    write_shards([folder], tmp_path / "shards", 0.05, held_out_fraction=0.5)
    server = HubServer()
    repo = server.repos["datasets", "tiny/shards"] = Repo(private=False)
    files = {p.name: (p.read_bytes(), p.suffix == ".parquet") for p in tmp_path.glob("shards/*")}
    server.objects |= {hashlib.sha256(c).hexdigest(): c for c, lfs in files.values() if lfs}
    repo.commit("main", files)
    try:
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "scripts/pretrain.py"), "--corpora",
             "hub:tiny/shards", "--output_dir", str(tmp_path / "run"), "--steps", "3",
             "--batch_pairs", "4", "--pool_recordings", "8", "--window_seconds", "1",
             "--num_mel_bins", "8", "--hidden_size", "16", "--num_layers", "1", "--num_heads", "2",
             "--mixed_precision", "no"],
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1",
                 "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"),
                 "HB_SSL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(REPOSITORY),
                 "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
    finally:
        server.close()
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert (state["step"], len(state["readers"][0])) == (3, 2)
    assert "validation_loss" in state["history"][-1]
    kept = [p for f in ("hf", "cache") for p in (tmp_path / f).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in kept if "shards" in str(p)) < 10_000
    assert not [p for p in kept if p.suffix in (".parquet", ".arrow", ".npy")]
