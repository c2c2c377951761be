"""Make docs/space.png: the Space's answer to a simulated recording, as the README shows it.

    python scripts/screenshot_space.py            the bundled classifier, or $HB_SSL_MODEL

Needs `pip install 'hb-ssl[dev]'` and Chromium with its driver.
"""

import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # for the tests' browser helpers

from hb_ssl.cli import run_command  # noqa: E402
from hb_ssl.errors import UserError  # noqa: E402
from hb_ssl.inference import locate_classifier  # noqa: E402
from tests.browser import browse, find_chromium  # noqa: E402
from tests.space_server import running_space  # noqa: E402

PICTURE = REPOSITORY / "docs" / "space.png"
WIDTH = 1000  # pixels


def main() -> None:
    if find_chromium() is None:
        raise UserError("chromium and chromedriver: not found; install them, e.g. with apt-get")
    model = locate_classifier(os.environ.get("HB_SSL_MODEL") or None)
    PICTURE.parent.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as examples,
        tempfile.TemporaryDirectory() as profile,
        running_space(model, Path(examples)) as (url, _),
        browse(url, Path(profile), WIDTH) as page,
    ):
        page.button("Synthetic murmur").click()
        page.wait(lambda: page.all("#explanation svg"))
        page.driver.execute_script("document.activeElement.blur()")
        page.screenshot(PICTURE)
    print(f"written to {PICTURE.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
