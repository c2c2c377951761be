"""Write a classifier as ONNX, check that it answers the same, and measure what 8 bits cost."""

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hb_ssl.config import DataConfig
from hb_ssl.data.splits import read_split
from hb_ssl.data.task import HeartSoundTask, prepare_task
from hb_ssl.errors import UserError
from hb_ssl.evaluation.metrics import score_recordings
from hb_ssl.files import write_json_atomic
from hb_ssl.inference import HeartSoundClassifier, Prediction, Runtime, locate_classifier
from hb_ssl.models.classifier import PREPROCESSING_FILE
from hb_ssl.onnx_model import INT8_FILE, ONNX_FILE, OUTPUT_NAME

logger = logging.getLogger(__name__)

OPSET = 17
MAX_DIFFERENCE = 1e-4  # of any probability, between torch and ONNX
PARITY_WINDOWS = 16
PARITY_FILE, MEASUREMENT_FILE = "parity.json", "measurement.json"
MEASURED = ("recording_uar", "recording_macro_f1", "recording_accuracy")


def export_classifier(
    run_or_repo: str | Path, out: str | Path, revision: str | None = None, int8: bool = False
) -> Path:
    """Writes ``model.onnx`` (any number of windows at a time) and all that inference needs.

    The result is used with ``HeartSoundClassifier.from_pretrained(out, runtime="onnx")``. It is
    written only if its probabilities equal torch's to ``MAX_DIFFERENCE``.

    Args:
        run_or_repo: see ``HeartSoundClassifier.from_pretrained``.
        out: new or empty folder.
        revision: branch, tag or commit of a Hub repo.
        int8: also write ``model.int8.onnx``: weights of matrix products as 8-bit integers.

    Returns:
        The folder.

    Raises:
        UserError: onnx is missing, ``out`` is not empty, or the answers differ.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; choose a new folder")
    try:
        import onnx  # noqa: F401  (torch's exporter wants it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            "export needs onnx and onnxruntime; install them with `pip install 'hb-ssl[onnx]'`"
        ) from error
    source = locate_classifier(run_or_repo, revision)
    classifier = HeartSoundClassifier.from_pretrained(source)
    final = out.resolve()  # `.` has no name
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name in ("config.json", "preprocessor_config.json", PREPROCESSING_FILE):
            shutil.copyfile(source / name, temporary / name)
        _export(classifier, temporary / ONNX_FILE)
        parity = {"torch_to_onnx": _largest_difference(classifier, temporary, "onnx")}
        if parity["torch_to_onnx"] > MAX_DIFFERENCE:
            raise UserError(
                f"{run_or_repo}: its ONNX version answers differently (probabilities differ by "
                f"{parity['torch_to_onnx']:.2g}, expected at most {MAX_DIFFERENCE:g}); nothing was "
                "written, please report the backbone"
            )
        if int8:
            _round_weights(temporary)
            parity["torch_to_onnx_int8"] = _largest_difference(classifier, temporary, "onnx-int8")
        about = {"windows": PARITY_WINDOWS, "max_probability_difference": parity}
        write_json_atomic(temporary / PARITY_FILE, about)
        temporary.rename(final)
    except OSError as error:
        raise UserError(
            f"{out}: can't be written ({error.strerror}); choose a writable folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


class _Logits(nn.Module):
    def __init__(self, model: nn.Module, input_name: str) -> None:
        super().__init__()
        self.model = model
        self.input_name = input_name

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model(**{self.input_name: features}).logits


def _export(classifier: HeartSoundClassifier, file: Path) -> None:
    make_features = classifier.make_features
    name = make_features.input_name
    example = torch.from_numpy(make_features(_example_windows(make_features.window, 2)))
    # Without eval() the exporter would leave the model in training mode, dropout and all.
    network = _Logits(classifier.model, name).eval()
    with warnings.catch_warnings():
        # The tracer warns about Python ifs on shapes; shapes never change here but for the batch.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(file),
            input_names=[name],
            output_names=[OUTPUT_NAME],
            dynamic_axes={name: {0: "windows"}, OUTPUT_NAME: {0: "windows"}},
            opset_version=OPSET,
            dynamo=False,  # the other exporter wants one more package and fixes the batch
        )


def _round_weights(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    root_level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it logs advice on the root logger
    try:
        quant_pre_process(str(folder / ONNX_FILE), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(
            str(prepared),
            str(folder / INT8_FILE),
            weight_type=QuantType.QInt8,
            per_channel=True,
            # 8-bit convolutions are slower than float ones on a CPU.
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    finally:
        logging.getLogger().setLevel(root_level)
        prepared.unlink(missing_ok=True)


def _example_windows(window: int, count: int) -> np.ndarray:
    """Noise ``[count, window]`` of several loudnesses and colours, the same every time."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((count, window))
    colours = np.where(np.arange(count)[:, None] % 2, noise, np.cumsum(noise, axis=1) / 30)
    return (colours * np.geomspace(1e-3, 0.3, count)[:, None]).astype(np.float32)


def _largest_difference(classifier: HeartSoundClassifier, folder: Path, runtime: Runtime) -> float:
    other = HeartSoundClassifier.from_pretrained(folder, runtime=runtime)
    windows = _example_windows(classifier.make_features.window, PARITY_WINDOWS)
    mine, theirs = (
        np.stack([c.probabilities_of(row[None]) for row in c.window_logits(windows)])
        for c in (classifier, other)
    )
    return float(np.abs(mine - theirs).max())


def measure_export(
    run_or_repo: str | Path, exported: str | Path, source: str, revision: str | None = None
) -> dict[str, Any]:
    """Scores torch and the exported runtimes on the same labelled recordings.

    Args:
        run_or_repo: what was exported. Of a run on the same source only the test split is scored.
        exported: made by ``export_classifier``.
        source: labelled recordings (see ``DataConfig.source``).
        revision: branch, tag or commit of a Hub repository.

    Returns:
        The measurement, which is also in ``exported/measurement.json``: for every runtime the
        scores, the share of recordings with torch's answer and the largest difference of a
        probability.

    Raises:
        UserError: the source has other classes, or holds none of the recordings.
    """
    exported = Path(exported)
    classifier = HeartSoundClassifier.from_pretrained(run_or_repo, revision)
    defaults = DataConfig()
    task = prepare_task(
        source,
        classifier.preprocessing["label_mode"],
        defaults.num_synthetic,
        defaults.keep_contradictions,
    )
    ids, chosen = _recordings_to_measure(Path(run_or_repo), task)
    runtimes: dict[str, HeartSoundClassifier] = {"torch": classifier}
    if (exported / ONNX_FILE).is_file():
        runtimes["onnx"] = HeartSoundClassifier.from_pretrained(exported, runtime="onnx")
    if (exported / INT8_FILE).is_file():
        runtimes["onnx-int8"] = HeartSoundClassifier.from_pretrained(exported, runtime="onnx-int8")
    answers = {
        name: _answers(runtime, [task.recordings[i].path for i in ids], name)
        for name, runtime in runtimes.items()
    }
    labels = {item.recording_id: item.label for item in task.items}
    truth = [labels[i] for i in ids]
    reference = answers["torch"]
    result: dict[str, Any] = {
        "recordings": len(ids),
        "chosen": chosen,
        "synthetic": task.synthetic,
        "runtimes": {},
    }
    for name, own in answers.items():
        rows = [{"label": label, "prediction": answer.label} for label, answer in zip(truth, own)]
        scores = score_recordings(rows, classifier.labels)
        file = {"onnx": ONNX_FILE, "onnx-int8": INT8_FILE}.get(name)
        result["runtimes"][name] = {
            **{metric: scores[metric] for metric in MEASURED},
            "same_answer": float(np.mean([a.label == b.label for a, b in zip(own, reference)])),
            "max_probability_difference": max(
                abs(a.probabilities[label] - b.probabilities[label])
                for a, b in zip(own, reference)
                for label in classifier.labels
            ),
            "megabytes": None if file is None else (exported / file).stat().st_size / 1e6,
        }
    write_json_atomic(exported / MEASUREMENT_FILE, result)
    return result


def _recordings_to_measure(run: Path, task: HeartSoundTask) -> tuple[list[str], str]:
    known = [item.recording_id for item in task.items]
    if (run / "splits.json").is_file():
        test = [i for i in read_split(run / "splits.json")["test"] if i in set(known)]
        if test:
            return test, "test split of the run"
    return known, "all labelled recordings (the classifier may have learned from some)"


def _answers(classifier: HeartSoundClassifier, files: Sequence[str], name: str) -> list[Prediction]:
    bar = tqdm(classifier.predict_each(files), total=len(files), desc=name, disable=None)
    answers = []
    for answer in bar:
        if isinstance(answer, UserError):
            raise answer
        answers.append(answer)
    return answers


def format_measurement(result: dict[str, Any]) -> str:
    """The measurement as a Markdown table."""
    lines = [
        "| runtime | UAR | macro-F1 | accuracy | same answer | max difference | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["runtimes"].items():
        size = "-" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        scores = " | ".join(f"{row[metric]:.3f}" for metric in MEASURED)
        lines.append(
            f"| {name} | {scores} | {row['same_answer']:.1%} | "
            f"{row['max_probability_difference']:.2g} | {size} |"
        )
    note = f"{result['recordings']} recordings: {result['chosen']}."
    if result["synthetic"]:
        note += " SYNTHETIC recordings."
    return "\n".join([*lines, "", note])
