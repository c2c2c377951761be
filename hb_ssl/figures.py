"""Figures of the run report: each drawn once, as SVG for the page and as PNG for Markdown.

matplotlib's ``Figure`` is used directly, without pyplot's global state. Everything that is not data
is drawn in ``INK``, which the SVG turns into the page's text colour, so one figure fits a light and
a dark page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import torchaudio.functional as AF
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

INK = "#1b2430"
# Okabe and Ito 2008, "Color Universal Design": told apart with any colour vision.
GREY, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#999999", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
CLASS_COLOURS = {
    "artifact": GREY,
    "extrahls": SKY,
    "extrastole": PURPLE,
    "murmur": VERMILION,
    "normal": GREEN,
}
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a label may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}
PNG_DPI = 150

PICTURE_RATE = 2000  # Hz, so that pictures reach 1000 Hz
PICTURE_SECONDS = 30.0  # the longest PASCAL recording has 27.9 s
NUM_MELS = 48
FFT_SAMPLES, WINDOW_SAMPLES, HOP_SAMPLES = 256, 128, 20  # 64 ms windows every 10 ms
RANGE_DB = 60.0
WAVEFORM_COLUMNS = 700


@dataclass(frozen=True)
class Rendered:
    """One figure: ``svg`` to put into a page as it is, and ``png`` (file content)."""

    svg: str
    png: bytes


def class_colour(label: str) -> str:
    """The colour of a class, the same in every figure and table."""
    return CLASS_COLOURS.get(label, ORANGE)


def reliability_figure(bins: Sequence[Mapping[str, Any]]) -> Rendered:
    """Accuracy against confidence, and how many predictions each bin holds.

    Args:
        bins: from ``reliability_bins``: ``low``, ``high``, ``n``, ``confidence``,
            ``accuracy`` (the last two ``None`` in an empty bin).
    """

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        filled = [b for b in bins if b["n"]]
        x = [b["confidence"] for b in filled]
        top.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1, label="perfect")
        top.plot(x, [b["accuracy"] for b in filled], color=BLUE, marker="o", label="model")
        top.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share correct")
        top.legend(loc="upper left")
        lows = [b["low"] for b in bins]
        bottom.bar(lows, [b["n"] for b in bins], width=0.094, align="edge", color=BLUE, alpha=0.6)
        bottom.set(xlabel="highest class probability (uncalibrated)", ylabel="number")
        grid(top)

    return render(draw, (4.0, 3.8), "reliability")


def training_figure(
    name: str,
    histories: Sequence[Sequence[Mapping[str, Any]]],
    keys: Mapping[str, str],
    y_label: str,
) -> Rendered | None:
    """Curves over epochs: one line a run or, thin, one line a fold.

    Args:
        name: unique name of the figure.
        histories: rows of ``history.json``, one list a run or fold.
        keys: column of the history to its name in the legend.
        y_label: axis label.

    Returns:
        ``None`` when no history holds any of the columns.
    """
    thin = len(histories) > 1
    if not any(key in row for rows in histories for row in rows for key in keys):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (key, legend), colour, dash in zip(keys.items(), (BLUE, VERMILION), ("-", "--")):
            for number, rows in enumerate(histories):
                points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
                if points:
                    axes.plot(
                        *zip(*points), dash, color=colour, linewidth=0.8 if thin else 1.6,
                        alpha=0.55 if thin else 1.0, marker="o" if len(points) == 1 else None,
                        label=legend if number == 0 else None,
                    )  # fmt: skip
        axes.set(xlabel="epoch", ylabel=y_label)
        if len(keys) > 1:
            axes.legend()
        grid(axes)

    return render(draw, (3.8, 2.7), name)


def recording_figure(
    name: str,
    waveform: np.ndarray,
    windows: Sequence[tuple[float, str]],
    window_seconds: float,
) -> Rendered:
    """Waveform, log-mel spectrogram and, where known, the class of every window, on one time axis.

    Args:
        name: unique name of the figure.
        waveform: ``[T]`` at ``PICTURE_RATE``; what is past ``PICTURE_SECONDS`` is not drawn.
        windows: start in seconds and predicted class of every window.
        window_seconds: length of a window.
    """
    waveform = waveform[: round(PICTURE_SECONDS * PICTURE_RATE)]
    duration = len(waveform) / PICTURE_RATE

    def draw(figure: Figure) -> None:
        heights = (2, 3, 1.1) if windows else (2, 3)
        wave, mel, *timeline = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        times, low, high = _envelope(waveform)
        wave.fill_between(times, low, high, color=BLUE, linewidth=0.3)
        wave.set(yticks=[], ylabel="signal", xlim=(0, duration))
        wave.spines["left"].set_visible(False)
        mel.imshow(
            log_mel(waveform), origin="lower", aspect="auto", cmap="cividis",
            extent=(0, duration, 0, _mel(PICTURE_RATE / 2)), vmin=-RANGE_DB, vmax=0,
        )  # fmt: skip
        ticks = (100, 200, 400, 700, 1000)
        mel.set(yticks=[_mel(hz) for hz in ticks], yticklabels=[str(hz) for hz in ticks])
        mel.set_ylabel("Hz")
        if timeline:
            _draw_timeline(timeline[0], windows, window_seconds, duration)
        (timeline[0] if timeline else mel).set_xlabel("seconds")

    return render(draw, (4.2, 3.5 if windows else 3.0), name)


def prediction_figure(
    title: str,
    waveform: np.ndarray,
    starts: np.ndarray,
    window_seconds: float,
    probabilities: np.ndarray,
    labels: Sequence[str],
) -> Rendered:
    """Waveform of a whole recording, and below it the class probabilities of its windows.

    Args:
        title: one line above the picture.
        waveform: ``[T]`` at ``PICTURE_RATE``.
        starts: start of every window in seconds, ``[N]``.
        window_seconds: length of a window.
        probabilities: ``[N, C]``.
        labels: names of the C classes.
    """
    duration = len(waveform) / PICTURE_RATE
    # Each window speaks for the time nearest to its middle.
    middles = np.minimum(starts + min(window_seconds, duration) / 2, duration)
    edges = np.concatenate([[0.0], (middles[1:] + middles[:-1]) / 2, [duration]])

    def draw(figure: Figure) -> None:
        figure.suptitle(title, fontsize=10)
        wave, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        times, low, high = _envelope(waveform)
        wave.fill_between(times, low, high, color=BLUE, linewidth=0.3)
        wave.set(yticks=[], ylabel="signal", xlim=(0, duration))
        wave.spines["left"].set_visible(False)
        below = np.zeros(len(probabilities))
        for column, label in enumerate(labels):
            above = below + probabilities[:, column]
            shares.stairs(
                above, edges, baseline=below, fill=True, color=class_colour(label), label=label
            )
            below = above
        shares.set(ylim=(0, 1), ylabel="probability", xlabel="seconds")
        figure.legend(loc="outside lower center", ncols=len(labels))

    return render(draw, (8.0, 3.8), "prediction")


def _draw_timeline(
    axes: Axes, windows: Sequence[tuple[float, str]], window_seconds: float, duration: float
) -> None:
    """One bar a window; overlapping windows are laid in rows like bricks."""
    row_ends: list[float] = []
    for start, label in sorted(windows):
        end = min(start + window_seconds, duration)
        if start >= duration:
            continue
        free = [row for row, row_end in enumerate(row_ends) if row_end <= start + 1e-6]
        row = free[0] if free else len(row_ends)
        row_ends[row : row + 1] = [end]
        colour = class_colour(label)
        axes.barh(-row, end - start, left=start, height=0.86, color=colour, edgecolor="white")
        # A word as well as a colour, cut to what the bar has room for.
        letters = max(1, int((end - start) / duration * 40))
        axes.text(
            (start + end) / 2, -row, label[:letters], ha="center", va="center_baseline",
            color=_text_on(colour), fontsize=7, clip_on=True,
        )  # fmt: skip
    axes.set(yticks=[], ylabel="windows", ylim=(-len(row_ends) + 0.5, 0.5))
    axes.spines["left"].set_visible(False)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram ``[NUM_MELS, frames]`` in dB below its maximum (O'Shaughnessy's mel).

    Args:
        waveform: ``[T]`` at ``PICTURE_RATE``, T >= 1.
    """
    padded = np.pad(waveform, (0, max(0, FFT_SAMPLES - len(waveform))))
    window = torch.hann_window(WINDOW_SAMPLES)
    spectrum = torch.stft(
        torch.from_numpy(padded), FFT_SAMPLES, HOP_SAMPLES, WINDOW_SAMPLES, window,
        return_complex=True, pad_mode="constant",
    )  # fmt: skip
    bank = AF.melscale_fbanks(
        FFT_SAMPLES // 2 + 1, 0.0, PICTURE_RATE / 2, NUM_MELS, PICTURE_RATE, mel_scale="htk"
    )
    power = bank.T @ spectrum.abs().square()
    decibel = 10 * torch.log10(power.clamp_min(1e-12))
    return (decibel - decibel.max()).clamp_min(-RANGE_DB).numpy()


def _mel(hz: float) -> float:
    return 2595 * float(np.log10(1 + hz / 700))


def _envelope(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (seconds), minimum and maximum of up to ``WAVEFORM_COLUMNS`` equal stretches."""
    edges = np.linspace(0, len(waveform), min(WAVEFORM_COLUMNS, len(waveform)) + 1).astype(int)
    low = np.minimum.reduceat(waveform, edges[:-1])
    high = np.maximum.reduceat(waveform, edges[:-1])
    return edges[:-1] / PICTURE_RATE, low, high


def _text_on(colour: str) -> str:
    """Black or white, whichever has more contrast (weights of ITU-R BT.709)."""
    return "black" if np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) > 0.4 else "white"


def grid(axes: Axes) -> None:
    """Faint lines behind the data."""
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)


def render(draw: Any, inches: tuple[float, float], name: str) -> Rendered:
    """Draws once, for a page and for Markdown; ``name`` is unique in the report."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Rendered(_inline_svg(svg.getvalue(), name), png.getvalue())


def _inline_svg(svg: str, name: str) -> str:
    """Makes matplotlib's SVG file a part of a page: no addresses, no ids that another one has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor").strip()
