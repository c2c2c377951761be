"""Figures of the full evaluation: calibration, abstention and robustness."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hb_ssl.figures import BLUE, GREEN, INK, VERMILION, Rendered, grid, render


def calibration_figure(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Rendered:
    """Two reliability curves.

    Args:
        before: bins of ``reliability_bins``.
        after: the same, calibrated.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1, label="perfect")
        for bins, name, colour, mark in (
            (before, "before", VERMILION, "s--"),
            (after, "after calibration", BLUE, "o-"),
        ):
            filled = [b for b in bins if b["n"]]
            axes.plot(
                [b["confidence"] for b in filled], [b["accuracy"] for b in filled], mark,
                color=colour, label=name,
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="highest class probability")
        axes.set_ylabel("share correct")
        axes.legend(loc="upper left")
        grid(axes)

    return render(draw, (4.0, 3.2), "calibration")


def risk_coverage_figure(curve: Sequence[Mapping[str, float]], stated: float) -> Rendered:
    """Wrong answers and UAR against the share of recordings answered.

    Args:
        curve: points with ``coverage``, ``risk`` and ``uar``.
        stated: the risk that the threshold was chosen for.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        coverage = [point["coverage"] for point in curve]
        axes.plot(coverage, [p["risk"] for p in curve], color=VERMILION, label="wrong answers")
        axes.plot(coverage, [p["uar"] for p in curve], "--", color=BLUE, label="UAR")
        axes.axhline(stated, color=INK, linestyle=":", linewidth=1, label="stated risk")
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="share of recordings answered")
        axes.set_ylabel("share")
        axes.legend(loc="center right")
        grid(axes)

    return render(draw, (4.0, 3.2), "risk-coverage")


def robustness_figure(kind: str, curve: Mapping[str, Any], clean: Mapping[str, float]) -> Rendered:
    """UAR and unchanged answers at every level of one damage.

    Args:
        kind: name of the damage.
        curve: of ``robustness_curves``: ``unit`` and ``points``.
        clean: scores of the undamaged recordings.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        points = curve["points"]
        names = [f"{point['level']:g}" if isinstance(point["level"], int | float)
                 else str(point["level"]) for point in points]  # fmt: skip
        _line(axes, names, [p["uar"] for p in points], "UAR", BLUE, "o-")
        _line(axes, names, [p["same"] for p in points], "answers that stay", GREEN, "s--")
        axes.axhline(clean["uar"], color=INK, linestyle=":", linewidth=1, label="UAR, undamaged")
        axes.set(ylim=(0, 1.03), xlabel=f"{kind.replace('_', ' ')} {curve['unit']}".strip())
        axes.legend(loc="lower left")
        grid(axes)

    return render(draw, (3.6, 2.7), f"robustness-{kind.replace('_', '-')}")


def _line(
    axes: Axes, names: Sequence[str], values: Sequence[float], label: str, colour: str, mark: str
) -> None:
    axes.plot(range(len(names)), values, mark, color=colour, label=label)
    axes.set_xticks(range(len(names)), names)
