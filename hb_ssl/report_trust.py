"""The pages of the report that the full evaluation adds."""

from collections.abc import Mapping
from typing import Any

from hb_ssl.figures_trust import calibration_figure, risk_coverage_figure, robustness_figure
from hb_ssl.report_page import Block, Collapsed, Columns, Heading, Picture, Table, Text


def trust_blocks(full: Mapping[str, Any]) -> list[Block]:
    """Calibration, abstention, gate, device and robustness.

    Args:
        full: content of ``full_evaluation.json``.
    """
    blocks: list[Block] = [Heading("How far the answers can be trusted")]
    for name, make in (
        ("calibration", _calibration),
        ("selective", _selective),
        ("heart_sound_gate", _gate),
        ("device", _device),
        ("robustness", _robustness),
        ("intervals", _intervals),
    ):
        if name in full:
            blocks += make(full[name])
    blocks += [
        Text(f"Left out, {name.replace('_', ' ')}: {reason}")
        for name, reason in full.get("left_out", {}).items()
    ]
    return blocks


def _calibration(section: Mapping[str, Any]) -> list[Block]:
    before, after, model = section["before"], section["after"], section["model"]
    rows = [
        [name, _with_range(block["ece"]), _with_range(block["brier"]),
         _with_range(block["log_loss"]), f"{block['uar']:.3f}"]
        for name, block in (("as the model gives them", before), *section["tried"].items())
    ]  # fmt: skip
    return [
        Heading("Calibration", 3),
        Text(
            f"Calibration ({model['method']} scaling) lowers the expected calibration error from "
            f"{_with_range(before['ece'])} to {_with_range(after['ece'])}. Each recording is "
            "calibrated with other people's recordings only. Recordings count as they occur, so "
            "the probabilities hold where the classes are as common as here."
        ),
        Picture(
            "calibration",
            "Reliability curves before and after calibration; numbers in the tables.",
            calibration_figure(before["bins"], after["bins"]),
        ),
        Table(
            "Calibration, lower is better; UAR of the answers that follow",
            ["scaling", "ECE", "Brier score", "log loss", "UAR"],
            rows,
        ),
    ]


def _selective(section: Mapping[str, Any]) -> list[Block]:
    stated, gain = section["stated_risk"], section["uar_gain"]
    share = f"{section['coverage']:.0%}"
    return [
        Heading("Abstaining when unsure", 3),
        Text(
            f"Answering only the surest {share} of the recordings takes the UAR from "
            f"{_with_range(section['uar_all'])} to {_with_range(section['uar_at_coverage'])}: "
            f"{gain['value']:+.3f} ({_range(gain)}). A threshold chosen for at most "
            f"{stated['stated']:.0%} wrong answers, on other people's recordings, answered "
            f"{stated['coverage']['value']:.0%} of them, and {stated['risk']['value'] or 0:.0%} of "
            f"these wrongly ({_range(stated['risk'])})."
        ),
        Picture(
            "risk-coverage",
            "Share of wrong answers and UAR against the share of recordings answered.",
            risk_coverage_figure(section["curve"], stated["stated"]),
        ),
        Text(f"Area under the risk-coverage curve: {_with_range(section['aurc'])}.", "note"),
    ]


def _gate(section: Mapping[str, Any]) -> list[Block]:
    scores = section["scores"]
    accepted = scores["true_accept"]
    rows = [[kind, f"{share:.1%}"] for kind, share in scores["false_accept_by_kind"].items()]
    rows.append(["all synthetic sounds", f"{scores['false_accept']:.1%}"])
    if "artifacts" in scores:
        rows.append(["real artifacts (PASCAL)", f"{scores['artifacts']['false_accept']:.1%}"])
    by_set = ", ".join(
        f"{name.replace('set_', 'set ').replace('set a', 'set A').replace('set b', 'set B')} "
        f"{share:.1%}"
        for name, share in accepted.items()
        if name != "all"
    )
    return [
        Heading("Is it a heart sound at all?", 3),
        Text(
            f"A gate in front of the classifier lets {accepted['all']:.1%} of the real heart "
            f"sounds through ({by_set}) and {scores['false_accept']:.1%} of {scores['num_testing']}"
            f" other sounds; AUROC {_with_range(scores['auroc'])}. It was tested on people that it "
            "was not fitted on, against sounds from synthesisers that it was not fitted on. With "
            "thresholds chosen on other folds the shares are "
            f"{scores['honest']['true_accept']:.1%} and {scores['honest']['false_accept']:.1%}."
        ),
        Table("Taken for a heart sound", ["sound", "share"], rows),
    ]


def _device(section: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Heading("The device", 3), Text(section["share"]["sentence"])]
    if "probe" in section:
        rows = [
            [name, _with_range(probe["balanced_accuracy"]), str(probe["n"])]
            for name, probe in section["probe"].items()
        ]
        labels = ", ".join(next(iter(section["probe"].values()))["labels"])
        blocks += [
            Table(
                f"Telling the device from recordings of the classes that both hold ({labels}); "
                "0.5 is guessing",
                ["from", "balanced accuracy", "recordings"],
                rows,
            )
        ]
    if "cross_device" in section:
        names = {
            "within_a": "inside set A",
            "b_to_a": "learnt on B, tested on A",
            "within_b": "inside set B",
            "a_to_b": "learnt on A, tested on B",
        }
        rows = [
            [shown, *(_with_range(block[key]) for block in section["cross_device"].values())]
            for key, shown in names.items()
        ]
        labels = ", ".join(next(iter(section["cross_device"].values()))["labels"])
        blocks.append(
            Table(
                f"UAR of a logistic regression across devices ({labels})",
                ["test", *section["cross_device"]],
                rows,
            )
        )
    if "left_out" in section:
        blocks.append(Text(f"Left out: {section['left_out']}"))
    return blocks


def _robustness(section: Mapping[str, Any]) -> list[Block]:
    clean = section["clean"]
    groups: list[list[Block]] = []
    for kind, curve in section["curves"].items():
        if not curve["points"]:
            continue
        shown = kind.replace("_", " ")
        rows = [
            [f"{point['level']} {curve['unit']}".strip(), f"{point['uar']:.3f}",
             f"{point['accuracy']:.3f}", f"{point['same']:.0%}", str(point["refused"])]
            for point in curve["points"]
        ]  # fmt: skip
        header = [shown, "UAR", "accuracy", "same answer", "refused"]
        groups.append(
            [
                Picture(
                    f"robustness-{kind.replace('_', '-')}",
                    f"UAR and unchanged answers by {shown}; the numbers are in the table below.",
                    robustness_figure(kind, curve, clean),
                ),
                Collapsed(f"The numbers: {shown}", [Table(curve["what"], header, rows)]),
            ]
        )
    blocks: list[Block] = [
        Heading("Damaged recordings", 3),
        Text(
            f"{section['n']} recordings that the model did not learn from, classes as even as they "
            f"allow: UAR {clean['uar']:.3f} undamaged."
        ),
        Columns(groups, 340),
    ]
    return blocks + [Text(f"Left out: {reason}") for reason in section["left_out"]]


def _intervals(section: Mapping[str, Any]) -> list[Block]:
    shown = {
        "recording_problem_auroc": "AUROC, any problem",
        "recording_auroc_macro": "AUROC, mean of classes",
        "recording_ece": "ECE",
    }
    rows = [
        [part.replace("_", " "), *(_with_range(metrics[name]) for name in shown)]
        for part, metrics in section.items()
    ]
    return [Table("Scores of the probabilities, by part", ["part", *shown.values()], rows)]


def _with_range(interval: Mapping[str, float | None]) -> str:
    if interval["value"] is None:
        return "–"
    small = f" ({_range(interval)})" if interval["low"] is not None else ""
    return f"{interval['value']:.3f}{small}"


def _range(interval: Mapping[str, float | None]) -> str:
    if interval["low"] is None or interval["high"] is None:
        return "no interval"
    return f"{interval['low']:.3f}–{interval['high']:.3f}"
