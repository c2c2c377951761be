"""Folders with zips, unsafe zips, downloads from a loopback server, the Hub round trip."""

import http.server
import io
import json
import stat
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from hb_ssl.data import archives, hub_dataset, sources
from hb_ssl.data.archives import safe_extract_zip
from hb_ssl.data.hub_dataset import export_dataset, import_dataset, push_dataset
from hb_ssl.data.pascal import list_recordings
from hb_ssl.data.sources import CHALLENGE_ZIPS, download_challenge, download_zip, resolve_source
from hb_ssl.errors import UserError

CONTENTS = {
    "Atraining_artifact.zip": "Atraining_artifact/201012172012.wav",
    "Atraining_extrahs.zip": "Atraining_extrahls/201101091153.wav",
    "Atraining_murmur.zip": "Atraining_murmur/201101051104.wav",
    "Atraining_normal.zip": "Atraining_normal/201101070538.wav",
    "Aunlabelledtest.zip": "Aunlabelledtest/201012172010.wav",
    "Btraining_extrasystole.zip": "Btraining_extrastole/127_1306764300147_C2.wav",
    "Btraining_murmur.zip": "Btraining_murmur/Btraining_noisymurmur/162_1307101835989_D.wav",
    "Btraining_normal.zip": "Training B Normal/103_1305031931979_D1.wav",
    "Bunlabelledtest.zip": "Bunlabelledtest/101_1305030823364_F.wav",
}
IDS = [
    "a/Aunlabelledtest__201012172010",
    "a/artifact__201012172012",
    "a/extrahls__201101091153",
    "a/murmur__201101051104",
    "a/normal__201101070538",
    "b/Bunlabelledtest__101_1305030823364_F",
    "b/extrastole__127_1306764300147_C2",
    "b/murmur_noisymurmur_162_1307101835989_D",
    "b/normal__103_1305031931979_D1",
]


def wav_bytes(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 400)
    sf.write(buffer, noise, 4000, subtype="PCM_16", format="WAV")
    return buffer.getvalue()


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_challenge_zips(folder: Path) -> Path:
    for seed, (name, inside) in enumerate(CONTENTS.items()):
        junk = {"__MACOSX/" + inside: b"mac", "Atraining_normal/.DS_Store": b"mac"}
        make_zip(folder / name, {inside: wav_bytes(seed), **junk})
    return folder


def ids_of(folder: Path) -> list[str]:
    return [recording.recording_id for recording in list_recordings(folder).recordings]


# Zips


def test_a_folder_of_zips_is_extracted_to_the_cache_once(tmp_path):
    zips = make_challenge_zips(tmp_path / "zips")
    folder = resolve_source(str(zips), tmp_path / "cache")
    assert ids_of(folder) == IDS
    assert tmp_path / "cache" in folder.parents
    stamp = folder.stat().st_mtime_ns
    assert resolve_source(str(zips), tmp_path / "cache") == folder
    assert folder.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in zips.iterdir()) == sorted(CONTENTS)  # source untouched
    assert not list(tmp_path.rglob("*__MACOSX*"))
    assert not list((tmp_path / "cache").rglob(".*"))  # no temporary folder left


def test_zips_of_one_name_in_two_folders_are_both_read(tmp_path):
    for number, name in enumerate(
        ("set_a/normal__201101070538.wav", "set_b/normal__103_1305031931979_D1.wav")
    ):
        (tmp_path / "zips" / str(number)).mkdir(parents=True)
        make_zip(tmp_path / "zips" / str(number) / "archive.zip", {name: wav_bytes(number)})
    assert len(ids_of(resolve_source(str(tmp_path / "zips"), tmp_path / "cache"))) == 2


def test_kaggles_single_zip_with_csv(tmp_path):
    archive = make_zip(
        tmp_path / "archive.zip",
        {
            "set_a/normal__201101070538.wav": wav_bytes(0),
            "set_a.csv": b"dataset,fname,label,sublabel\na,normal__201101070538.wav,murmur,\n",
        },
    )
    found = list_recordings(resolve_source(str(archive), tmp_path / "cache"))
    assert len(found.recordings) == 1
    assert any("is murmur in the csv" in problem for problem in found.problems)


def test_a_plain_folder_is_itself_and_needs_no_cache(tmp_path):
    (tmp_path / "data").mkdir()
    assert resolve_source(str(tmp_path / "data"), tmp_path / "cache") == tmp_path / "data"
    assert not (tmp_path / "cache").exists()


def test_zips_beside_their_extracted_files(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"Atraining_normal/201101070538.wav": wav_bytes(0)})
    loose = tmp_path / "Atraining_normal" / "201101070538.wav"
    loose.parent.mkdir()
    loose.write_bytes(wav_bytes(0))
    assert resolve_source(str(tmp_path), tmp_path / "cache") == tmp_path
    make_zip(archive, {"Atraining_normal/201101070539.wav": wav_bytes(1)})
    with pytest.raises(UserError, match="1 of its 1 recordings are not among"):
        resolve_source(str(tmp_path), tmp_path / "cache")


def test_unknown_source():
    with pytest.raises(UserError, match="no such folder; expected a folder, 'kaggle'"):
        resolve_source("kagle")


@pytest.mark.parametrize(
    "name",
    ["../evil.wav", "/etc/evil.wav", "a/../../evil.wav", "..\\evil.wav", "C:\\evil.wav"],
)
def test_members_that_leave_the_folder_are_refused(tmp_path, name):
    archive = make_zip(tmp_path / "in" / "x.zip", {"ok.wav": b"1", name: b"2"})
    with pytest.raises(UserError, match="leaves the folder"):
        safe_extract_zip(archive, tmp_path / "out" / "x")
    assert not list(tmp_path.rglob("*.wav"))


def test_links_encryption_and_repeats_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a device"):
        safe_extract_zip(tmp_path / "link.zip", tmp_path / "out")

    plain = bytearray(make_zip(tmp_path / "secret.zip", {"a.wav": b"1" * 50}).read_bytes())
    plain[plain.index(b"PK\x01\x02") + 8] |= 1  # flag bit 0 in the central directory
    (tmp_path / "secret.zip").write_bytes(plain)
    with pytest.raises(UserError, match="is encrypted"):
        safe_extract_zip(tmp_path / "secret.zip", tmp_path / "out")

    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.wav", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.wav", b"2")
    with pytest.raises(UserError, match="is there twice"):
        safe_extract_zip(tmp_path / "twice.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    bomb = make_zip(tmp_path / "bomb.zip", {"zeros.wav": bytes(20 * 1024**2)})
    with pytest.raises(UserError, match="times its size"):
        safe_extract_zip(bomb, tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(UserError, match="at most 1000 is accepted"):
        safe_extract_zip(bomb, tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    many = make_zip(tmp_path / "many.zip", {f"{i}.wav": b"" for i in range(3)})
    with pytest.raises(UserError, match="holds 3 members"):
        safe_extract_zip(many, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 10, 300, -30])
def test_truncated_zip_is_one_clear_line(tmp_path, keep):
    archive = make_zip(tmp_path / "x.zip", {"a.wav": wav_bytes(0)})
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x\.zip: not a whole zip file") as caught:
        safe_extract_zip(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_zip_of_a_later_version_is_refused(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a.wav": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 200  # version needed to extract: 20.0
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"not a whole zip file \(zip file version 20.0\)"):
        safe_extract_zip(archive, tmp_path / "out")


def test_damaged_member_leaves_nothing_behind(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a.wav": b"1", "b.wav": wav_bytes(0)})
    content = bytearray(archive.read_bytes())
    content[content.index(b"b.wav") + 100] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match="not a whole zip file"):
        safe_extract_zip(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


# Downloads


class Server:
    """A loopback server whose replies a test can change; remembers what was asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[str] = []
        self.replies: dict[str, list[str]] = {}  # file name -> what to do, one a request
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.reply(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def reply(self, handler) -> None:
        name = handler.path.lstrip("/")
        self.asked.append(name)
        what = self.replies[name].pop(0) if self.replies.get(name) else "whole"
        path = self.folder / name
        if what == "whole" and not path.is_file():
            handler.send_error(404)
            return
        if what == "busy":
            handler.send_error(503)
            return
        body = b"<html>gone</html>" if what == "page" else path.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html" if what == "page" else "application/zip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:-100] if what == "truncated" else body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 5.0)
    running = Server(make_challenge_zips(tmp_path / "server"))
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_challenge_download_then_nothing_is_fetched_again(server, tmp_path):
    folder = download_challenge(tmp_path / "cache", server.url)
    assert ids_of(folder) == IDS
    assert server.asked == [names[0] for names in CHALLENGE_ZIPS]
    server.asked.clear()
    assert download_challenge(tmp_path / "cache", server.url) == folder
    assert server.asked == []
    zips = tmp_path / "cache" / "challenge" / "zips"
    assert sorted(p.name for p in zips.iterdir()) == sorted([*CONTENTS, "checksums.json"])


def test_a_stopped_download_goes_on_where_it_was(server, tmp_path):
    server.replies = {"Btraining_murmur.zip": ["page"]}
    with pytest.raises(UserError, match=r"Btraining_murmur\.zip: got text/html, expected a zip"):
        download_challenge(tmp_path / "cache", server.url)
    assert not list((tmp_path / "cache").rglob("*.part"))
    server.asked.clear()
    assert ids_of(download_challenge(tmp_path / "cache", server.url)) == IDS
    assert server.asked == ["Btraining_murmur.zip", "Btraining_normal.zip", "Bunlabelledtest.zip"]


def test_the_other_spelling_is_tried(server, tmp_path):
    (server.folder / "Atraining_extrahs.zip").rename(server.folder / "Atraining_extrahls.zip")
    assert ids_of(download_challenge(tmp_path / "cache", server.url)) == IDS
    server.asked.clear()
    download_challenge(tmp_path / "cache", server.url)
    assert server.asked == []


def test_a_changed_zip_is_noticed(server, tmp_path):
    download_challenge(tmp_path / "cache", server.url)
    zips = tmp_path / "cache" / "challenge" / "zips"
    make_zip(zips / "Atraining_normal.zip", {"Atraining_normal/201101070538.wav": b"other"})
    with pytest.raises(UserError, match=r"Atraining_normal\.zip: its SHA-256 .* delete the zip"):
        download_challenge(tmp_path / "cache", server.url)
    assert len(json.loads((zips / "checksums.json").read_text())) == len(CONTENTS)


def test_truncated_and_busy_replies_are_tried_again(server, tmp_path):
    name = "Atraining_normal.zip"
    server.replies = {name: ["truncated", "busy"]}
    path = download_zip(server.url + name, tmp_path / name)
    assert path.read_bytes() == (server.folder / name).read_bytes()
    assert server.asked == [name] * 3
    server.replies = {name: ["truncated"] * 3}
    with pytest.raises(UserError, match=r"failed 3 times .* of .* bytes"):
        download_zip(server.url + name, tmp_path / "again.zip")
    assert not list(tmp_path.glob("again*"))


def test_missing_file_is_not_tried_again(server, tmp_path):
    with pytest.raises(UserError, match=r"HTTP 404 .*download the zips in a browser"):
        download_zip(server.url + "nothing.zip", tmp_path / "nothing.zip")
    assert server.asked == ["nothing.zip"]


def test_size_cap(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ZIP_BYTES", 100)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        download_zip(server.url + "Atraining_normal.zip", tmp_path / "x.zip")
    assert not list(tmp_path.glob("x.zip*"))


def test_server_that_is_not_there(tmp_path, server):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UserError, match=r"failed 3 times .*check the network"):
        download_zip(server.url + "x.zip", tmp_path / "x.zip")


def test_kaggle(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # as if not installed
    with pytest.raises(UserError, match=r"pip install 'hb-ssl\[kaggle\]'"):
        resolve_source("kaggle", tmp_path)

    def offline(handle):
        raise ConnectionError("no route\nto host")

    fake = SimpleNamespace(dataset_download=offline)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    with pytest.raises(UserError, match=r"no route.*check the network, or download") as caught:
        resolve_source("kaggle", tmp_path)
    assert "\n" not in str(caught.value)

    asked = []
    fake.dataset_download = lambda handle: asked.append(handle) or str(tmp_path)
    assert resolve_source("kaggle", tmp_path) == tmp_path
    assert asked == ["kinguistics/heartbeat-sounds"]


# The Hub


def without_path(recordings):
    return [replace(recording, path="") for recording in recordings]


@pytest.fixture
def listed(tmp_path):
    zips = make_challenge_zips(tmp_path / "zips")
    return list_recordings(resolve_source(str(zips), tmp_path / "cache"))


def test_hub_round_trip_keeps_ids_bytes_and_facts(listed, tmp_path):
    exported = export_dataset(listed, tmp_path / "export")
    target = import_dataset(exported, tmp_path / "back")
    again = list_recordings(target)
    assert without_path(again.recordings) == without_path(listed.recordings)
    assert (target / "set_a" / "normal__201101070538.wav").is_file()
    assert not again.synthetic
    train = pq.read_table(exported / "data" / "train-00000-of-00001.parquet")
    test = pq.read_table(exported / "data" / "unlabelled-00000-of-00001.parquet")
    assert (train.num_rows, test.num_rows) == (7, 2)
    assert b'"_type": "Audio"' in train.schema.metadata[b"huggingface"]
    card = (exported / "README.md").read_text()
    for part in ("license: cc0-1.0", "Bentley, P.", "path: data/unlabelled-*.parquet"):
        assert part in card
    with pytest.raises(UserError, match="not an empty folder"):
        export_dataset(listed, exported)


def test_datasets_reads_the_export(listed, tmp_path):
    import datasets

    exported = export_dataset(listed, tmp_path / "export")
    found = datasets.load_dataset(str(exported), cache_dir=str(tmp_path / "hf"))
    assert {name: len(split) for name, split in found.items()} == {"train": 7, "unlabelled": 2}
    row = found["train"][0]
    content = row["audio"]["bytes"]
    assert content == Path(listed.recordings[1].path).read_bytes()
    assert (row["recording_id"], row["raw_label"]) == ("a/artifact__201012172012", "artifact")


def test_synthetic_stays_synthetic(listed, tmp_path):
    exported = export_dataset(replace(listed, synthetic=True), tmp_path / "export")
    assert "no person was recorded" in (exported / "README.md").read_text()
    assert "Bentley" not in (exported / "README.md").read_text()
    assert list_recordings(import_dataset(exported, tmp_path / "back")).synthetic


def test_hub_source(listed, tmp_path, monkeypatch):
    exported = export_dataset(listed, tmp_path / "commit123")
    asked = []

    def snapshot(repo_id, **kwargs):
        asked.append((repo_id, kwargs["repo_type"]))
        return str(exported)

    monkeypatch.setattr(hub_dataset, "snapshot_download", snapshot)
    folder = resolve_source("hub:me/heart", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "hub" / "me--heart" / "commit123"
    assert ids_of(folder) == IDS
    assert asked == [("me/heart", "dataset")]


def test_hub_failure_is_one_line(tmp_path, monkeypatch):
    def offline(repo_id, **kwargs):
        raise ConnectionError("offline\nmode")

    monkeypatch.setattr(hub_dataset, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"me/heart: the Hub can't be reached \(offline") as caught:
        resolve_source("hub:me/heart", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recording_id": "a/../../evil"}, "expected an id such as"),
        ({"recording_id": None}, "expected an id such as"),
        ({"content_hash": "0" * 64}, "fail their SHA-256"),
        ({"audio": {"bytes": b"x", "path": "evil.sh"}}, "a wav or aiff file"),
        ({"audio": None}, "a wav or aiff file"),
    ],
)
def test_a_hostile_parquet_writes_nothing(listed, tmp_path, changes, says):
    row = hub_dataset._to_row(listed.recordings[1]) | changes
    (tmp_path / "in").mkdir()
    table = pa.Table.from_pylist([row], schema=hub_dataset.FEATURES.arrow_schema)
    pq.write_table(table, tmp_path / "in" / "x.parquet")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=says):
        import_dataset(tmp_path / "in", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_other_parquet_files(tmp_path):
    with pytest.raises(UserError, match="holds no parquet file"):
        import_dataset(tmp_path, tmp_path / "out")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no column audio, content_hash, recording_id"):
        import_dataset(tmp_path, tmp_path / "out")
    columns = {"recording_id": [1], "content_hash": [2], "audio": ["x"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="columns have other types"):
        import_dataset(tmp_path, tmp_path / "out")
    row = {"recording_id": "a/caf\xe9", "audio": {"bytes": b"", "path": "x.wav"}}
    table = pa.Table.from_pylist([row], schema=hub_dataset.FEATURES.arrow_schema)
    pq.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    damaged = (tmp_path / "x.parquet").read_bytes().replace("caf\xe9".encode(), b"caf\xff\xff")
    (tmp_path / "x.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match="can't be unpacked") as caught:
        import_dataset(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(UserError, match=r"x\.parquet: can't be unpacked"):
        import_dataset(tmp_path, tmp_path / "out")


def test_push_needs_the_statement(listed, monkeypatch):
    monkeypatch.setattr(hub_dataset, "push_folder", lambda *args, **kwargs: pytest.fail("pushed"))
    with pytest.raises(UserError, match=r"nothing was uploaded; .*--i-may-share"):
        push_dataset(listed, "me/heart")


def test_a_recording_that_changed_is_not_exported(listed, tmp_path):
    Path(listed.recordings[0].path).write_bytes(wav_bytes(99))
    with pytest.raises(UserError, match="has changed since it was listed"):
        export_dataset(listed, tmp_path / "export")
