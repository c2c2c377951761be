"""The Space as programs see it: answers, bad files, many users at once."""

import base64
import csv
import html
import io
import json
import os
import pickle
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from hb_ssl.cli import run_command
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.inference import HeartSoundClassifier
from tests.conftest import REPOSITORY
from tests.integration.bad_audio import BAD, GOOD, Payload, make_files, two_hours
from tests.space_server import (
    LABELS,
    running_space,
    save_tiny_classifier,
    space_module,
    write_recordings,
)

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hb-ssl[space]'")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

UNSENDABLE = ("folder.wav", "pipe.wav", "socket.wav", "device.wav", "loop.wav", "dangling.wav",
              "absent.wav", "unreadable.wav", "y" * 300 + ".wav")  # fmt: skip
NEVER_SHOWN = ("Traceback", "/tmp", "site-packages", ".py")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def space(
    ast_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, HeartSoundClassifier]]:
    model = save_tiny_classifier(ast_folder, tmp_path_factory.mktemp("model") / "m")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n\nUAR 0.25 on nothing.\n")
    with running_space(model, tmp_path_factory.mktemp("examples")) as running:
        yield running


@pytest.fixture(scope="module")
def client(space: tuple[str, HeartSoundClassifier]) -> Client:
    return Client(space[0], verbose=False)


def classify(client: Client, path: Path) -> dict[str, Any]:
    return client.predict(handle_file(str(path)), api_name="/classify")


def test_the_api_gives_what_the_package_gives(
    client: Client, space: tuple[str, HeartSoundClassifier], recordings: dict[str, Path]
) -> None:
    answer = classify(client, recordings["heart"])
    expected = space[1].predict_one(recordings["heart"])
    assert answer["file"] == "heart.wav"
    assert answer["decision"] == expected.decision
    assert answer["calibrated"] is False
    for label in LABELS:
        assert answer["probabilities"][label] == pytest.approx(
            expected.probabilities[label], abs=2e-3
        )
    assert answer["heart_rate_bpm"] == pytest.approx(expected.heart_rate.bpm, abs=0.5)
    assert answer["signal_notes"] == []


def test_only_the_api_is_advertised(client: Client) -> None:
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(described) == ["/classify"]
    assert "heart rate" in described["/classify"]["description"]


def test_the_page_shows_verdict_pictures_and_explanation(
    client: Client, recordings: dict[str, Path]
) -> None:
    recording = handle_file(str(recordings["heart"]))
    verdict, pictures = client.predict(recording, api_name="/analyse")
    assert "not a diagnosis" in verdict
    assert "SYNTHETIC" in verdict
    assert "beats per minute" in verdict
    assert pictures.count('role="img"') == pictures.count("<svg") == 3
    explanation = client.predict(api_name="/explain")
    assert "Which seconds drove the verdict" in explanation
    ids = re.findall(r'\bid="([^"]+)"', pictures + explanation)
    assert len(ids) == len(set(ids))


def test_silence_is_inconclusive(client: Client, recordings: dict[str, Path]) -> None:
    answer = classify(client, recordings["silence"])
    assert answer["decision"] == "inconclusive"
    assert [note["code"] for note in answer["signal_notes"]] == ["silence"]
    verdict, _ = client.predict(handle_file(str(recordings["silence"])), api_name="/analyse")
    assert "Inconclusive, please re-record" in verdict


@pytest.mark.parametrize(
    ("name", "reason"),
    [("text", "can't be read as audio"), ("empty", "0 bytes"), ("too_long", "40 minutes")],
)
def test_bad_files_are_explained(
    client: Client, recordings: dict[str, Path], name: str, reason: str
) -> None:
    verdict, pictures = client.predict(handle_file(str(recordings[name])), api_name="/analyse")
    assert reason.replace("'", "&#x27;") in verdict
    assert 'role="alert"' in verdict
    assert pictures == ""
    assert client.predict(api_name="/explain") == ""
    with pytest.raises(AppError) as caught:
        classify(client, recordings[name])
    for shown in (verdict, str(caught.value)):
        assert f"{name}.wav" in shown
        assert not any(word in shown for word in NEVER_SHOWN)


# What a browser can send: no folder, pipe, socket or link that leads nowhere.
SENT = [name for name, (make, _) in BAD.items() if "/" not in name and "\n" not in name]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of ``bad_audio``, and a recording of two hours."""
    folder = tmp_path_factory.mktemp("table")
    make_files(folder)
    two_hours(folder / "two-hours.wav")
    return folder


@pytest.mark.parametrize("name", GOOD)
def test_every_usable_file_is_classified(client: Client, table: Path, name: str) -> None:
    answer = classify(client, table / name)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert answer["duration_seconds"] > 0 or name.startswith("samples-")


@pytest.mark.parametrize("name", [*SENT, "two-hours.wav"])
def test_every_unusable_file_is_one_clear_line(client: Client, table: Path, name: str) -> None:
    path = table / name
    try:
        sendable = path.is_file() and os.access(path, os.R_OK) and path.open("rb").close() is None
    except OSError:
        sendable = False
    if not sendable:
        assert name in UNSENDABLE
        return
    expected = BAD[name][1] if name in BAD else "lasts 120 minutes; at most"
    with pytest.raises(AppError) as caught:
        classify(client, path)
    said = html.unescape(str(caught.value))
    assert expected in said
    assert said.count("\n") == 0
    assert not any(word in said for word in NEVER_SHOWN)


@pytest.mark.parametrize("kind", ["pickle", "base", "labels", "absent", "half", "no-files"])
def test_a_bad_model_stops_the_space_in_one_line(
    kind: str, ast_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = save_tiny_classifier(ast_folder, tmp_path / "m")
    weights, about = model / "model.safetensors", model / "preprocessing.json"
    if kind == "pickle":
        proof = tmp_path / "proof"
        weights.unlink()
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(proof)))
    elif kind == "base":
        weights.unlink()
        (model / "adapter").mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "nowhere")}
        (model / "adapter/adapter_config.json").write_text(json.dumps(config))
        (model / "adapter/adapter_model.safetensors").write_bytes(b"half")
    elif kind == "labels":
        write_json_atomic(about, {**read_json(about), "labels": ["cough"]})
    elif kind == "half":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "no-files":
        about.unlink()
    monkeypatch.setenv("HB_SSL_MODEL", str(model if kind != "absent" else tmp_path / "absent"))
    monkeypatch.setattr(space_module(), "launch_app", lambda *_: pytest.fail("it was started"))
    assert run_command(space_module().main) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in said].count(True) == 1
    assert said[-1].startswith("error: ")
    assert not (tmp_path / "proof").exists()


def test_no_recording_is_explained(client: Client) -> None:
    verdict, _ = client.predict(None, api_name="/analyse")
    assert "upload or record one first" in verdict
    assert "choose some files first" in client.predict(None, api_name="/batch")


def test_half_an_hour(client: Client, recordings: dict[str, Path]) -> None:
    assert classify(client, recordings["half_hour"])["duration_seconds"] == 1800
    verdict, pictures = client.predict(
        handle_file(str(recordings["half_hour"])), api_name="/analyse"
    )
    assert "1800.0 s" in verdict
    assert "The first 30 seconds are shown" in pictures
    assert len(pictures) < 1_000_000
    explanation = client.predict(api_name="/explain")
    assert "up to 60 seconds" in explanation


def test_batch_gives_a_table_and_a_csv(
    client: Client, recordings: dict[str, Path], tmp_path: Path
) -> None:
    formula = tmp_path / "=1+1.wav"
    formula.write_bytes(recordings["heart"].read_bytes())
    files = [recordings["heart"], recordings["text"], recordings["silence"], formula]
    table = client.predict([handle_file(str(f)) for f in files], api_name="/batch")
    assert "4 recordings, 1 could not be read" in table
    data = re.search(r'href="data:text/csv;base64,([^"]+)"', table)
    assert data is not None
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(data[1]).decode())))
    assert [row["file"] for row in rows[:3]] == ["heart.wav", "text.wav", "silence.wav"]
    assert not rows[3]["file"].startswith("=")
    assert [bool(row["error"]) for row in rows] == [False, True, False, False]
    assert rows[2]["decision"] == "inconclusive"
    assert sum(float(rows[0][f"prob_{label}"]) for label in LABELS) == pytest.approx(1, abs=1e-3)
    assert not any(word in table for word in ("Traceback", "/tmp"))


def test_too_many_files_are_refused(client: Client, recordings: dict[str, Path]) -> None:
    files = [handle_file(str(recordings["short"]))] * 51
    assert "51 files: at most 50" in client.predict(files, api_name="/batch")


def test_twenty_users_at_once_are_all_answered(
    space: tuple[str, HeartSoundClassifier], recordings: dict[str, Path]
) -> None:
    def visit(number: int) -> dict[str, Any]:
        name = ("heart", "silence")[number % 2]
        return classify(Client(space[0], verbose=False), recordings[name])

    with ThreadPoolExecutor(20) as users:
        answers = list(users.map(visit, range(20)))
    assert [a["file"] for a in answers] == ["heart.wav", "silence.wav"] * 10
    assert all(a == answers[0] for a in answers[::2])


def test_huge_uploads_are_refused(client: Client, tmp_path: Path) -> None:
    huge = tmp_path / "huge.wav"
    with huge.open("wb") as file:
        file.truncate(101 * 1024 * 1024)
    with pytest.raises(Exception, match="(?i)size|large|413") as caught:
        classify(client, huge)
    assert "Traceback" not in str(caught.value)


def test_one_visitor_can_not_take_all(
    ast_folder: Path, recordings: dict[str, Path], tmp_path: Path
) -> None:
    model = save_tiny_classifier(ast_folder, tmp_path / "m")
    (tmp_path / "examples").mkdir()
    with running_space(model, tmp_path / "examples", requests_per_minute=6) as (url, _):
        client = Client(url, verbose=False)
        assert classify(client, recordings["heart"])["file"] == "heart.wav"
        with pytest.raises(Exception, match="(?i)429|too many requests") as caught:
            for _ in range(3):
                classify(client, recordings["heart"])
        assert "Traceback" not in str(caught.value)
        refused = httpx.post(f"{url}gradio_api/queue/join", json={"fn_index": 0, "data": []})
        assert refused.status_code == 429
        assert "Too many requests: please try again in" in refused.json()["detail"]
        assert 0 < int(refused.headers["retry-after"]) <= 10
        assert httpx.get(url).status_code == 200  # the page itself is always there
        unsized = httpx.post(f"{url}gradio_api/upload", content=iter([b"x"]))
        assert unsized.status_code == 411


def test_nothing_is_recorded(client: Client) -> None:
    config = client.config
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    page = str(config["components"])
    # The card of the model that runs, and no other number.
    assert "UAR 0.25 on nothing." in page
    assert "license: mit" not in page


def test_uploads_are_deleted(
    space: tuple[str, HeartSoundClassifier],
    recordings: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = space_module()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(module, "DELETE_AFTER_SECONDS", 2)
    (tmp_path / "examples").mkdir()
    app = module.build_app(space[1], None, tmp_path / "examples")
    _, url, _ = module.launch_app(app, prevent_thread_lock=True, quiet=True)
    try:
        assert classify(Client(url, verbose=False), recordings["heart"])["file"] == "heart.wav"
        deadline = time.monotonic() + 30
        while left := list(tmp_path.glob("uploads/**/heart.wav")):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    finally:
        app.close(verbose=False)


def test_front_matter_and_pins_agree() -> None:
    pins = dict(
        line.lower().split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    _, front, _ = (REPOSITORY / "space" / "README.md").read_text().split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["sdk"] == "gradio"
    assert meta["sdk_version"] == pins["gradio"]
    assert (REPOSITORY / "space" / meta["app_file"]).is_file()
    for line in (REPOSITORY / "space" / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.lower().split("==")
            assert pins[name] == version, line
