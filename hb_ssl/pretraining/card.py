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
    "wav2vec2": "tell the quantised hidden frame from other hidden ones of its window (wav2vec 2.0, "
    "Baevski et al. 2020, computed by `Wav2Vec2ForPreTraining`)",
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
    kind = "Self-supervised" if not supervised else "Self-supervised and partly supervised"
    environment = result["environment"]
    # The simulated windows are those of training, so their losses are no validation.
    heard = ("agreement", "distillation", "masked_contrast", "murmur", "contrastive", "diversity")
    known = {n: final[f"validation_{n}"] for n in heard if f"validation_{n}" in final}
    losses = [f"{name} {value:g}" for name, value in known.items()] or ["none, no subject known"]
    recordings = result["recordings"]
    if result["hours"] is None:
        real = f"streamed from {recordings['train_shards']} shards and kept nowhere"
        held_out = f"{recordings['held_out']:,} recordings held out: the shards' split `validation`"
        checksum = ""
    else:
        real = f"{result['hours']:g} h, {recordings['train']:,} recordings trained on"
        held_out = (
            f"{recordings['held_out']:,} recordings held out: those of "
            f"{config['held_out_fraction']:.0%}\n  of the CirCor patients"
        )
        checksum = f"\n- Corpus SHA-256 (decoded samples): `{result['corpus_sha256']}`"
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

{_architecture(config)} Loads with `AutoModel.from_pretrained`. Weights are
stored in half precision. It describes sounds; it gives no diagnosis.

## How it was trained

{kind} pre-training: {OBJECTIVES[config["objective"]]}.
{_hidden(config)}
{parts}

- Real data, {real}:
{listed}\
- {held_out}. No PASCAL recording was used.{checksum}
- {config["steps"]:,} steps of {config["batch_pairs"]} pairs, {result["windows_seen"]:,} windows,
  {result["train_minutes"]:g} minutes; the last checkpoint, none was chosen by score.
- AdamW, peak learning rate {config["learning_rate"]:g}, seed {config["seed"]}.
- Machine: {machine}, torch {environment["packages"]["torch"]}.
- Final validation losses on held-out patients: {", ".join(losses)}.

Command: `accelerate launch scripts/pretrain.py --config {_recipe(config)} --corpora
{" ".join(corpora)}`

![training and validation loss]({LOSS_CURVE})

## Scores

`benchmarks/results/foundation_model.md` and `circor_transfer.md` of the hb_ssl repository compare
it with its own random weights, log-mel statistics and others in the same folds.
"""


def _architecture(config: dict[str, Any]) -> str:
    shape = f"{config['num_layers']} layers of width {config['hidden_size']}"
    if config["objective"] != "wav2vec2":
        return (
            f"A small Audio Spectrogram Transformer for heart sounds: {config['window_seconds']:g} "
            f"s windows at\n2 kHz, {config['num_mel_bins']} mel bins, {shape}."
        )
    if config["backbone"] is None:
        return (
            f"A small wav2vec2 for heart sounds: {config['window_seconds']:g} s waveform windows "
            f"at 2 kHz, {shape}."
        )
    return (
        f"`{Path(config['backbone']).name if Path(config['backbone']).is_dir() else config['backbone']}`"
        f" pre-trained further on heart sounds: {config['window_seconds']:g} s waveform windows."
    )


def _hidden(config: dict[str, Any]) -> str:
    if config["objective"] == "wav2vec2":
        return f"Hidden spans cover up to {config['mask_fraction']:.0%} of the frames."
    return f"The model sees {config['keep_fraction']:.0%} of the tokens of these windows."


def _recipe(config: dict[str, Any]) -> str:
    if config["objective"] != "wav2vec2":
        return "configs/pretrain_pcg.yaml"
    return f"configs/{'pretrain' if config['backbone'] is None else 'continue'}_wav2vec2.yaml"
