"""Fine-tuning the plain Hugging Face way: what ``benchmarks/finetuning_speed.py`` compares with.

    python benchmarks/plain_finetuning.py --manifest recordings.csv --backbone DIR --output out.json

A stock ``Trainer`` on ``AutoModelForAudioClassification``: every clip is decoded and resampled by
librosa each time it is drawn, whole, and padded to the longest of its batch (or to whatever length
the feature extractor insists on). Nothing of hb_ssl is imported. The columns of the manifest are
``path``, ``label`` and ``part`` (train or validation).
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import datasets
import librosa
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import balanced_accuracy_score
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
    set_seed,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--eval_batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--label_smoothing", type=float, default=0.0)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--lora_rank", type=int, required=True)
    parser.add_argument("--lora_alpha", type=int, required=True)
    parser.add_argument("--lora_dropout", type=float, default=0.0)
    parser.add_argument("--lora_targets", nargs="+")
    parser.add_argument("--lora_heads", nargs="+", default=["classifier"])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--random_weights", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    data = datasets.load_dataset("csv", data_files=arguments.manifest, split="train")
    labels = sorted(set(data["label"]))
    parts = {
        part: data.filter(lambda row, part=part: row["part"] == part)
        for part in ("train", "validation")
    }
    extractor = AutoFeatureExtractor.from_pretrained(arguments.backbone)
    rate = extractor.sampling_rate
    pads = isinstance(extractor, Wav2Vec2FeatureExtractor)

    def decode(rows: dict) -> dict:
        return {
            "audio": [librosa.load(path, sr=rate)[0] for path in rows["path"]],
            "labels": [labels.index(label) for label in rows["label"]],
        }

    def collate(rows: list[dict]) -> dict:
        clips = [row["audio"] for row in rows]
        # Log-mel extractors pad or cut to a length of their own; wav2vec2's does what it is told.
        padding = {"padding": True} if pads else {}
        made = extractor(clips, sampling_rate=rate, return_tensors="pt", **padding)
        return {**made, "labels": torch.tensor([row["labels"] for row in rows])}

    class_names = list(parts["train"]["label"])
    for part in parts.values():
        part.set_transform(decode)
    parts["train"][0]  # librosa imports most of itself at its first use, which is not timed
    set_seed(arguments.seed)
    config = AutoConfig.from_pretrained(arguments.backbone)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    if arguments.random_weights:
        model = AutoModelForAudioClassification.from_config(config)
    else:
        model = AutoModelForAudioClassification.from_pretrained(
            arguments.backbone, config=config, ignore_mismatched_sizes=True, use_safetensors=True
        )
    lora = LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_targets,
        modules_to_save=arguments.lora_heads,
    )
    model = get_peft_model(model, lora)
    counts = np.bincount([labels.index(label) for label in class_names])
    weights = torch.tensor(counts.sum() / (len(labels) * counts), dtype=torch.float32)

    def weighted_loss(outputs, targets, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(
            outputs.logits.float(),
            targets,
            weights.to(targets.device),
            label_smoothing=arguments.label_smoothing,
        )

    def scores(prediction) -> dict[str, float]:
        guesses = prediction.predictions.argmax(axis=1)
        return {"uar": float(balanced_accuracy_score(prediction.label_ids, guesses))}

    with tempfile.TemporaryDirectory() as scratch:
        validated = len(parts["validation"]) > 0
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=arguments.epochs,
                max_steps=arguments.max_steps,
                per_device_train_batch_size=arguments.batch_size,
                per_device_eval_batch_size=arguments.eval_batch_size,
                learning_rate=arguments.learning_rate,
                weight_decay=arguments.weight_decay,
                warmup_steps=0.1,
                lr_scheduler_type="cosine",
                bf16=arguments.bf16,
                use_cpu=not torch.cuda.is_available(),
                eval_strategy="epoch" if validated else "no",
                save_strategy="epoch",
                logging_strategy="epoch",
                save_total_limit=2,
                load_best_model_at_end=validated,
                metric_for_best_model="uar" if validated else None,
                seed=arguments.seed,
                label_names=["labels"],
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available(),
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=parts["train"],
            eval_dataset=parts["validation"] if validated else None,
            data_collator=collate,
            compute_metrics=scores,
            compute_loss_func=weighted_loss,
        )
        started, used = time.perf_counter(), time.process_time()
        trainer.train()
        result = {
            "train_seconds": time.perf_counter() - started,
            "train_cpu_seconds": time.process_time() - used,
            "train_recordings": len(parts["train"]),
            "epochs": trainer.state.epoch,
            "steps": trainer.state.global_step,
            "validation_uar_by_epoch": [
                row["eval_uar"] for row in trainer.state.log_history if "eval_uar" in row
            ],
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    Path(arguments.output).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
