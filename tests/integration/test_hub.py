"""Push and pull through a Hub on loopback, with the real huggingface_hub client."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import yaml

from hb_ssl import cli
from hb_ssl.data.hub_dataset import download_hub_dataset, push_dataset
from hb_ssl.data.pascal import list_recordings
from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.hub import make_bundle, push_run
from hb_ssl.inference import HeartSoundClassifier, locate_classifier
from tests.hub_server import READER, WRITER, HubServer

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = {
    "README.md", "config.json", "metrics.json", "model.safetensors", "preprocessing.json",
    "preprocessor_config.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(wav2vec2_folder: Path) -> Iterator[HubServer]:
    """A Hub that already has a backbone, as other people's models are there."""
    server = HubServer()
    server.repos["models", "tiny/backbone"] = repo = _public_repo()
    files = {
        f.name: (f.read_bytes(), f.suffix == ".safetensors") for f in wav2vec2_folder.iterdir()
    }
    server.objects |= {_sha256(content): content for content, lfs in files.values() if lfs}
    repo.commit("main", files)
    yield server
    server.close()


def _public_repo():
    from tests.hub_server import Repo

    return Repo(private=False)


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def environment(server: HubServer, cache: Path, token: str | None = WRITER) -> dict[str, str]:
    """Of a fresh process that knows no Hub but ours."""
    variables = {
        **os.environ,
        "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HB_SSL_CACHE": str(cache / "hb_ssl"),
        "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip
    variables.pop("HF_HUB_CACHE", None)
    variables.pop("HF_TOKEN", None)
    return variables | ({"HF_TOKEN": token} if token else {})


def fresh_process(command: list[str], server: HubServer, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env=environment(server, cache), capture_output=True, text=True, timeout=300, cwd=cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_dataset(tmp_path_factory.mktemp("data") / "pcg", 60, seed=1)


@pytest.fixture(scope="module")
def run(server: HubServer, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose backbone came from the Hub."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    fresh_process(
        [str(REPOSITORY / "scripts/train.py"), "--source", str(recordings),
         "--backbone", "tiny/backbone", "--window_seconds", "1", "--hop_seconds", "1",
         "--epochs", "1", "--learning_rate", "0.05", "--windows_per_recording", "1",
         "--tracker", "none", "--output_dir", str(folder)],
        server, tmp_path_factory.mktemp("cache"),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pushed(server: HubServer, run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run as tiny/classifier and, its adapter alone, as tiny/adapter."""
    script = str(REPOSITORY / "scripts/push_to_hub.py")
    cache = tmp_path_factory.mktemp("cache")
    output = fresh_process([script, str(run), "--repo", "tiny/classifier"], server, cache)
    assert re.search(rf"{server.url}/tiny/classifier \(commit \w{{8}}\)", output)
    fresh_process([script, str(run), "--repo", "tiny/adapter", "--adapter-only"], server, cache)
    return "tiny/classifier"


@pytest.fixture
def online(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """This process talks to the Hub on loopback too, with a cache of its own and short waits."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    wait = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: wait(min(seconds, 0.01)))
    server.faults.clear()
    return server


def heads(server: HubServer, repo: str) -> dict[str, str]:
    return dict(server.repos["models", repo].branches)


# The round trip


def test_repository_holds_the_bundle_and_nothing_else(
    server: HubServer, pushed: str, run: Path
) -> None:
    files = server.files(pushed)
    assert set(files) - {".gitattributes"} == BUNDLE
    assert set(server.files("tiny/adapter")) - {".gitattributes"} == BUNDLE - {"model.safetensors"}
    assert files["model.safetensors"] == (run / "model/model.safetensors").read_bytes()
    home = str(run.parents[2])  # pytest's folder: nobody else should read of it
    for name, content in files.items():
        if not name.endswith(".safetensors"):
            assert home not in content.decode(), name
    config = json.loads(files["config.json"])
    assert config["architectures"] == ["Wav2Vec2ForSequenceClassification"]
    assert config["id2label"]["2"] == "murmur"
    adapter = json.loads(files["adapter/adapter_config.json"])
    assert adapter["base_model_name_or_path"] == "tiny/backbone"


PULL = """
import json, sys
import numpy as np
from hb_ssl.inference import HeartSoundClassifier
windows = np.random.default_rng(0).standard_normal((5, 2000)).astype("float32")
print(json.dumps([
    HeartSoundClassifier.from_pretrained(name).window_logits(windows).tolist()
    for name in sys.argv[1:]
]))
"""


def test_logits_are_equal_in_a_fresh_cache(
    server: HubServer, pushed: str, run: Path, tmp_path: Path
) -> None:
    output = fresh_process(["-c", PULL, str(run), pushed, "tiny/adapter"], server, tmp_path)
    local, merged, adapted = (np.array(logits) for logits in json.loads(output.splitlines()[-1]))
    assert np.ptp(local) > 0.01
    np.testing.assert_array_equal(merged, local)
    np.testing.assert_allclose(adapted, local, atol=1e-5)


STOCK = """
import json, sys
import soundfile
from transformers import AutoModelForAudioClassification, pipeline
repo, file = sys.argv[1:]
_, loading = AutoModelForAudioClassification.from_pretrained(repo, output_loading_info=True)
assert not any(loading.values()), loading
samples, rate = soundfile.read(file, dtype="float32")
answer = pipeline("audio-classification", model=repo)({"raw": samples, "sampling_rate": rate})
assert "hb_ssl" not in sys.modules
print(json.dumps(answer))
"""


def test_stock_pipeline_gives_the_same_answer(
    server: HubServer, pushed: str, run: Path, recordings: Path, tmp_path: Path
) -> None:
    long, rate = sf.read(next((recordings / "set_b").glob("murmur*.wav")))
    sf.write(tmp_path / "window.wav", long[:rate], rate)  # one window
    output = fresh_process(["-c", STOCK, pushed, str(tmp_path / "window.wav")], server, tmp_path)
    stock = {row["label"]: row["score"] for row in json.loads(output.splitlines()[-1])}
    ours = HeartSoundClassifier.from_pretrained(run).predict_one(tmp_path / "window.wav")
    assert len(ours.window_start_seconds) == 1
    assert max(stock, key=stock.__getitem__) == ours.label
    for label, probability in ours.probabilities.items():
        assert stock[label] == pytest.approx(probability, abs=1e-4)


def test_predict_command_pulls(
    server: HubServer, pushed: str, recordings: Path, tmp_path: Path
) -> None:
    file = next((recordings / "set_a").glob("*.wav"))
    command = ["-m", "hb_ssl.cli", "predict", str(file), "--model", pushed, "--json"]
    row = json.loads(fresh_process(command, server, tmp_path))
    assert row["prediction"] in ("artifact", "extrahls", "murmur", "normal")


# The card


def test_card_tells_the_truth_of_the_run(server: HubServer, pushed: str, run: Path) -> None:
    card = server.files(pushed)["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "audio-classification"
    assert metadata["base_model"] == "tiny/backbone"
    assert metadata["library_name"] == "transformers"
    assert metadata["datasets"] == ["hb-ssl-synthetic"]
    assert {"lora", "synthetic-data"} <= set(metadata["tags"])
    metrics = read_json(run / "metrics.json")
    results = {r["dataset"]["config"]: r for r in metadata["model-index"][0]["results"]}
    assert set(results) == set(metrics["recording"])
    for part, result in results.items():
        values = {m["type"]: m["value"] for m in result["metrics"]}
        scores = metrics["recording"][part]
        assert values["accuracy"] == pytest.approx(scores["recording_accuracy"], abs=1e-4)
        assert values["recall"] == pytest.approx(scores["recording_uar"], abs=1e-4)
    for text in (
        "not a diagnosis", "SYNTHETIC", "Bentley", 'from_pretrained("tiny/classifier")',
        "| overall |", "| murmur |", "stand on one side of the split",
    ):  # fmt: skip
        assert text in card
    assert "RANDOM" not in card
    assert "PASCAL Classifying Heart Sounds Challenge 2011 (source" not in card


def test_card_names_random_weights_and_foreign_heads(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "run" / "model"
    about = read_json(model / "preprocessing.json")
    write_json_atomic(model / "preprocessing.json", {**about, "random_weights": True})
    config = read_json(model / "config.json")
    config["heart_sound_head"]["pooling"] = "attentive"
    write_json_atomic(model / "config.json", config)
    bundle = make_bundle(tmp_path / "run", tmp_path / "bundle", "tiny/x")
    card = (bundle / "README.md").read_text()
    assert "RANDOM weights" in card
    assert "Load it with hb-ssl only" in card
    assert "library_name: hb-ssl" in card
    assert not (bundle / "adapter").exists()  # its base would be nobody's
    with pytest.raises(UserError, match="random weights that nobody else has"):
        make_bundle(tmp_path / "run", tmp_path / "other", "tiny/x", adapter_only=True)


def test_card_shows_the_full_evaluation(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    about = read_json(tmp_path / "run/model/preprocessing.json")
    calibration = {"temperature": 1.3, "bias": [0.0] * 4, "abstain_below": 0.62, "risk": 0.1}
    about["calibration"] = calibration
    write_json_atomic(tmp_path / "run/model/preprocessing.json", about)
    full = {
        "calibration": {"before": {"ece": {"value": 0.123}}, "after": {"ece": {"value": 0.045}}},
        "selective": {
            "uar_all": {"value": 0.7},
            "stated_risk": {
                "risk": {"value": 0.19}, "coverage": {"value": 0.81}, "uar": {"value": 0.777},
            },
        },
        "device": {"share": {"sentence": "The device alone explains half."}},
    }  # fmt: skip
    write_json_atomic(tmp_path / "run/full_evaluation.json", full)
    bundle = make_bundle(tmp_path / "run", tmp_path / "bundle", "tiny/x")
    card = (bundle / "README.md").read_text()
    assert "0.123 before and 0.045 after calibration" in card
    assert "answers 81% of the recordings" in card and "19% of the answers are wrong" in card
    assert "UAR 0.777 on those answered, 0.700 on all" in card
    assert "The device alone explains half." in card
    assert "below 0.62 the decision is `inconclusive`" in card
    assert "not calibrated" not in card
    assert "gate AUROC" not in card


def test_dry_run_shows_all_and_asks_nobody(
    run: Path, online: HubServer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    before = len(online.seen)
    assert cli.main(["push", str(run), "--repo", "tiny/classifier", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert len(online.seen) == before
    assert all(name in output for name in BUNDLE)
    assert "nothing was uploaded" in output
    assert "# classifier" in output


# What can go wrong


@pytest.mark.parametrize("action", [429, 500, 503, "cut"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("POST", "/api/validate-yaml"),
        ("POST", "/preupload/"),
        ("POST", "/lfs/objects/batch"),
        ("PUT", "/storage/upload/"),
        ("POST", "/commit/"),
    ],
)
def test_passing_trouble_is_tried_again(
    online: HubServer, run: Path, method: str, path: str, action: int | str
) -> None:
    repo = f"tiny/trouble-{action}-{re.sub('[^a-z]', '', path)}"
    kept = dict(online.objects)
    online.objects.clear()
    online.fail(method, path, action, times=2)
    done = push_run(run, repo)
    online.objects |= kept
    assert all(fault.times == 0 for fault in online.faults)
    assert set(online.files(repo)) - {".gitattributes"} == BUNDLE
    assert len(online.repos["models", repo].commits) == 2  # the empty one and ours
    assert done.commit == heads(online, repo)["main"]


def test_lost_answer_makes_no_second_commit(online: HubServer, run: Path) -> None:
    online.fail("POST", "/commit/", "cut after")
    done = push_run(run, "tiny/lost")
    assert len(online.repos["models", "tiny/lost"].commits) == 2
    assert done.commit == heads(online, "tiny/lost")["main"]


@pytest.mark.parametrize(("method", "path"), [("PUT", "/storage/upload/"), ("POST", "/commit/")])
def test_push_that_breaks_off_leaves_the_old_revision(
    online: HubServer, run: Path, tmp_path: Path, method: str, path: str
) -> None:
    repo = f"tiny/half-{method}".lower()
    push_run(run, repo)
    before, files = heads(online, repo), online.files(repo)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    weights = bytearray((other / "model/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model/model.safetensors").write_bytes(weights)
    online.fail(method, path, "cut", times=10**6)
    with pytest.raises(UserError, match=r"can't be reached .*try again"):
        push_run(other, repo)
    online.faults.clear()
    assert heads(online, repo) == before
    assert online.files(repo) == files
    push_run(other, repo)  # and the next try goes through
    assert online.files(repo)["model.safetensors"] == bytes(weights)
    assert online.files(repo) != files


def test_refusals_are_one_clear_line(
    online: HubServer, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def message(repo: str, folder: Path = run) -> str:
        assert cli.main(["push", str(folder), "--repo", repo]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert WRITER not in error
        return error

    assert "no right to do this (403); use a token with write access to 'other'" in message(
        "other/model"
    )
    assert "is not a repository name" in message("tiny/what is/this")
    assert "expected the folder of a finished" in message("tiny/model", tmp_path)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "no right to do this (403)" in message("tiny/classifier")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "refuses the token (401)" in message("tiny/new")
    monkeypatch.delenv("HF_TOKEN")
    before = len(online.seen)
    assert "hf auth login" in message("tiny/classifier")
    assert len(online.seen) == before


def test_pulls_that_fail_say_why(
    online: HubServer, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(repo: str, revision: str | None = None) -> str:
        with pytest.raises(UserError) as caught:
            locate_classifier(repo, revision)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such repository" in message("tiny/absent")
    assert "has no revision 'v9'" in message(pushed, "v9")
    assert "made by `hb-ssl push`" in message("tiny/backbone")
    assert "no such folder" in message("./absent")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "refuses the token (401)" in message(pushed)
    monkeypatch.delenv("HF_TOKEN")
    online.repos["models", "tiny/secret"] = _public_repo()
    online.repos["models", "tiny/secret"].private = True
    assert "no such repository, or your token may not see it" in message("tiny/secret")
    online.fail("GET", "/api/models/tiny/classifier", "cut", times=10**6)
    assert "can't be reached" in message(pushed)
    online.faults.clear()
    assert "hb_ssl" not in message("a/b/c")


@pytest.mark.parametrize(
    ("path", "action"),
    [("/storage/", "cut"), ("/api/models/", 503), ("/api/models/", "cut"), ("/resolve/", 429)],
)
def test_interrupted_download_is_tried_again(
    online: HubServer, pushed: str, path: str, action: int | str
) -> None:
    online.fail("HEAD" if path == "/resolve/" else "GET", path, action)
    folder = locate_classifier(pushed)
    assert (folder / "README.md").is_file()  # the Space shows it
    weights = online.files(pushed)["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_pulled_model_is_there_without_a_network(
    online: HubServer, pushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = locate_classifier(pushed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(online.seen)
    assert locate_classifier(pushed) == folder
    assert HeartSoundClassifier.from_pretrained(pushed).labels
    for repo, revision in (("tiny/adapter", None), (pushed, "v9")):
        with pytest.raises(UserError, match="can't be reached") as caught:
            locate_classifier(repo, revision)
        assert "\n" not in str(caught.value)
    assert len(online.seen) == before


# Revisions, replaced files, safety


def test_revisions_and_replaced_files(online: HubServer, run: Path, tmp_path: Path) -> None:
    push_run(run, "tiny/branches", private=True)
    assert online.repos["models", "tiny/branches"].private
    main = heads(online, "tiny/branches")["main"]
    full = tmp_path / "full"
    shutil.copytree(run, full)
    shutil.rmtree(full / "model" / "adapter")
    about = read_json(full / "model/preprocessing.json")
    write_json_atomic(full / "model/preprocessing.json", {**about, "adaptation": "full"})
    push_run(full, "tiny/branches", revision="v2")
    assert heads(online, "tiny/branches")["main"] == main
    assert "adapter/adapter_model.safetensors" in online.files("tiny/branches")
    assert not any(name.startswith("adapter") for name in online.files("tiny/branches", "v2"))
    first = locate_classifier("tiny/branches")
    second = locate_classifier("tiny/branches", "v2")
    assert read_json(first / "preprocessing.json")["adaptation"] == "lora"
    assert read_json(second / "preprocessing.json")["adaptation"] == "full"
    with pytest.raises(UserError, match="trained no adapter"):
        make_bundle(full, tmp_path / "x", "tiny/x", adapter_only=True)


def test_remote_code_and_pickles_are_never_run(
    online: HubServer, pushed: str, tmp_path: Path
) -> None:
    trap = tmp_path / "sprung"
    evil = f"open({str(trap)!r}, 'w')\n".encode()
    files = {name: (content, False) for name, content in online.files(pushed).items()}
    config = json.loads(files["config.json"][0])
    config |= {"auto_map": {"AutoConfig": "evil.Evil", "AutoFeatureExtractor": "evil.Evil"}}
    files["config.json"] = (json.dumps(config).encode(), False)
    extractor = json.loads(files["preprocessor_config.json"][0])
    extractor |= {"auto_map": {"AutoFeatureExtractor": "evil.Evil"}}
    files["preprocessor_config.json"] = (json.dumps(extractor).encode(), False)
    files["evil.py"] = (evil, False)
    online.repos["models", "tiny/evil"] = _public_repo()
    online.repos["models", "tiny/evil"].commit("main", files)
    classifier = HeartSoundClassifier.from_pretrained("tiny/evil")
    assert classifier.labels
    assert not trap.exists()
    extractor["feature_extractor_type"] = "Evil"
    broken = files | {"preprocessor_config.json": (json.dumps(extractor).encode(), False)}
    online.repos["models", "tiny/evil"].commit("main", broken)
    with pytest.raises(UserError, match="can't be loaded"):
        HeartSoundClassifier.from_pretrained("tiny/evil")
    weights = files.pop("model.safetensors")
    files.pop("adapter/adapter_model.safetensors")
    files["pytorch_model.bin"] = weights
    online.repos["models", "tiny/evil"].commit("main", files)
    with pytest.raises(UserError, match="weights can't be loaded"):
        HeartSoundClassifier.from_pretrained("tiny/evil")
    assert not trap.exists()
    assert online.count("GET", r"evil\.py|pytorch_model\.bin") == 0


def test_dataset_goes_to_the_hub_and_back(
    online: HubServer, recordings: Path, tmp_path: Path
) -> None:
    listed = list_recordings(recordings)
    online.fail("PUT", "/storage/upload/", "cut", times=2)
    online.fail("POST", "/commit/", 503)
    url = push_dataset(listed, "tiny/recordings", private=True, i_may_share=True)
    assert url == f"{online.url}/datasets/tiny/recordings"
    assert online.repos["datasets", "tiny/recordings"].private
    assert len(online.repos["datasets", "tiny/recordings"].commits) == 2
    assert set(online.files("tiny/recordings", kind="datasets")) - {".gitattributes"} == {
        "README.md", "SYNTHETIC.json",
        "data/train-00000-of-00001.parquet", "data/unlabelled-00000-of-00001.parquet",
    }  # fmt: skip
    folder = download_hub_dataset("tiny/recordings", tmp_path / "cache")
    assert {(r.recording_id, r.content_hash) for r in list_recordings(folder).recordings} == {
        (r.recording_id, r.content_hash) for r in listed.recordings
    }
    with pytest.raises(UserError, match="no such repository"):
        download_hub_dataset("tiny/absent", tmp_path / "cache")
