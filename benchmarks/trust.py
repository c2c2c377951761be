"""How far answers can be trusted: the full evaluation of finished runs, side by side.

    hb-ssl cv --source DIR --method logistic_regression --output_dir runs/logistic_regression
    hb-ssl cv --source DIR --method extra_trees --output_dir runs/extra_trees
    hb-ssl cv --config configs/pcg_lora.yaml --source DIR --output_dir runs/pcg_lora-merge
    hb-ssl train --config configs/pcg_lora.yaml --source DIR --output_dir runs/pcg_lora_split
    python benchmarks/trust.py runs/pcg_lora-merge runs/pcg_lora_split runs/extra_trees ... \\
        --heart-sounds circor2022=DIR --heart-sounds physionet2016=DIR

Takes any run folder of `hb-ssl cv` or `hb-ssl train`; a run that was fully evaluated already is
not evaluated again. ``--heart-sounds`` names folders of other heart sounds, for the gate alone.
Writes ``benchmarks/results/trust.json`` and ``.md``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hb_ssl.audio import load_audio
from hb_ssl.cli import run_command
from hb_ssl.data.synthetic import DEVICES, simulate_recording
from hb_ssl.errors import UserError
from hb_ssl.evaluation.hand_made_features import FEATURE_RATE
from hb_ssl.evaluation.verdict import is_heart_sound
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.full_evaluation import FULL_FILE, evaluate_fully
from hb_ssl.runs import describe_environment

RESULTS = Path(__file__).parent / "results"
NUM_HEART_SOUNDS = 300  # of each other corpus
LABELS = ("normal", "murmur", "extrahls")
TARGETS = {"ece": 0.05, "uar_gain": 0.06, "false_accept": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--heart-sounds", action="append", default=[], metavar="NAME=DIR")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    gate: dict[str, Any] | None = None
    for folder in map(Path, arguments.runs):
        if not (folder / FULL_FILE).is_file():
            evaluate_fully(folder)
        full = read_json(folder / FULL_FILE)
        gate = gate or full.get("heart_sound_gate", {}).get("gate")
        results[folder.resolve().name] = compact(full)
    others = {}
    for entry in arguments.heart_sounds:
        name, _, place = entry.partition("=")
        if gate is None:
            raise UserError("--heart-sounds: no run has a heart-sound gate; see its left_out")
        others[name] = accepted_share(Path(place), gate)
    if gate is not None:
        others["simulated"] = accepted_simulations(gate)
    environment = describe_environment()
    environment["command"] = [
        "trust.py",
        *results,
        *(f"--heart-sounds {n}=DIR" for n in others if n != "simulated"),
    ]
    content = {"environment": environment, "results": results, "other_heart_sounds": others}
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(RESULTS / "trust.json", content)
    write_text_atomic(RESULTS / "trust.md", table(content))
    print(table(content))


def compact(full: dict[str, Any]) -> dict[str, Any]:
    """The numbers without curves, bins and the gate's weights."""
    kept = {name: full[name] for name in ("method", "labels", "left_out")}
    for name in ("intervals", "device", "robustness"):
        if name in full:
            kept[name] = full[name]
    if "calibration" in full:
        section = full["calibration"]
        blocks = {"before": section["before"], **section["tried"]}
        kept["calibration"] = {
            "chosen": section["model"]["method"],
            **{n: {k: v for k, v in b.items() if k != "bins"} for n, b in blocks.items()},
        }
    if "selective" in full:
        kept["selective"] = {k: v for k, v in full["selective"].items() if k != "curve"}
    if "heart_sound_gate" in full:
        kept["heart_sound_gate"] = full["heart_sound_gate"]["scores"]
    return kept


def accepted_share(folder: Path, gate: dict[str, Any]) -> dict[str, Any]:
    """How many heart sounds of another corpus the gate lets through."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".flac", ".wav"))
    if not files:
        raise UserError(f"{folder}: holds no .flac or .wav; expected a folder of heart sounds")
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(files), min(NUM_HEART_SOUNDS, len(files)), replace=False)
    accepted = []
    for index in tqdm(sorted(chosen), desc=folder.name, disable=None):
        waveform, rate = load_audio(files[index], FEATURE_RATE)
        accepted.append(is_heart_sound(waveform, rate, None, gate))
    return {"n": len(accepted), "true_accept": float(np.mean(accepted))}


def accepted_simulations(gate: dict[str, Any]) -> dict[str, Any]:
    """The same for simulated hearts: a gate that only knew real from made would refuse them."""
    rng = np.random.default_rng(0)
    accepted = []
    for number in tqdm(range(NUM_HEART_SOUNDS // 2), desc="simulated", disable=None):
        label, device = LABELS[number % len(LABELS)], DEVICES[number // len(LABELS) % 2]
        waveform, _ = simulate_recording(label, 8.0, 4000, rng, device)
        accepted.append(is_heart_sound(waveform, 4000, None, gate))
    return {"n": len(accepted), "true_accept": float(np.mean(accepted))}


def table(content: dict[str, Any]) -> str:
    """Markdown: one table a question, one row a run."""
    results = content["results"]
    lines = [
        "# How far the answers can be trusted",
        "",
        "Out of fold, on the real recordings; 95 % intervals from a bootstrap over subjects. Made "
        "by `benchmarks/trust.py`.",
        "",
        "## Calibration",
        "",
        f"Cross-fitted over subjects. Target: ECE at most {TARGETS['ece']:g}.",
        "",
        "| run | scaling | ECE | Brier | UAR | |",
        "|---|---|---|---|---|---|",
    ]
    for run, result in results.items():
        section = result.get("calibration", {})
        for scaling in ("before", "temperature", "vector"):
            if scaling in section:
                block = section[scaling]
                chosen = "chosen" if scaling == section["chosen"] else ""
                lines.append(
                    f"| {run} | {scaling} | {shown(block['ece'])} | {shown(block['brier'])} | "
                    f"{block['uar']:.3f} | {chosen} |"
                )
    lines += [
        "",
        "## Abstention",
        "",
        "Highest calibrated probability as confidence; 20 % not answered. Target: UAR higher by at "
        f"least {TARGETS['uar_gain']:g}.",
        "",
        "| run | UAR of all | UAR of surest 80 % | gain | risk stated | risk found | answered |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, result in results.items():
        if "selective" in result:
            section, stated = result["selective"], result["selective"]["stated_risk"]
            lines.append(
                f"| {run} | {shown(section['uar_all'])} | {shown(section['uar_at_coverage'])} | "
                f"{shown(section['uar_gain'])} | {stated['stated']:.2f} | "
                f"{shown(stated['risk'])} | {shown(stated['coverage'])} |"
            )
    lines += ["", "## Heart-sound gate", ""]
    gates = [
        result["heart_sound_gate"] for result in results.values() if "heart_sound_gate" in result
    ]
    if gates:
        lines += _gate_lines(gates[0], content["other_heart_sounds"])
    lines += ["", "## Device", ""]
    for run, result in results.items():
        if "device" in result:
            lines += _device_lines(run, result["device"])
    lines += ["## Damaged recordings", ""]
    for run, result in results.items():
        if "robustness" in result:
            lines += _robustness_lines(run, result["robustness"])
    return "\n".join(lines).rstrip() + "\n"


def _gate_lines(gate: dict[str, Any], others: dict[str, Any]) -> list[str]:
    accepted = gate["true_accept"]
    lines = [
        "The same for every run: it does not depend on the classifier. Fitted on one family of "
        "synthetic sounds, tested on another and on people and artifacts it never saw. Target: at "
        f"most {TARGETS['false_accept']:.0%} of other sounds taken for a heart at 95 % of the "
        "heart sounds let through.",
        "",
        f"AUROC {shown(gate['auroc'])}.",
        "",
        "| recordings | n | taken for a heart sound |",
        "|---|---|---|",
        *(
            f"| PASCAL heart sounds, {name.replace('_', ' ')} | {gate['num_heart'][name]} | "
            f"{share:.1%} |"
            for name, share in accepted.items()
        ),
        *(
            f"| {name} heart sounds | {own['n']} | {own['true_accept']:.1%} |"
            for name, own in others.items()
        ),
        f"| synthetic other sounds | {gate['num_testing']} | {gate['false_accept']:.1%} |",
        *(
            f"| ... {kind} | {gate['num_testing'] // len(gate['false_accept_by_kind'])} | "
            f"{share:.1%} |"
            for kind, share in gate["false_accept_by_kind"].items()
        ),
    ]
    if "artifacts" in gate:
        own = gate["artifacts"]
        lines.append(f"| PASCAL artifacts (real) | {own['n']} | {own['false_accept']:.1%} |")
    honest = gate["honest"]
    return [
        *lines,
        "",
        f"With thresholds chosen on other folds: {honest['true_accept']:.1%} of the heart sounds "
        f"and {honest['false_accept']:.1%} of the others. With 95 % of all PASCAL heart sounds let "
        f"through, whatever their set: {gate['false_accept_at_95_of_all']:.1%} of the others.",
    ]


def _device_lines(run: str, device: dict[str, Any]) -> list[str]:
    lines = [f"{run}: {device['share']['sentence']}", ""]
    if "probe" in device:
        lines += ["| device told from | balanced accuracy |", "|---|---|"]
        lines += [
            f"| {name} | {shown(p['balanced_accuracy'])} |" for name, p in device["probe"].items()
        ]
        lines.append("")
    if "cross_device" in device:
        bands = device["cross_device"]
        lines += [
            f"| UAR of a logistic regression | {' | '.join(bands)} |",
            "|---" * (len(bands) + 1) + "|",
        ]
        for key in ("within_a", "b_to_a", "within_b", "a_to_b"):
            cells = " | ".join(shown(block[key]) for block in bands.values())
            lines.append(f"| {key.replace('_', ' ')} | {cells} |")
        lines.append("")
    return lines


def _robustness_lines(run: str, section: dict[str, Any]) -> list[str]:
    lines = [
        f"{run}: UAR of {section['n']} recordings, classes as even as they allow, "
        f"{section['clean']['uar']:.3f} undamaged; in brackets the share of answers that stay.",
        "",
    ]
    for kind, curve in section["curves"].items():
        points = curve["points"]
        lines += [
            f"| {kind.replace('_', ' ')} {curve['unit']} | "
            + " | ".join(str(point["level"]) for point in points) + " |",
            "|---" * (len(points) + 1) + "|",
            "| UAR | " + " | ".join(f"{p['uar']:.3f} ({p['same']:.0%})" for p in points) + " |",
            "",
        ]  # fmt: skip
    return lines


def shown(interval: dict[str, float | None]) -> str:
    """``0.640 (0.580-0.700)``."""
    if interval["value"] is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['value']:.3f}"
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
