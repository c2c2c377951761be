"""Pre-training objectives side by side, each for the same number of steps; and amounts of data.

    python benchmarks/pretraining_objectives.py --corpora CIRCOR_DIR PHYSIONET_DIR [--steps 200]
    ... --only NAME [NAME ...]     runs these rows and keeps the others of the same number of steps

Scored by a ridge probe for murmurs on CirCor patients that no run trains on; no PASCAL recording is
looked at. A short race: it says which objective gets somewhere soon. wav2vec2 hears 16 windows a
step, the others 256, which takes about as many minutes on one core. The amounts of data take
``AMOUNT_STEPS`` steps of the recipe each. Runs are resumed; writes
``benchmarks/results/pretraining_objectives.{json,md}``.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from hb_ssl.cli import run_command
from hb_ssl.config import parse_config
from hb_ssl.errors import UserError
from hb_ssl.files import read_json, write_json_atomic, write_text_atomic
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import pretrain

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
AMOUNT_STEPS = 250
AMOUNTS = {"all recordings": "1", "a quarter": "0.25", "a sixteenth": "0.0625"}
DATA = "data: "  # rows of the second table
SELF_SUPERVISED = ["--simulated_weight", "0", "--murmur_weight", "0"]
VARIANTS: dict[str, list[str]] = {
    "masked contrast (wav2vec2)": ["--objective", "masked_contrast", *SELF_SUPERVISED],
    "distillation (data2vec)": ["--objective", "distillation", *SELF_SUPERVISED],
    "agreement": [*SELF_SUPERVISED],
    "agreement + distillation": ["--objective", "agreement_distillation", *SELF_SUPERVISED],
    "agreement + simulated truth": ["--murmur_weight", "0"],
    "agreement + simulated truth + murmurs (the recipe)": [],
    "wav2vec2 on waveforms (Wav2Vec2ForPreTraining), 16 windows a step": [
        "--objective", "wav2vec2", *SELF_SUPERVISED, "--batch_pairs", "8",
        "--learning_rate", "5e-4",
    ],
    **{
        f"{DATA}{name}": [
            "--data_fraction", fraction, "--steps", str(AMOUNT_STEPS),
            "--eval_steps", str(AMOUNT_STEPS),
        ]
        for name, fraction in AMOUNTS.items()
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", default="runs/objectives", help="where the run folders go")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    recipe = ["--config", str(REPOSITORY / "configs" / "pretrain_pcg.yaml")]
    content: dict[str, Any] = {"steps": arguments.steps, "results": {}}
    some = arguments.only != list(VARIANTS)
    if some:
        content = read_json(RESULTS / "pretraining_objectives.json")
        if content["steps"] != arguments.steps:
            raise UserError(
                f"--only with --steps {arguments.steps}: the other rows have {content['steps']}; "
                "give the same number or run all rows"
            )
    for number, (name, flags) in enumerate(VARIANTS.items()):
        if name not in arguments.only:
            continue
        folder = Path(arguments.runs) / f"{number}-{arguments.steps}"
        steps = ["--steps", str(arguments.steps), "--eval_steps", str(arguments.steps)]
        where = ["--corpora", *arguments.corpora, "--output_dir", str(folder)]
        resume = ["--resume", "True"] if folder.is_dir() else []
        (config,) = parse_config([PretrainConfig], [*recipe, *steps, *flags, *where, *resume])
        run = read_json(pretrain(config) / "metrics.json")
        environment = run["environment"] | {
            "command": [Path(__file__).name, "--corpora", "DIR", "DIR"]
        }
        row = _probe(run["final"]) | {"minutes": run["train_minutes"]}
        row["recordings"] = run["recordings"]["train"]
        random = "random weights" + (" of wav2vec2" if config.objective == "wav2vec2" else "")
        content["results"][random] = _probe(run["start"]) | {"minutes": 0.0}
        content["results"][name] = row
        if some:
            row["environment"] = environment | {"load_average": os.getloadavg()[1]}
        else:
            content["environment"] = environment
        write_json_atomic(RESULTS / "pretraining_objectives.json", content)
        write_text_atomic(RESULTS / "pretraining_objectives.md", table(content))
    print(table(content))


def _probe(row: dict[str, Any]) -> dict[str, float]:
    return {k.rsplit("/", 1)[1]: row[k] for k in row if k.startswith("probe/circor_murmur/")}


def table(content: dict[str, Any]) -> str:
    """Markdown: one row an objective, then one row an amount of data."""
    amounts = {n.removeprefix(DATA): r for n, r in content["results"].items() if n.startswith(DATA)}
    objectives = {n: r for n, r in content["results"].items() if not n.startswith(DATA)}
    lines = [
        f"# Pre-training objectives after {content['steps']} steps",
        "",
        "recording_uar, murmur present or absent, ridge probe in grouped folds of CirCor patients "
        "held out of pre-training; one seed. Made by `benchmarks/pretraining_objectives.py`.",
        "",
        *_rows("objective", objectives),
    ]
    if amounts:
        lines += ["", f"## The recipe after {AMOUNT_STEPS} steps, by amount of data", ""]
        named = {f"{name} ({r['recordings']})": r for name, r in amounts.items()}
        lines += _rows("real recordings", named)
    if any(_was_busy(r) for r in content["results"].values()):
        lines += ["", "\\* on a machine that was busy with other programs, so not to be compared."]
    return "\n".join([*lines, ""])


def _rows(of: str, results: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"| {of} | class tokens | best layer (optimistic) | all layers | minutes, one core |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {r['last']:.3f} | {r['best_layer']:.3f} | {r['all']:.3f} | "
            f"{r['minutes']:.1f}{'*' if _was_busy(r) else ''} |"
            for name, r in results.items()
        ),
    ]


def _was_busy(row: dict[str, Any]) -> bool:
    machine = row.get("environment", {})
    return round(machine.get("load_average", 0)) > machine.get("cpu_count", 1)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
