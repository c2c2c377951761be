"""The model card of a pre-trained backbone, written from the files of its run."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hb_ssl.files import read_json, write_text_atomic
from hb_ssl.runs import shareable_command

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
CORPORA = {  # by the usual name of the folder; none holds a PASCAL recording
    "circor2022": "CirCor DigiScope 1.0.3 (Oliveira et al. 2022), ODC-By 1.0",
    "physionet2016": "PhysioNet/CinC Challenge 2016 training sets (Liu et al. 2016), ODC-By 1.0",
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
    rate = read_json(run / "backbone" / "preprocessor_config.json")["sampling_rate"]
    write_text_atomic(card, backbone_card(result, rate))
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


def backbone_card(result: dict[str, Any], sampling_rate: int) -> str:
    """The README.md of a backbone.

    Args:
        result: the content of the run's ``metrics.json``.
        sampling_rate: Hz, of what it hears.
    """
    config, final = result["config"], result["final"]
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
    parts = "".join(f"\n- Supervised part: {text}." for text in supervised)
    machine = f"{environment['device']} ({environment['cpu_count']} cores)"
    return f"""\
---
license: apache-2.0
library_name: transformers
tags: [audio, heart-sounds, phonocardiogram, self-supervised]
---

# Phonocardiogram backbone ({result["parameters"] / 1e6:.1f} M parameters)

{_architecture(config)} Weights are
stored in half precision. It describes sounds; it gives no diagnosis.

## How to use

```python
from transformers import AutoFeatureExtractor, AutoModel

extractor, model = AutoFeatureExtractor.from_pretrained(HERE), AutoModel.from_pretrained(HERE)
# samples: float32 [T], one channel at {sampling_rate} Hz, a window of {config["window_seconds"]:g} s
inputs = extractor(samples, sampling_rate={sampling_rate}, return_tensors="pt")
model(**inputs).last_hidden_state  # [1, tokens, width]
```

`HERE` is this folder or repository. To fine-tune it: `hb-ssl train --backbone HERE`.

## How it was trained

{kind} pre-training: {OBJECTIVES[config["objective"]]}.
{_hidden(config)}
{parts}

{_data(result)}
- {config["steps"]:,} steps, {result["windows_seen"]:,} windows,
  {result["train_minutes"]:g} minutes; the last checkpoint, none was chosen by score.
- AdamW, peak learning rate {config["learning_rate"]:g}, seed {config["seed"]}.
- Machine: {machine}, torch {environment["packages"]["torch"]}.
- Final validation losses on held-out patients: {", ".join(losses)}.

Command: `accelerate launch scripts/{shareable_command(environment["command"])}`

![training and validation loss]({LOSS_CURVE})

## Scores

{_probes(result)}
"""


def _data(result: dict[str, Any]) -> str:
    config, recordings = result["config"], result["recordings"]
    names = [Path(folder).name for folder in config["corpora"]]
    if result["hours"] is None:
        real = f"streamed from {recordings['train_shards']} shards and kept nowhere"
        held_out = f"{recordings['held_out']:,} recordings, of the shards' split `validation`"
    else:
        real = f"{result['hours']:g} h, {recordings['train']:,} recordings trained on"
        held_out = f"{recordings['held_out']:,} recordings"
        if recordings["held_out"]:
            held_out += f", those of {config['held_out_fraction']:.0%} of the CirCor patients"
    lines = [f"- Real data, {real}:"]
    counts = result.get("recordings_of_corpora", {})
    for name in names:
        count = f": {counts[name]:,} recordings" if name in counts else ""
        lines.append(f"  - {CORPORA.get(name, name)}{count}")
    lines.append(f"- Held out: {held_out}.")
    if set(names) <= set(CORPORA):
        lines.append("- No PASCAL recording was trained on.")
    if config["probe_pascal"]:
        lines.append("- PASCAL recordings were probed now and then to watch the run.")
    if result["hours"] is not None:
        lines.append(f"- Corpus SHA-256 (decoded samples): `{result['corpus_sha256']}`")
    return "\n".join(lines)


def _probes(result: dict[str, Any]) -> str:
    start, final = result["start"] or {}, result["final"]
    probes = [name.split("/")[1] for name in final if name.startswith("probe/") and "/all" in name]
    lines = []
    if probes:
        lines = [
            "Linear probe of all frozen layers, recording_uar in grouped folds, before and after:",
            "",
            "| probe | random weights | pre-trained |",
            "|---|---|---|",
        ]
        for probe in probes:
            before = start.get(f"probe/{probe}/all")
            was = "" if before is None else f"{before:.3f}"
            lines.append(f"| {probe} | {was} | {final[f'probe/{probe}/all']:.3f} |")
        lines.append("")
    lines.append(
        "`benchmarks/results/` of the hb_ssl repository holds more scores of the backbone that "
        "ships in\nthe package: `foundation_model.md`, `circor_transfer.md`, `ablations.md`."
    )
    return "\n".join(lines)


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
