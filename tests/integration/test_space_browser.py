"""The Space as visitors see it: headless Chromium at the widths of a desktop and a phone.

Screenshots go to ``$HB_SSL_SCREENSHOTS``, by default to pytest's temporary folder.
"""

import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hb-ssl[space]'")
pytest.importorskip("selenium", reason="selenium is not installed: pip install 'hb-ssl[dev]'")

from selenium.webdriver.common.keys import Keys

from hb_ssl.inference import Audio, HeartSoundClassifier, Prediction
from tests.browser import Page, browse, find_chromium
from tests.space_server import running_space, save_tiny_classifier, write_recordings

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None, reason="no chromium and chromedriver: apt-get install them"
    ),
]
VIEWS = {"desktop": (1280, False), "phone": (390, False), "phone_dark": (390, True)}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def url(ast_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = save_tiny_classifier(ast_folder, tmp_path_factory.mktemp("model") / "m")
    with running_space(model, tmp_path_factory.mktemp("examples")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("HB_SSL_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def upload(page: Page, *paths: Path, into: str = "#recording") -> None:
    chooser = page.wait(lambda: page.one(f"{into} input[type=file]"))
    chooser.send_keys("\n".join(map(str, paths)))
    names = [path.name for path in paths]
    if into == "#recording":
        page.wait(lambda: page.button("Clear"))
    else:
        page.wait(lambda: all(name.split(".")[0] in page.text(into) for name in names))


def no_traceback(page: Page) -> None:
    source = page.driver.page_source
    assert "Traceback" not in source
    assert "site-packages" not in source


@pytest.mark.parametrize("view", VIEWS)
def test_a_visit(
    view: str, url: str, recordings: dict[str, Path], shots: Path, tmp_path: Path
) -> None:
    width, dark = VIEWS[view]
    with browse(url, tmp_path, width, dark) as page:
        assert "not a diagnosis" in page.text("#banner")
        page.screenshot(shots / f"{view}_start.png")
        page.button("Synthetic normal").click()
        page.wait(lambda: "Which seconds" in page.text("#explanation"))
        assert "synthetic_normal.wav" in page.text("#verdict")
        page.screenshot(shots / f"{view}_example.png")
        # The warning stays in sight at the end of the page.
        page.driver.execute_script("window.scrollTo(0, document.documentElement.scrollHeight)")
        position = "return document.querySelector('.hb-banner').getBoundingClientRect().top"
        page.wait(lambda: 0 <= page.driver.execute_script(position) < 300)
        page.driver.execute_script("window.scrollTo(0, 0)")

        page.button("Clear").click()
        page.wait(lambda: page.text("#verdict") == "")
        upload(page, recordings["heart"])
        page.button("Classify").click()
        page.wait(lambda: "heart.wav" in page.text("#verdict"))
        page.wait(lambda: len(page.all("#pictures svg")) == 3)
        page.wait(lambda: page.all("#explanation svg"))

        page.button("Several recordings").click()
        page.wait(lambda: page.one("#classify-all").is_displayed())
        upload(page, recordings["heart"], recordings["text"], into="#recordings")
        page.one("#classify-all").click()
        page.wait(lambda: "2 recordings, 1 could not be read" in page.text("#table"))
        assert page.button("Download as CSV").get_attribute("download") == "heart-sounds.csv"
        page.screenshot(shots / f"{view}_batch.png")

        page.button("How it works").click()
        page.wait(lambda: "makes no diagnosis" in page.text("body"))
        page.screenshot(shots / f"{view}_about.png")
        no_traceback(page)
        assert page.foreign_requests() == set()
        # Nothing is wider than the screen.
        script = "return document.documentElement.scrollWidth"
        assert page.driver.execute_script(script) <= width


def test_bad_files_never_show_a_traceback(
    url: str, recordings: dict[str, Path], shots: Path, tmp_path: Path
) -> None:
    expected = {
        "text": "can't be read as audio",
        "empty": "0 bytes",
        "silence": "Inconclusive, please re-record",
        "half_hour": "1800.0 s",
        "short": "so there is little to hear",
    }
    with browse(url, tmp_path) as page:
        for name, words in expected.items():
            upload(page, recordings[name])
            page.button("Classify").click()
            page.wait(lambda words=words: words in page.text("#verdict"))
            no_traceback(page)
            page.screenshot(shots / f"bad_{name}.png")
            page.button("Clear").click()
            page.wait(lambda: page.text("#verdict") == "")


def test_microphone(url: str, shots: Path, tmp_path: Path) -> None:
    with browse(url, tmp_path) as page:
        page.button("Record audio").click()
        page.wait(lambda: page.button("Record")).click()
        page.wait(lambda: "0:03" in page.text("#recording"))
        page.wait(lambda: page.button("Stop")).click()
        page.wait(lambda: page.button("Clear"))
        page.button("Classify").click()
        page.wait(lambda: "Signal quality" in page.text("#verdict"))
        no_traceback(page)
        page.screenshot(shots / "microphone.png")


def test_keyboard_and_screen_reader(url: str, tmp_path: Path) -> None:
    with browse(url, tmp_path) as page:
        assert page.one("html").get_attribute("lang") == "en"
        assert page.one("#verdict").get_attribute("aria-live") == "polite"
        example = page.button("Synthetic murmur")
        page.driver.execute_script("arguments[0].focus()", example)
        page.driver.switch_to.active_element.send_keys(Keys.ENTER)
        page.wait(lambda: page.all("#explanation svg"))
        # Every control has a name, every picture a text, and no heading level is skipped.
        for control in page.all("button, input:not([type=hidden]), a[href]"):
            if control.is_displayed():
                assert control.accessible_name, control.get_attribute("outerHTML")
        for picture in page.all("[role=img]"):
            assert len(picture.get_attribute("aria-label") or "") > 20
        levels = [int(heading.tag_name[1]) for heading in page.all("h1, h2, h3, h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_an_answer_on_its_way_does_not_meet_a_new_recording(
    url: str, recordings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = HeartSoundClassifier.predict_one
    asked, let_go, answered = threading.Event(), threading.Event(), threading.Event()

    def held(self: HeartSoundClassifier, audio: Audio) -> Prediction:
        asked.set()
        assert let_go.wait(60)
        answer = classify(self, audio)
        answered.set()
        return answer

    monkeypatch.setattr(HeartSoundClassifier, "predict_one", held)
    with browse(url, tmp_path) as page:
        upload(page, recordings["heart"])
        page.button("Classify").click()
        assert asked.wait(60)
        page.wait(lambda: page.text("#verdict"))  # the seconds that it takes
        time.sleep(1)  # the page can cancel what the queue has told it the number of
        page.button("Clear").click()
        page.wait(lambda: not page.text("#verdict"))
        upload(page, recordings["short"])
        let_go.set()
        assert answered.wait(60)
        monkeypatch.undo()
        time.sleep(2)  # for an answer to arrive, if one does
        assert page.text("#verdict") == page.text("#explanation") == ""
        page.button("Classify").click()
        page.wait(lambda: "short.wav" in page.text("#verdict"))
        page.wait(lambda: page.all("#explanation svg"))
