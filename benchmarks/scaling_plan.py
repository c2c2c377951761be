"""The arithmetic of docs/scaling.md: what pre-training on 100,000 hours would take.

    python benchmarks/scaling_plan.py

Takes what was measured from ``benchmarks/results/streaming.json`` and ``pretraining_speed.json``,
the bundled model's size from ``pretrain_pcg.json``, the work of a model from the code that counts
it, and the assumptions below, which all have a source.
Writes ``benchmarks/results/scaling_plan.json`` and the tables between the marks in docs/scaling.md.
"""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from hb_ssl.cli import run_command
from hb_ssl.files import read_json, with_text_between, write_json_atomic, write_text_atomic
from hb_ssl.models.wav2vec2 import small_wav2vec2_config
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import flops_per_pair
from hb_ssl.pretraining.wav2vec2 import Wav2Vec2Pretraining

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENT = REPOSITORY / "docs" / "scaling.md"
MARKS = ("<!-- made by benchmarks/scaling_plan.py -->", "<!-- end -->")

WINDOW_SECONDS = 5.0
# name -> value, unit, source
ASSUMPTIONS: dict[str, tuple[float, str, str]] = {
    "hours": (100_000, "h", "the question"),
    "passes": (10, "over the corpus", "ours; wav2vec 2.0 BASE went over its 960 h "
               f"{400_000 * 1.6 / 960:.0f} times, Whisper (Radford et al. 2022) over 680,000 h "
               "2 to 3 times"),
    "peak": (989e12, "FLOP/s a GPU", "NVIDIA H100 SXM data sheet, dense bf16"),
    "mfu": (0.20, "of the peak", "ours: between what BASE implies (`base mfu` below) and the 0.38 "
            "to 0.43 of Llama 3 (Grattafiori et al. 2024); to be measured first"),
    "gpus": (16, "GPUs", "2 nodes of 8"),
    "gpus_a_node": (8, "GPUs", "HGX H100"),
    "cpu_cores_a_gpu": (16, "cores", "usual for an H100 node"),
    "node_network": (50e9, "B/s a node", "one 400 Gbit/s port"),
    "batch_hours": (1.6, "h of audio a step", "wav2vec 2.0 BASE (Baevski et al. 2020)"),
    "storage_write": (1e9, "B/s", "a modest parallel file system or one NVMe disk"),
    "state_bytes": (12, "B a parameter", "fp32 weights and two Adam moments"),
    "failures": (419, "unexpected interruptions", "Llama 3 405B, 54 days on 16,384 H100 "
                 "(Grattafiori et al. 2024, section 3.3.4)"),
    "failure_gpu_hours": (54 * 24 * 16_384, "GPU h", "the same"),
    "chinchilla": (20, "tokens a parameter", "Hoffmann et al. 2022; of text"),
    "base_hours_seen": (400_000 * 1.6, "h", "wav2vec 2.0 BASE: 400,000 updates of 1.6 h, "
                        "95 M parameters"),
    "base_gpu_hours": (64 * 1.6 * 24, "V100 h", "wav2vec 2.0 BASE: 64 V100 for 1.6 days"),
    "v100_peak": (125e12, "FLOP/s", "NVIDIA V100 data sheet, fp16"),
    "raw_rate": (4000 * 2, "B/s of audio", "4 kHz, 16 bits: a digital stethoscope"),
}  # fmt: skip
SIZES = {  # of a wav2vec2 at 2 kHz: width, layers, heads
    "S": (384, 12, 6),
    "M": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1280, 48, 16),  # as XLS-R 1B
}


def main() -> None:
    content = plan(
        {name: value for name, (value, _, _) in ASSUMPTIONS.items()},
        read_json(RESULTS / "streaming.json"),
        read_json(RESULTS / "pretrain_pcg.json")["result"],
        read_json(RESULTS / "pretraining_speed.json")["results"]["bfloat16"]["median"],
    )
    write_json_atomic(RESULTS / "scaling_plan.json", content)
    text = DOCUMENT.read_text(encoding="utf-8")
    write_text_atomic(DOCUMENT, with_tables(text, content))
    print(tables(content))


def plan(
    a: dict[str, float], streaming: dict[str, Any], small: dict[str, Any], speed: dict[str, Any]
) -> dict[str, Any]:
    """All numbers, from assumptions ``a`` and three results files."""
    shards = streaming["shards"]["train"]
    once, usual, waveforms = (
        _streamed(streaming, objective, each)
        for objective, each in (("agreement", 1), ("agreement", 4), ("wav2vec2", 1))
    )
    shard_bytes = shards["bytes"] / shards["hours"] * a["hours"]
    seconds = a["hours"] * 3600
    # Recordings decoded, and made into log-mel whole: those that fill the pool, and one a pair.
    read = streaming["pool_recordings"] + once["windows"] / 2
    cpu_seconds = once["windows"] / once["windows_per_cpu_second"]
    decoding = read * shards["hours"] * 3600 / shards["recordings"] / cpu_seconds
    gpu_hours_a_failure = a["failure_gpu_hours"] / a["failures"]
    common = {
        "frames": seconds * 50,
        "windows": seconds / WINDOW_SECONDS,
        "shard_tb": shard_bytes / 1e12,
        "shards_of_256_mb": math.ceil(shard_bytes / 256e6),
        "raw_tb": a["raw_rate"] * seconds / 1e12,
        "write_cpu_hours": streaming["write_cpu_seconds"] / shards["hours"] * a["hours"] / 3600,
        "decode_cpu_hours_a_pass": seconds / decoding / 3600,
        "audio_hours_a_cpu_hour": decoding,
        "gpu_hours_a_failure": gpu_hours_a_failure,
        "hours_between_failures": gpu_hours_a_failure / a["gpus"],
        "chinchilla_parameters": seconds * 50 / a["chinchilla"],
        "base_frames_a_parameter": a["base_hours_seen"] * 3600 * 50 / 95e6,
    }
    config = PretrainConfig(**{**small["config"], "corpora": ["x"], "probe_pascal": None})
    tokens = 1 + (498 - config.num_mel_bins) // config.time_stride
    models = {"bundled": (small["parameters"], flops_per_pair(config, tokens) / 2, 20.0)}
    for name, shape in {"wav2vec2 2 kHz, XS": (192, 4, 4), **SIZES}.items():
        full = name if "wav2vec2" in name else f"wav2vec2 2 kHz, {name}"
        models[full] = (*work(small_wav2vec2_config(*shape), 2000), 50.0)
    models["wav2vec2-base 16 kHz"] = (*work(Wav2Vec2Config(), 16_000), 50.0)
    per_cpu = waveforms["windows_per_cpu_second"]
    base_flops = models["wav2vec2-base 16 kHz"][1]
    base_work = base_flops * a["base_hours_seen"] * 3600 / WINDOW_SECONDS
    common["base_mfu"] = base_work / (a["base_gpu_hours"] * 3600 * a["v100_peak"])
    rows = [
        _row(name, *model, a, common, shard_bytes, usual["windows_per_cpu_second"]
             if name == "bundled" else per_cpu)
        for name, model in models.items()
    ]  # fmt: skip
    measured = {
        "model_gflops_one_core": speed["model_gflops"],
        "windows_per_second_one_core": speed["windows_per_second"],
        "windows_per_cpu_second_log_mel": usual["windows_per_cpu_second"],
        "windows_per_cpu_second_waveform": per_cpu,
        "shard_bytes_an_hour": shards["bytes"] / shards["hours"],
    }
    return {"assumptions": a, "measured": measured, "common": common, "models": rows}


def _streamed(streaming: dict[str, Any], objective: str, each: int) -> dict[str, Any]:
    (row,) = [
        row for row in streaming["rows"]
        if (row["data"], row["copies"], row["objective"], row["pairs_per_recording"])
        == ("shards", 1, objective, each)
    ]  # fmt: skip
    return row


def work(config: Wav2Vec2Config, sampling_rate: int) -> tuple[int, float]:
    """Parameters of a wav2vec2, and floating-point operations of training on one window."""
    with torch.device("meta"):
        model = Wav2Vec2Pretraining(Wav2Vec2ForPreTraining(config), 0.65)
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, model.flops_per_pair(round(WINDOW_SECONDS * sampling_rate)) / 2


def _row(
    name: str,
    parameters: int,
    flops: float,
    frames_a_second: float,
    a: dict[str, float],
    common: dict[str, float],
    shard_bytes: float,
    windows_per_cpu_second: float,
) -> dict[str, Any]:
    total = flops * common["windows"] * a["passes"]
    gpu_hours = total / (a["peak"] * a["mfu"]) / 3600
    wall = gpu_hours / a["gpus"]
    windows_a_gpu = a["peak"] * a["mfu"] / flops
    cores = windows_a_gpu / windows_per_cpu_second
    # Where the processor can't keep up, it sets the pace, not the GPU.
    fed = min(1.0, a["cpu_cores_a_gpu"] / cores)
    frames = common["windows"] * WINDOW_SECONDS * frames_a_second * a["passes"]
    steps = a["hours"] * a["passes"] / a["batch_hours"]
    nodes = a["gpus"] / a["gpus_a_node"]
    reduce_seconds = 2 * (nodes - 1) / nodes * 4 * parameters / a["node_network"]
    step_seconds = wall * 3600 / fed / steps
    checkpoint = a["state_bytes"] * parameters
    write = checkpoint / a["storage_write"]
    between = common["hours_between_failures"] * 3600
    return {
        "model": name,
        "parameters": parameters,
        "gflops_a_window": flops / 1e9,
        "frames_a_parameter": frames / parameters,
        "total_flops": total,
        "gpu_hours": gpu_hours,
        "days": wall / 24,
        "windows_a_gpu_second": windows_a_gpu,
        "cores_a_gpu": cores,
        "days_as_fed": wall / 24 / fed,
        "read_mb_a_second": shard_bytes * a["passes"] / (wall * 3600 / fed) / 1e6,
        "steps": steps,
        "all_reduce_share": reduce_seconds / step_seconds,
        "checkpoint_gb": checkpoint / 1e9,
        "checkpoint_minutes": math.sqrt(2 * write * between) / 60,
        "failures": wall / fed / common["hours_between_failures"],
    }


def tables(content: dict[str, Any]) -> str:
    """Markdown tables of a plan."""
    common, measured = content["common"], content["measured"]
    lines = ["| assumed | value | unit | source |", "|---|---|---|---|"]
    for name, (value, unit, source) in ASSUMPTIONS.items():
        lines.append(f"| {name} | {short(value)} | {unit} | {source} |")
    lines += ["", "| measured here, one CPU core | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {short(value)} |" for name, value in measured.items()]
    lines += ["", "| corpus | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {short(value)} |" for name, value in common.items()]
    columns = [name for name in content["models"][0] if name != "model"]
    names = [row["model"] for row in content["models"]]
    lines += ["", "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for column in columns:
        cells = " | ".join(short(row[column]) for row in content["models"])
        lines.append(f"| {column.replace('_', ' ')} | {cells} |")
    return "\n".join(lines)


def with_tables(text: str, content: dict[str, Any]) -> str:
    """The document with its tables made anew."""
    return with_text_between(text, MARKS, tables(content))


def short(value: float) -> str:
    """Three digits that matter."""
    if value >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
