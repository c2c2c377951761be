"""The model card of a pre-trained backbone, written from the files of its run."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hb_ssl.files import read_json, write_text_atomic

LOSS_CURVE = "loss_curve.png"
OBJECTIVES = {
    "agreement": "two windows of one recording, each seen through another device, noise and level, "
    "agree more than windows of other recordings (NT-Xent, Chen et al. 2020)",
    "distillation": "predict the states of an averaged teacher at hidden positions (data2vec, "
    "Baevski et al. 2022)",
    "agreement_distillation": "agreement of windows (NT-Xent) plus prediction of an averaged "
    "teacher's states at hidden positions",
    "masked_contrast": "tell the hidden patch from the other hidden ones of its window (the wav2vec "
    "2.0 objective with continuous targets)",
}
CORPORA = {
    "circor2022": "CirCor DigiScope 1.0.3 (Oliveira et al. 2022), ODC-By 1.0",
    "physionet2016": "PhysioNet/CinC Challenge 2016 training sets a, b, c, d, f (Liu et al. 2016), "
    "ODC-By 1.0",
}


def write_backbone_card(run: str | Path) -> Path:
    """Writes ``backbone/README.md`` and its loss curve into a finished pre-training run.

    Returns:
        The card.
    """
    run = Path(run)
    result, history = read_json(run / "metrics.json"), read_json(run / "history.json")
    _draw_losses(history, run / "backbone" / LOSS_CURVE)
    card = run / "backbone" / "README.md"
    write_text_atomic(card, _card(result))
    return card


def _draw_losses(history: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3), dpi=80)
    for name, style in (("train_loss", "-"), ("validation_loss", "o")):
        rows = [(row["step"], row[name]) for row in history if name in row]
        if rows:
            axes.plot(*zip(*rows, strict=True), style, label=name.replace("_", " "), markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.tight_layout()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    plt.close(figure)
    temporary.replace(path)


def _card(result: dict[str, Any]) -> str:
    config, final = result["config"], result["final"]
    corpora = [Path(folder).name for folder in config["corpora"]]
    supervised = []
    if config["simulated_weight"]:
        supervised.append(
            f"{config['num_simulated']:,} recordings of hb_ssl's own simulator, whose exact truth "
            "names the finding of a window and what sounds in every frame (S1, S2, extra sounds, "
            f"murmurs); weight {config['simulated_weight']:g}"
        )
    if config["murmur_weight"]:
        supervised.append(
            "CirCor's murmur labels of training patients, at the sites where the murmur was heard; "
            f"weight {config['murmur_weight']:g}"
        )
    kind = "Self-supervised" if not supervised else "Self-supervised and weakly supervised"
    environment = result["environment"]
    losses = [f"{name} {final[name]:g}" for name in sorted(final) if name.startswith("validation_")]
    shape = f"{config['num_layers']} layers of width {config['hidden_size']}"
    parts = "".join(f"\n- Supervised part: {text}." for text in supervised)
    listed = "".join(f"  - {CORPORA.get(name, name)}\n" for name in corpora)
    machine = f"{environment['device']} ({environment['cpu_count']} cores)"
    return f"""\
---
license: apache-2.0
library_name: transformers
tags: [audio, heart-sounds, phonocardiogram, self-supervised]
---

# Phonocardiogram backbone ({result["parameters"] / 1e6:.1f} M parameters)

A small Audio Spectrogram Transformer for heart sounds: {config["window_seconds"]:g} s windows at
2 kHz, {config["num_mel_bins"]} mel bins, {shape}. Loads with `AutoModel.from_pretrained`. Weights are
stored in half precision. It describes sounds; it gives no diagnosis.

## How it was trained

{kind} pre-training: {OBJECTIVES[config["objective"]]}.
The model sees {config["keep_fraction"]:.0%} of the tokens of these windows.
{parts}

- Real data, {result["hours"]:g} h, {result["recordings"]["train"]:,} recordings trained on:
{listed}\
- {result["recordings"]["held_out"]:,} recordings held out: those of {config["held_out_fraction"]:.0%}
  of the CirCor patients. No PASCAL recording was used.
- Corpus SHA-256 (decoded samples at 2 kHz): `{result["corpus_sha256"]}`
- {config["steps"]:,} steps of {config["batch_pairs"]} pairs, {result["windows_seen"]:,} windows,
  {result["train_minutes"]:g} minutes; the last checkpoint, none was chosen by score.
- AdamW, peak learning rate {config["learning_rate"]:g}, seed {config["seed"]}.
- Machine: {machine}, torch {environment["packages"]["torch"]}.
- Final validation losses on held-out patients: {", ".join(losses)}.

Command: `accelerate launch scripts/pretrain.py --config configs/pretrain_pcg.yaml --corpora
{" ".join(corpora)}`

![training and validation loss]({LOSS_CURVE})

## Scores

`benchmarks/results/foundation_model.md` and `circor_transfer.md` of the hb_ssl repository compare
it with its own random weights, log-mel statistics and others in the same folds.
"""
