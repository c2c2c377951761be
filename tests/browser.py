"""Headless Chromium for tests and for the README's screenshot."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
    # A microphone that beeps, allowed without asking.
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
MAX_HEIGHT = 6000  # pixels of a screenshot

Found = TypeVar("Found")


def find_chromium() -> tuple[str, str] | None:
    """Browser and driver, or ``None`` where one is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Page:
    """A visitor's browser window."""

    def __init__(self, driver: webdriver.Chrome, width: int) -> None:
        self.driver, self.width = driver, width

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def button(self, words: str) -> WebElement:
        """The visible button whose text or label holds ``words``."""
        for button in self.all("button, a"):
            name = f"{button.text} {button.get_attribute('aria-label') or ''}"
            if words in name and button.is_displayed():
                return button
        raise LookupError(words)

    def wait(self, condition: Callable[[], Found], seconds: float = 60) -> Found:
        """The first true value of ``condition``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except (WebDriverException, LookupError):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(self.text("body")[:2000])
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        """The whole page, however long."""
        for _ in range(2):  # a taller window may lay the page out anew
            height = self.driver.execute_script("return document.documentElement.scrollHeight")
            _set_size(self.driver, self.width, min(int(height), MAX_HEIGHT))
            time.sleep(0.5)
        self.driver.save_screenshot(str(path))
        _set_size(self.driver, self.width, 900)

    def foreign_requests(self) -> set[str]:
        """Addresses outside of this machine that the page asked for since the last call."""
        messages = [
            json.loads(row["message"])["message"] for row in self.driver.get_log("performance")
        ]
        urls = {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }
        local = ("http://127.0.0.1", "http://localhost", "data:", "blob:", "chrome", "about:")
        return {url for url in urls if not url.startswith(local)}


@contextmanager
def browse(url: str, scratch: Path, width: int = 1280, dark: bool = False) -> Iterator[Page]:
    """Opens ``url`` in a fresh browser, as wide as a desktop's or a phone's.

    Args:
        url: where to go.
        scratch: an empty folder for the browser's profile.
        width: pixels; below 500 a phone.
        dark: the visitor prefers dark pages.
    """
    found = find_chromium()
    assert found is not None, "Chromium is missing"
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={scratch}", f"--window-size={width},900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        _set_size(driver, width, 900)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(url)
        page = Page(driver, width)
        page.wait(lambda: page.one("#classify").is_displayed())
        yield page
    finally:
        driver.quit()


def _set_size(driver: webdriver.Chrome, width: int, height: int) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
