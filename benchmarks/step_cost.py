"""What a training step costs, and what was tried to make it cheaper.

    OMP_NUM_THREADS=1 python benchmarks/step_cost.py [--whisper DIR]

CPU milliseconds a window for forward and backward of the bundled AST backbone, and of a Whisper
encoder, with one thing changed at a time: the smallest of three steps, so that other programs
matter little. Nothing learns here. Writes ``benchmarks/results/step_cost.{json,md}``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from hb_ssl.cli import run_command
from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.files import write_json_atomic, write_text_atomic
from hb_ssl.models.backbones import family_of, load_feature_extractor, locate_backbone
from hb_ssl.models.classifier import adapt, build_classifier
from hb_ssl.models.heads import drop_tokens
from hb_ssl.runs import describe_environment

RESULTS = Path(__file__).resolve().parent / "results"
RECIPE: dict[str, Any] = {
    "precision": "bf16", "attention": "eager", "dropout": 0.0, "keep_fraction": 1.0,
    "layers": None, "adaptation": "lora",
}  # fmt: skip
# what the table says: what differs from RECIPE
AST: dict[str, dict[str, Any]] = {
    "LoRA on all layers, bf16, eager attention, no dropout": {},
    "with LoRA dropout 0.05": {"dropout": 0.05},
    "with SDPA attention (the library's default)": {"attention": "sdpa"},
    "in float32": {"precision": "no"},
    "in float32 with SDPA attention": {"precision": "no", "attention": "sdpa"},
    "with 40 % of the tokens (`keep_fraction`, in the fast recipe)": {"keep_fraction": 0.4},
    "LoRA on the last two of four layers (not built)": {"layers": 2},
    "both of these (not built)": {"keep_fraction": 0.4, "layers": 2},
    "all weights train": {"adaptation": "full"},
}
WHISPER: dict[str, dict[str, Any]] = {
    "LoRA on all layers, float32, SDPA attention": {},
    "in bf16": {"precision": "bf16"},
    "in bf16 with eager attention": {"precision": "bf16", "attention": "eager"},
    "LoRA on the last two of four layers (not built)": {"layers": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whisper", help="folder of the Whisper-tiny encoder")
    whisper = parser.parse_args().whisper
    environment = describe_environment()
    environment["command"] = ["step_cost.py", *(["--whisper", "DIR"] if whisper else [])]
    rows = {"bundled AST backbone, batches of 32 windows of 5 s": cost_of("bundled", 5.0, 32, AST)}
    if whisper:
        common = {"precision": "no", "attention": "sdpa"}
        variants = {name: {**common, **changes} for name, changes in WHISPER.items()}
        rows["Whisper-tiny encoder, batches of 4 windows of 10 s"] = cost_of(
            whisper, 10.0, 4, variants
        )
    threads = torch.get_num_threads()
    content = {"environment": {**environment, "threads": threads}, "results": rows}
    write_json_atomic(RESULTS / "step_cost.json", content)
    write_text_atomic(RESULTS / "step_cost.md", table(content))
    print(table(content))


def cost_of(
    backbone: str, seconds: float, batch: int, variants: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """CPU milliseconds a window of each variant."""
    make_features = FeatureMaker(load_feature_extractor(locate_backbone(backbone)), seconds)
    windows = torch.randn(batch, make_features.window).numpy()
    inputs = {make_features.input_name: torch.from_numpy(make_features(windows))}
    return {
        name: step({**RECIPE, **changes}, backbone, inputs) for name, changes in variants.items()
    }


def step(options: dict[str, Any], backbone: str, inputs: dict[str, Any]) -> dict[str, float]:
    """Forward and backward in training, and forward in evaluation."""
    classifier: Any = build_classifier(backbone, list("abcd"))
    classifier.set_attn_implementation(options["attention"])
    if options["keep_fraction"] < 1:
        drop_tokens(classifier, options["keep_fraction"])
    num_layers = classifier.config.num_hidden_layers
    body = getattr(classifier, family_of(classifier.config).backbone_name)
    model: Any = adapt(classifier, options["adaptation"], 16, 32, options["dropout"])
    if options["layers"]:
        for layer in body.layers[: num_layers - options["layers"]]:
            layer.requires_grad_(False)
    batch = len(next(iter(inputs.values())))
    taken: dict[str, list[float]] = {"forward": [], "backward": [], "evaluation": []}
    for _ in range(4):
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=options["precision"] == "bf16"):
            started = time.process_time()
            loss = model(**inputs).logits.float().square().mean()
        between = time.process_time()
        loss.backward()
        taken["forward"].append(between - started)
        taken["backward"].append(time.process_time() - between)
        model.eval()
        started = time.process_time()
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=options["precision"] == "bf16"),
        ):
            model(**inputs)
        taken["evaluation"].append(time.process_time() - started)
    return {name: round(1000 * min(times[1:]) / batch, 2) for name, times in taken.items()}


def table(content: dict[str, Any]) -> str:
    """Markdown: one row a variant."""
    lines = [
        "# What a training step costs",
        "",
        f"CPU milliseconds a window, {content['environment']['threads']} thread(s). The first row "
        "is the recipe without `keep_fraction`; each other row changes what it says. Made by "
        "`benchmarks/step_cost.py`.",
    ]
    for name, rows in content["results"].items():
        lines += ["", f"## {name}", ""]
        lines += ["| | forward | backward | both | evaluation |", "|---|---|---|---|---|"]
        for variant, row in rows.items():
            both = row["forward"] + row["backward"]
            lines.append(
                f"| {variant} | {row['forward']:.1f} | {row['backward']:.1f} | {both:.1f} | "
                f"{row['evaluation']:.1f} |"
            )
    lines += [
        "",
        "Not built: adapting the last layers only, with the activations below them cached. Every "
        "epoch cuts other windows and augments them anew, so there is nothing to cache in training "
        "unless both are given up; what remains is the cheaper backward pass of the row above.",
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
