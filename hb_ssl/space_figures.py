"""Pictures of one recording for the Space: SVG that takes the page's text colour.

Sized for a phone's width, so that the text stays readable there.
"""

import threading
from collections.abc import Callable, Sequence
from io import StringIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hb_ssl.audio import resample
from hb_ssl.figures import (
    BLUE,
    GREY,
    HOP_SAMPLES,
    PICTURE_RATE,
    PICTURE_SECONDS,
    STYLE,
    VERMILION,
    _envelope,
    _inline_svg,
    _mel,
    class_colour,
    log_mel,
)

WIDTH_INCHES = 4.6
MAX_COLUMNS = 60  # of the window timeline; more windows are averaged
MEL_TICKS_HZ = (100, 200, 400, 800)
# matplotlib's settings belong to the process, and a Space draws for several users at once.
_drawing = threading.Lock()


def picture_waveform(waveform: np.ndarray, rate: int) -> np.ndarray:
    """The first ``PICTURE_SECONDS`` of ``[T]`` at ``PICTURE_RATE``."""
    return resample(waveform[: int(PICTURE_SECONDS * rate)], rate, PICTURE_RATE)


def waveform_figure(picture: np.ndarray, beat_seconds: np.ndarray) -> str:
    """The waveform with a mark at every detected beat.

    Args:
        picture: ``[T]`` from ``picture_waveform``.
        beat_seconds: times of S1 ``[N]``.
    """
    duration = len(picture) / PICTURE_RATE
    seconds, low, high = _envelope(picture)
    limit = max(float(np.abs(picture).max()), 1e-6)

    def draw(axes: Axes) -> None:
        axes.fill_between(seconds, low, high, color=BLUE, linewidth=0.6)
        shown = beat_seconds[beat_seconds < duration]
        axes.vlines(shown, -1.05 * limit, 1.15 * limit, color=VERMILION, linewidth=0.7, alpha=0.7)
        axes.plot(shown, np.full(len(shown), 1.2 * limit), "v", color=VERMILION, markersize=5)
        axes.set(xlim=(0, duration), ylim=(-1.1 * limit, 1.35 * limit), xlabel="seconds")
        axes.set(yticks=[], ylabel="sound")

    return _draw(draw, 1.7, "waveform")


def mel_figure(picture: np.ndarray) -> str:
    """The log-mel spectrogram, up to 1000 Hz.

    Args:
        picture: ``[T]`` from ``picture_waveform``.
    """
    decibel = log_mel(picture)
    duration = len(picture) / PICTURE_RATE

    def draw(axes: Axes) -> None:
        frames = max(int(len(picture) / HOP_SAMPLES), 1)
        axes.imshow(
            decibel[:, :frames], aspect="auto", origin="lower", cmap="magma",
            extent=(0, duration, 0, decibel.shape[0]),
        )  # fmt: skip
        top = _mel(PICTURE_RATE / 2)
        axes.set_yticks(
            [_mel(hz) / top * decibel.shape[0] for hz in MEL_TICKS_HZ],
            [str(hz) for hz in MEL_TICKS_HZ],
        )
        axes.set(xlabel="seconds", ylabel="Hz")

    return _draw(draw, 2.0, "mel")


def timeline_figure(
    start_seconds: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    duration: float,
) -> str:
    """Probabilities of every class over time, stacked.

    Args:
        start_seconds: starts of the windows ``[N]``.
        probabilities: ``[N, C]``.
        labels: the C class names.
        duration: seconds.
    """
    starts, columns = average_columns(start_seconds, probabilities)
    ends = np.append(starts[1:], max(duration, starts[-1] + 1e-3))

    def draw(axes: Axes) -> None:
        bottom = np.zeros(len(starts))
        for column, label in enumerate(labels):
            axes.bar(
                starts, columns[:, column], ends - starts, bottom, align="edge", label=label,
                color=class_colour(label),
            )  # fmt: skip
            bottom += columns[:, column]
        axes.set(xlim=(0, ends[-1]), ylim=(0, 1), xlabel="seconds", ylabel="probability")
        axes.legend(
            ncols=len(labels), loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1,
            columnspacing=1,
        )  # fmt: skip

    return _draw(draw, 2.0, "timeline")


def average_columns(
    start_seconds: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbouring windows until at most ``MAX_COLUMNS`` are left."""
    parts = min(len(start_seconds), MAX_COLUMNS)
    first = np.linspace(0, len(start_seconds), parts, endpoint=False).astype(int)
    sums = np.add.reduceat(probabilities, first, axis=0)
    counts = np.diff(np.append(first, len(start_seconds)))
    return start_seconds[first], sums / counts[:, None]


def occlusion_figure(
    waveform: np.ndarray, rate: int, seconds: np.ndarray, importance: np.ndarray
) -> str:
    """How much every stretch spoke for or against the verdict, over the waveform.

    Args:
        waveform: ``[T]``.
        rate: Hz.
        seconds: middles of the stretches ``[N]``, equally long.
        importance: from ``explain.occlusion_map`` ``[N]``.
    """
    duration = len(waveform) / rate
    picture = resample(waveform, rate, PICTURE_RATE)
    times, low, high = _envelope(picture)
    scale = max(float(np.abs(importance).max()), 1e-6)
    loudest = max(float(np.abs(picture).max()), 1e-6)

    def draw(axes: Axes) -> None:
        axes.fill_between(times, low / loudest, high / loudest, color=GREY, alpha=0.45, linewidth=0)
        colours = [VERMILION if value > 0 else BLUE for value in importance]
        width = duration / len(seconds)
        axes.bar(seconds, importance / scale, 0.92 * width, color=colours, alpha=0.75)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set(xlim=(0, duration), ylim=(-1.1, 1.1), xlabel="seconds")
        axes.set_yticks([-0.8, 0.8], ["against", "for"], rotation=90, va="center")

    return _draw(draw, 2.0, "occlusion")


def _draw(draw: Callable[[Axes], None], height_inches: float, name: str) -> str:
    with _drawing, mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure.subplots())
        svg = StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return _inline_svg(svg.getvalue(), name)
