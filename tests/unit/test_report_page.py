"""The report's page: text is text, wherever it comes from; and the numbers computed for it."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from hb_ssl.evaluation.calibration import reliability_bins
from hb_ssl.figures import log_mel, reliability_figure, training_figure
from hb_ssl.report_page import (
    Code,
    Collapsed,
    Columns,
    Heading,
    KeyNumbers,
    Picture,
    Table,
    Text,
    pictures_of,
    to_html,
    to_markdown,
)
from hb_ssl.report_run import worst_errors

HOSTILE = '<script>alert(1)</script> "quoted" & `code` | [link](http://x) **bold** $title </table>'
FIGURE = SimpleNamespace(svg="<svg><path/></svg>", png=b"")


def everywhere(text: str) -> list:
    """Every kind of block, with ``text`` in each of its places."""
    return [
        Heading(text),
        Text(text, "banner"),
        KeyNumbers([(text, text, text)]),
        Table(text, [text, text], [[text, f"1\n{text}"]], [[0.5]], class_rows=True),
        Code(text),
        Columns([[Text(text)], [Picture("p", text, FIGURE)]]),
        Collapsed(text, [Text(text), Picture("q", text, FIGURE)]),
    ]


def test_hostile_text_stays_text_in_html() -> None:
    page = to_html(HOSTILE, everywhere(HOSTILE))
    assert "<script" not in page
    assert page.count("</table>") == 1
    assert not re.search(r'aria-label="[^"]*<', page)
    assert "$title" in page  # not taken for a placeholder
    assert "default-src 'none'" in page


def test_hostile_text_stays_text_in_markdown() -> None:
    text = to_markdown(HOSTILE, everywhere(HOSTILE))
    outside_code = re.sub(r"```text\n.*?\n```", "", text, flags=re.DOTALL)
    outside_code = re.sub("<summary>.*</summary>", "", outside_code)  # HTML, and escaped as such
    assert "<script" not in outside_code
    assert not re.search(r"(?<!\\)\]\(http", outside_code)
    (row,) = [line for line in text.splitlines() if line.startswith("| &lt;") and "1 (" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3  # two cells


def test_code_is_fenced_by_more_ticks_than_it_holds() -> None:
    assert to_markdown("t", [Code("a\n````\nb")]).count("`````") == 2


def test_pictures_are_found_in_every_depth() -> None:
    assert [p.name for p in pictures_of(everywhere("x"))] == ["p", "q"]


def row(label: str, prediction: str, confidence: float, recording_id: str = "a/x") -> dict:
    other = "normal" if prediction == "murmur" else "murmur"
    return {"recording_id": recording_id, "label": label, "prediction": prediction,
            f"prob_{prediction}": confidence, f"prob_{other}": 1 - confidence}  # fmt: skip


def test_worst_errors_are_the_surest_one_per_recording() -> None:
    rows = [
        row("normal", "murmur", 0.6, "a/1"), row("normal", "murmur", 0.9, "a/1"),
        row("normal", "normal", 0.99, "a/1"), row("murmur", "normal", 0.8, "a/2"),
        row("murmur", "murmur", 1.0, "a/3"),
    ]  # fmt: skip
    worst = worst_errors(rows, 9)
    found = [(w["recording_id"], w["times_wrong"], w["times_tested"]) for w in worst]
    assert found == [("a/1", 2, 3), ("a/2", 1, 1)]
    assert worst_errors(rows, 1) == worst[:1]


def test_figures_hold_no_address_and_no_id_of_each_other() -> None:
    bins, _ = reliability_bins([row("murmur", "murmur", 0.7)], ["murmur", "normal"])
    history = [{"epoch": e, "loss": 1 / e} for e in (1, 2, 3)]
    curve = training_figure("loss $x$", [history], {"loss": "<b>"}, "loss & $y$")
    assert curve is not None
    first, second = reliability_figure(bins).svg, curve.svg
    for svg in (first, second):
        assert "http" not in svg
        assert "<script" not in svg
        assert "<b>" not in svg
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    assert training_figure("none", [[{"epoch": 1}]], {"loss": "x"}, "y") is None


@pytest.mark.parametrize("samples", [1, 2, 200, 5000])
def test_spectrogram_of_any_length_is_finite(samples: int) -> None:
    for waveform in (np.zeros(samples, np.float32), np.ones(samples, np.float32)):
        decibel = log_mel(waveform)
        assert np.isfinite(decibel).all()
        assert decibel.max() <= 0
