"""The pre-training loop: optimiser, validation, probes, logs and checkpoints."""

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import ASTModel, Wav2Vec2ForPreTraining

from hb_ssl.data.corpora import load_corpus
from hb_ssl.errors import UserError
from hb_ssl.files import cache_folder, write_json_atomic
from hb_ssl.models.pcg import pcg_config
from hb_ssl.models.wav2vec2 import load_wav2vec2, small_wav2vec2_config
from hb_ssl.pretraining.card import write_backbone_card
from hb_ssl.pretraining.checkpoint import read_checkpoint, save_backbone, save_checkpoint
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.inputs import LogMelInputs
from hb_ssl.pretraining.objectives import PretrainModel
from hb_ssl.pretraining.probe import (
    NUM_FOLDS,
    ProbeSet,
    embed,
    enough_groups,
    log_mel_statistics,
    make_probe_set,
    murmur_rows,
    pascal_rows,
    probe_scores,
)
from hb_ssl.pretraining.stream import StreamSampler
from hb_ssl.pretraining.wav2vec2 import LAST_GUMBEL_TEMPERATURE, Wav2Vec2Pretraining
from hb_ssl.pretraining.windows import PretrainData, generator, load_data, make_batch, train_sampler
from hb_ssl.runs import RESULT_FILE, describe_environment, open_run
from hb_ssl.utilisation import matmul_tflops

logger = logging.getLogger(__name__)


def learning_rate_at(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a half cosine to zero."""
    warmup = max(1, round(config.warmup_fraction * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def flops_per_pair(config: PretrainConfig, num_tokens: int) -> float:
    """Estimated floating-point operations of one pair in one step.

    Six per weight and token for forward and backward (Kaplan et al. 2020, section 2.1), two for
    the teacher; a pair bears its share of the step's simulated windows. Embeddings, attention
    products and heads are left out.
    """
    weights = 12 * config.num_layers * config.hidden_size**2
    student = config.keep_fraction * num_tokens * (2 if "agreement" in config.objective else 1)
    teacher = num_tokens if "distillation" in config.objective else 0
    simulated = config.simulated_batch * num_tokens if config.simulated_weight else 0
    return weights * (6 * (student + simulated / config.batch_pairs) + 2 * teacher)


def pretrain(config: PretrainConfig) -> Path:
    """Pre-trains a backbone and writes it to ``output_dir/backbone`` in Hugging Face format.

    The folder also holds config.yaml, history.json (losses, throughput, probes), metrics.json
    (the result), logs/ (TensorBoard) and checkpoints/.

    Raises:
        UserError: bad folders, or a run folder that holds another run.
    """
    folder = Path(config.output_dir)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    with open_run(folder, config.resume, config.overwrite, config) as finished:
        if finished:
            logger.info("%s is finished already", folder)
        else:
            _train(config, folder, accelerator)
        if accelerator.is_main_process:
            write_backbone_card(folder)
    return folder


def _train(config: PretrainConfig, folder: Path, accelerator: Accelerator) -> None:
    with accelerator.main_process_first():
        data = load_data(config)
    set_seed(config.seed)
    model = _build_model(config, data).train()  # a loaded checkpoint is in evaluation mode
    if accelerator.device.type == "cpu":
        # twice as fast as sdpa on short CPU sequences
        model.backbone.set_attn_implementation("eager")
    probes = _probe_sets(config, data) if accelerator.is_main_process else []
    with accelerator.main_process_first():
        state = read_checkpoint(folder)
    history: list[dict[str, Any]] = []
    if accelerator.is_main_process and state is None:
        history = [{"step": 0, **_probe_all(probes, model, data, baseline=True)}]
    optimiser = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), betas=(0.9, 0.98))
    first, seconds, readers = 0, 0.0, None
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, history, seconds = state["step"], state["history"], state["seconds"]
        readers = state["readers"]
        logger.info("resumed at step %d", first)
    model, optimiser = accelerator.prepare(model, optimiser)
    bare = accelerator.unwrap_model(model)
    rank = accelerator.process_index
    sampler = train_sampler(data, config, rank, accelerator.num_processes, readers)
    writer = (
        SummaryWriter(str(folder / "logs"), purge_step=first)
        if accelerator.is_main_process
        else None
    )
    flops = _flops_per_pair(config, data, bare) * accelerator.num_processes
    peak = config.peak_tflops or matmul_tflops(accelerator.device, config.mixed_precision)
    logger.info("peak of one device for matrix products: %.3g TFLOP/s", peak)
    sums: dict[str, float] = {}
    mark, since = time.monotonic(), 0
    bar = tqdm(
        total=config.steps, initial=first, desc="pretrain",
        disable=None if accelerator.is_main_process else True,
    )  # fmt: skip
    for step in range(first, config.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, config)
        rng = generator(config.seed, 2, step, rank)
        batch = make_batch(data, sampler, config, step, rng)
        with accelerator.autocast():
            parts = model(batch.to(accelerator.device), rng)
        accelerator.backward(parts["loss"])
        accelerator.clip_grad_norm_(model.parameters(), 3.0)
        optimiser.step()
        optimiser.zero_grad()
        done = step + 1
        if "distillation" in config.objective:
            # The teacher starts as a quick average, since the first weights mean nothing.
            bare.update_teacher(min(config.teacher_decay, 1 - 1 / (10 + 0.1 * done)))
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        since += 1
        bar.update()
        evaluated = done % config.eval_steps == 0 or done == config.steps
        if not (done % config.log_steps == 0 or evaluated):
            continue
        elapsed = time.monotonic() - mark
        seconds += elapsed
        pairs_per_second = since * batch.views.shape[1] * accelerator.num_processes / elapsed
        row: dict[str, Any] = {
            "step": done,
            **{f"train_{name}": round(value / since, 4) for name, value in sums.items()},
            "learning_rate": learning_rate_at(step, config),
            "windows_per_second": round(2 * pairs_per_second, 1),
            "model_gflops": round(pairs_per_second * flops / accelerator.num_processes / 1e9, 1),
            "train_seconds": round(seconds, 1),
            "windows_per_step": 2 * batch.views.shape[1] * accelerator.num_processes,
        }
        row["mfu"] = round(row["model_gflops"] / 1e3 / (peak * accelerator.num_processes), 4)
        if evaluated and accelerator.is_main_process:
            row |= _validate(config, data, bare, accelerator)
            row |= _probe_all(probes, bare, data)
        history.append(row)
        if evaluated and isinstance(sampler, StreamSampler):
            readers = gather_object([sampler.state()])
        if accelerator.is_main_process:
            _log(row, writer)
            if evaluated:
                write_json_atomic(folder / "history.json", history)
                save_backbone(
                    bare.backbone, data.inputs.extractor, folder / "backbone",
                    getattr(bare, "saved_config", None),
                )  # fmt: skip
                # Last: what is killed before it is done again, what is killed after it is there.
                save_checkpoint(folder, done, bare, optimiser, history, seconds, readers)
        accelerator.wait_for_everyone()
        sums, since, mark = {}, 0, time.monotonic()
    bar.close()
    if accelerator.is_main_process:
        assert writer is not None
        writer.close()
        write_json_atomic(folder / RESULT_FILE, _result(config, data, bare, history, seconds))


def _build_model(config: PretrainConfig, data: PretrainData) -> PretrainModel | Wav2Vec2Pretraining:
    """The backbone with its objective: from scratch, or a checkpoint to continue."""
    if config.objective == "wav2vec2":
        if config.backbone is not None:
            return Wav2Vec2Pretraining(
                load_wav2vec2(config.backbone), config.mask_fraction, LAST_GUMBEL_TEMPERATURE
            )
        shape = small_wav2vec2_config(config.hidden_size, config.num_layers, config.num_heads)
        return Wav2Vec2Pretraining(Wav2Vec2ForPreTraining(shape), config.mask_fraction)
    backbone = ASTModel(
        pcg_config(
            data.inputs.length, config.num_mel_bins, config.hidden_size, config.num_layers,
            config.num_heads, config.time_stride,
        )
    )  # fmt: skip
    return PretrainModel(
        backbone, config.objective, config.keep_fraction, config.temperature,
        config.distillation_weight, config.simulated_weight, config.murmur_weight,
    )  # fmt: skip


def _flops_per_pair(config: PretrainConfig, data: PretrainData, model: Any) -> float:
    if isinstance(model, Wav2Vec2Pretraining):
        return model.flops_per_pair(data.inputs.length)
    return flops_per_pair(config, model.num_tokens)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def _validate(
    config: PretrainConfig, data: PretrainData, model: torch.nn.Module, accelerator: Accelerator
) -> dict[str, float]:
    """Mean losses on held-out subjects, with the same windows and masks each time."""
    if len(data.held_out) < 4:
        return {}
    sampler = data.sampler(data.held_out, config.max_tempo_change, config.seed)
    model.eval()
    sums: dict[str, float] = {}
    batches = 4
    for number in range(batches):
        rng = generator(config.seed, 3, number)
        batch = make_batch(data, sampler, config, number, rng)
        with accelerator.autocast():
            parts = model(batch.to(accelerator.device), rng)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    model.train()
    return {f"validation_{name}": round(value / batches, 4) for name, value in sums.items()}


def _probe_sets(config: PretrainConfig, data: PretrainData) -> list[ProbeSet]:
    sets = []
    length = data.inputs.length
    rows = murmur_rows(data.corpus, data.murmurs, data.held_out)
    if enough_groups(rows):
        sets.append(make_probe_set("circor_murmur", data.features, rows, length))
    elif (data.murmurs >= 0).any():
        logger.warning("too few held-out patients with a known murmur for a probe; none is run")
    if config.probe_pascal:
        cache = cache_folder() / "corpora"
        corpus = load_corpus([config.probe_pascal], data.inputs.sampling_rate, cache)
        features = data.inputs.of_corpus(corpus, cache)
        rows, masks = pascal_rows(corpus, config.probe_pascal)
        if not enough_groups(rows):
            raise UserError(
                f"{config.probe_pascal}: too few labelled recordings for a probe; expected at "
                f"least {NUM_FOLDS} groups of each class, or leave probe_pascal out"
            )
        sets.append(make_probe_set("pascal", features, rows, length, masks))
    return sets


def _probe_all(
    probes: list[ProbeSet], model: torch.nn.Module, data: PretrainData, baseline: bool = False
) -> dict[str, Any]:
    """Probe scores of the backbone, and with ``baseline`` those of log-mel statistics too."""
    scores: dict[str, Any] = {}
    for probe in probes:
        scores |= probe_scores(probe, embed(model, probe.windows, data.inputs.normalise))
        if baseline and isinstance(data.inputs, LogMelInputs):
            made = probe_scores(probe, log_mel_statistics(probe.windows))
            scores |= {f"log_mel/{k.split('/')[0]}": v for k, v in made.items() if "/last" in k}
    return {f"probe/{name}": value for name, value in scores.items()}


def _log(row: dict[str, Any], writer: SummaryWriter | None) -> None:
    shown = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    logger.info("  ".join(f"{k} {v:.4g}" for k, v in shown.items()))
    if writer:
        for name, value in shown.items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()


def _result(
    config: PretrainConfig, data: PretrainData, model: Any, history: list, seconds: float
) -> dict[str, Any]:
    return {
        "final": history[-1],
        "start": history[0] if history[0]["step"] == 0 else None,
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "train_minutes": round(seconds / 60, 1),
        "windows_seen": config.steps * history[-1]["windows_per_step"],
        **data.describe(),
        "config": dataclasses.asdict(config),
        "environment": describe_environment(),
    }
