"""``hb-ssl``: one thin subcommand per verb. Heavy imports wait until a verb needs them."""

import argparse
import csv
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hb_ssl import __version__
from hb_ssl.errors import UserError, refused_by_system

OVERVIEW = """\
Classify heart sounds with self-supervised audio models.
A research and screening aid, not a diagnosis.

  hb-ssl data inspect DIR        what is in a folder of recordings, and what is wrong with it
  hb-ssl data download           fetch the PASCAL recordings (--source kaggle or challenge)
  hb-ssl data push DIR           put the recordings on the Hub as a dataset
  hb-ssl data shards DIR...      pack folders of audio into parquet shards for pre-training
  hb-ssl train                   fine-tune a backbone, score it, save it
  hb-ssl cv                      repeated grouped cross-validation, also of baselines
  hb-ssl evaluate RUN            score a saved classifier again, or on other recordings
  hb-ssl compare RUN RUN         is one run better than the other?
  hb-ssl predict FILES           classify recordings
  hb-ssl push RUN                put a finished run on the Hub as a model with its card
  hb-ssl export RUN OUT          write a classifier as ONNX
  hb-ssl report RUN              write report.html and report.md of a run
  hb-ssl predict-pascal DIR      answer the challenge's 247 unlabelled recordings
  hb-ssl score-pascal            the challenge's own scores of such answers

`hb-ssl VERB --help` shows examples and every option.
"""

EXAMPLES: dict[str, str] = {
    "train": """\
examples:
  hb-ssl train                                        simulated recordings, bundled backbone
  hb-ssl train --source ~/heartbeat-sounds            your copy of the PASCAL recordings
  hb-ssl train --config configs/wav2vec2_lora.yaml --epochs 5
  hb-ssl train --config runs/train/config.yaml --resume
on several devices:
  accelerate launch scripts/train.py --config configs/wav2vec2_lora.yaml""",
    "cv": """\
examples:
  hb-ssl cv --source ~/heartbeat-sounds --method extra_trees --output_dir runs/cv-trees
  hb-ssl cv --config configs/pcg_lora.yaml --label_mode set_b --output_dir runs/cv-b
  hb-ssl cv --config runs/cv-b/config.yaml --resume   go on after an interruption""",
    "evaluate": """\
examples:
  hb-ssl evaluate runs/train                          the run's own test recordings
  hb-ssl evaluate runs/train --source ~/other-clinic  every labelled recording there
  hb-ssl evaluate runs/train --full                   calibration, abstention, devices, damage
  hb-ssl evaluate runs/cv-b --full                    the same but damage: folds keep no model
  hb-ssl evaluate runs/cv-b --full --attach runs/b    and give it to the model in runs/b""",
    "compare": """\
examples:
  hb-ssl compare runs/cv-lora runs/cv-trees
  hb-ssl compare runs/cv-lora runs/cv-full --json difference.json

Both runs must have tested the same recordings in the same groups.""",
    "predict": """\
examples:
  hb-ssl predict heart.wav
  hb-ssl predict ~/recordings --model runs/train --csv answers.csv
  hb-ssl predict a.wav b.flac --json                  one JSON line a recording
  hb-ssl predict ~/recordings --csv answers.csv --resume   go on after an interruption
  hb-ssl predict ~/recordings --plot pictures         a picture of each, window by window
  hb-ssl predict heart.wav --model ORG/NAME --revision v2

`decision` is the answer; "inconclusive" means: record again. One unreadable file does not stop the
others: its row says why, and the exit code is 1.""",
    "report": """\
examples:
  hb-ssl report runs/train
  hb-ssl report runs/cv-trees""",
    "predict-pascal": """\
examples:
  hb-ssl predict-pascal ~/heartbeat-sounds --model-a runs/a --model-b runs/b --csv answers.csv

The models are trained with --label_mode set_a and --label_mode set_b.""",
    "score-pascal": """\
examples:
  hb-ssl score-pascal --reference evaluation.xlsx --predictions answers.csv
  hb-ssl score-pascal --reference labels.csv --predictions answers.csv --set b \\
      --train-manifest runs/b --json scores.json

--reference is the challenge's workbook (sheets "Dataset A", "Dataset B") or a CSV file,label.""",
    "inspect": """\
examples:
  hb-ssl data inspect ~/heartbeat-sounds
  hb-ssl data inspect ~/heartbeat-sounds --json > card.json""",
    "download": """\
examples:
  hb-ssl data download --source kaggle                needs `pip install 'hb-ssl[kaggle]'`
  hb-ssl data download --source challenge             the zips of the challenge's own page
  hb-ssl data download --source hub:ORG/NAME""",
    "push": """\
examples:
  hb-ssl push runs/train --repo ORG/NAME --dry-run     show the files and the card, upload nothing
  hb-ssl push runs/train --repo ORG/NAME --private
  hb-ssl push runs/train --repo ORG/NAME --revision v2 a branch, made if it does not exist
  hb-ssl push runs/train --repo ORG/NAME --adapter-only""",
    "export": """\
examples:
  hb-ssl export runs/train out
  hb-ssl export ORG/NAME out --int8 --measure ~/heartbeat-sounds
  hb-ssl predict heart.wav --model out --runtime onnx""",
    "data shards": """\
examples:
  hb-ssl data shards ~/circor ~/physionet --out ~/shards
  accelerate launch scripts/pretrain.py --config configs/pretrain_pcg.yaml --corpora ~/shards""",
    "data push": """\
examples:
  hb-ssl data push ~/heartbeat-sounds --repo ORG/NAME --i-may-share""",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code (0 fine, 1 some recordings failed, 2 bad input)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _dispatch(argv))


def run_command(command: Callable[[], int | None]) -> int:
    """Runs a command with one-line errors: exit code 2 for bad input, 130 for Ctrl-C."""
    rank = os.environ.get("RANK", "0")
    main_process = rank == "0"
    where = "" if main_process else f" in process {rank}"
    logging.basicConfig(
        level=logging.INFO if main_process else logging.ERROR, format="%(message)s", force=True
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    if not sys.stderr.isatty():
        # keeps logs readable
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for noisy in (
        "httpx",
        "httpx2",
        "urllib3",
        "huggingface_hub",
        "filelock",
        "fsspec",
        "matplotlib",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command() or 0
        sys.stdout.flush()  # a full disk shows here, not after the last line of Python
        return code
    except UserError as error:
        # one process of several can fail alone, and nobody else would say so
        print(f"error{where}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _forget_output()  # `hb-ssl ... | head` is no error
        return 0
    except KeyboardInterrupt:
        print("interrupted; --resume goes on with a run, or with predict --csv", file=sys.stderr)
        return 130
    except Exception as error:
        reason = refused_by_system(error)
        if reason is None:
            raise  # a bug: its traceback belongs into a report
        print(
            f"error{where}: {reason}; expected readable input and a writable place with free "
            "space, check the permissions and the disk",
            file=sys.stderr,
        )
        _forget_output()
        return 2


def _forget_output() -> None:
    """Drops what standard output still holds, which Python would try to write at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0
    if argv[0] == "--version":
        print(f"hb-ssl {__version__}")
        return 0
    verbs: dict[str, Callable[[list[str]], int | None]] = {
        "data": _data,
        "train": train,
        "cv": cross_validate,
        "evaluate": evaluate,
        "predict": predict,
        "report": report,
        "push": push,
        "export": export,
        "compare": compare,
        "predict-pascal": predict_pascal,
        "score-pascal": score_pascal,
    }
    if argv[0] not in verbs:
        raise UserError(f"unknown command '{argv[0]}'; expected one of {', '.join(verbs)}")
    return verbs[argv[0]](argv[1:])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=f"hb-ssl {prog}",
        description=description,
        epilog=EXAMPLES.get(prog) or EXAMPLES[prog.split()[-1]],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def train(argv: list[str]) -> None:
    """``hb-ssl train`` and ``scripts/train.py``."""
    from hb_ssl.config import DataConfig, ModelConfig, TrainConfig, parse_config
    from hb_ssl.report import write_report
    from hb_ssl.training import train as run_training

    configs = parse_config(
        [DataConfig, ModelConfig, TrainConfig],
        argv,
        prog="hb-ssl train",
        description="Fine-tune a pretrained backbone on heart sounds, score it, save it.",
        epilog=EXAMPLES["train"],
    )
    folder = run_training(*configs)
    _finish(folder, write_report)


def cross_validate(argv: list[str]) -> None:
    """``hb-ssl cv`` and ``scripts/cross_validate.py``."""
    from hb_ssl.config import (
        CrossValidationConfig,
        DataConfig,
        ModelConfig,
        TrainConfig,
        parse_config,
    )
    from hb_ssl.cross_validation import cross_validate as run_folds
    from hb_ssl.report import write_report

    configs = parse_config(
        [DataConfig, ModelConfig, TrainConfig, CrossValidationConfig],
        argv,
        prog="hb-ssl cv",
        description="Repeated grouped k-fold cross-validation of a recipe or a baseline.",
        epilog=EXAMPLES["cv"],
    )
    folder = run_folds(*configs)
    _finish(folder, write_report)


def _finish(folder: Path, write_report: Callable[[Path], Path]) -> None:
    from hb_ssl.files import read_json
    from hb_ssl.processes import processes
    from hb_ssl.scoring import summary_table

    if processes().is_main_process:
        metrics = read_json(folder / "metrics.json")
        if "recording" not in metrics:
            print(f"trained on every recording, so nothing is left to score: {folder / 'model'}")
            return
        report_file = write_report(folder)
        print(summary_table(metrics))
        print(f"report: {report_file}")


def evaluate(argv: list[str]) -> None:
    """``hb-ssl evaluate`` and ``scripts/evaluate_run.py``."""
    parser = _parser("evaluate", "Score a run's saved classifier.")
    parser.add_argument("run", help="folder of a finished `hb-ssl train` (or, --full, cv) run")
    parser.add_argument("--source", help="score all labelled recordings of this source instead")
    parser.add_argument("--batch_size", type=int, default=32, help="windows per device (32)")
    parser.add_argument("--full", action="store_true", help="how far the answers can be trusted")
    parser.add_argument("--risk", type=float, default=0.2, help="wrong answers to accept (0.2)")
    parser.add_argument("--attach", metavar="MODEL", help="calibrate this model with --full")
    arguments = parser.parse_args(argv)
    if arguments.full:
        _evaluate_fully(arguments)
        return
    if arguments.attach:
        raise UserError("--attach goes with --full; add --full")
    from hb_ssl.files import read_json
    from hb_ssl.processes import processes
    from hb_ssl.scoring import evaluate_run, summary_table

    folder = evaluate_run(arguments.run, arguments.source, arguments.batch_size)
    if processes().is_main_process:
        print(summary_table(read_json(folder / "metrics.json")))
        print(f"written to {folder}")


def _evaluate_fully(arguments: argparse.Namespace) -> None:
    if arguments.source:
        raise UserError("--full is about the run's own recordings; leave --source out")
    if not 0 < arguments.risk < 1:
        raise UserError(f"--risk {arguments.risk:g}: expected more than 0 and less than 1")
    from hb_ssl.full_evaluation import attach_to_model, evaluate_fully
    from hb_ssl.report import write_report

    print(f"written to {evaluate_fully(arguments.run, arguments.risk)}")
    if arguments.attach:
        print(f"calibrated: {attach_to_model(arguments.run, arguments.attach)}")
    print(f"report: {write_report(arguments.run)}")


def predict(argv: list[str]) -> int:
    """``hb-ssl predict``."""
    parser = _parser("predict", "Classify recordings. A screening aid, not a diagnosis.")
    parser.add_argument("files", nargs="+", help="audio files, or folders of them")
    parser.add_argument("--model", help="run folder, model folder or Hub repo (default: bundled)")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument(
        "--runtime", choices=("torch", "onnx", "onnx-int8"), default="torch",
        help="onnx and onnx-int8 run a folder made by `hb-ssl export` (torch)",
    )  # fmt: skip
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a line")
    output.add_argument("--csv", metavar="OUT", help="write a CSV file")
    parser.add_argument("--plot", metavar="DIR", help="write a picture of every recording there")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted --csv")
    arguments = parser.parse_args(argv)
    if arguments.resume and not arguments.csv:
        raise UserError("--resume goes with --csv; add --csv OUT")
    from tqdm import tqdm

    from hb_ssl.audio import find_audio_files
    from hb_ssl.batch import classify_files, picture_files
    from hb_ssl.files import write_csv_atomic
    from hb_ssl.inference import HeartSoundClassifier, locate_classifier
    from hb_ssl.journal import journal_of, model_files, resumable_rows

    files = find_audio_files(arguments.files)
    folder = locate_classifier(arguments.model, arguments.revision)
    classifier = HeartSoundClassifier.from_pretrained(folder, runtime=arguments.runtime)
    if classifier.preprocessing["synthetic"]:
        print(
            "warning: this classifier was trained on SYNTHETIC recordings; its answers mean "
            "nothing for real hearts",
            file=sys.stderr,
        )
    pictures = picture_files(files, Path(arguments.plot)) if arguments.plot else None

    def classify(some: Sequence[Path]) -> Iterator[dict[str, Any]]:
        return classify_files(classifier, some, pictures)

    rows = []
    if arguments.csv:
        about = {
            "model": model_files(folder),
            "runtime": arguments.runtime,
            "pictures": arguments.plot and str(Path(arguments.plot).resolve()),
        }
        answers = resumable_rows(arguments.csv, files, classify, about, arguments.resume)
    else:
        answers = classify(files)
    for row in tqdm(answers, total=len(files), desc="Classifying", disable=None):
        rows.append(row)
        if arguments.json:
            print(json.dumps(row), flush=True)
    if arguments.csv:
        write_csv_atomic(arguments.csv, rows)
        journal_of(arguments.csv).unlink(missing_ok=True)
        print(f"{len(rows)} rows written to {arguments.csv}", file=sys.stderr)
    elif not arguments.json:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    failed = sum(bool(row["error"]) for row in rows)
    if failed:
        print(f"{failed} of {len(rows)} recordings could not be classified", file=sys.stderr)
    return 1 if failed else 0


def report(argv: list[str]) -> None:
    """``hb-ssl report``."""
    parser = _parser("report", "Write report.html and report.md of a finished run.")
    parser.add_argument("run", help="folder of an `hb-ssl train` or `hb-ssl cv` run")
    arguments = parser.parse_args(argv)
    from hb_ssl.report import write_report

    print(f"report: {write_report(arguments.run)}")


def push(argv: list[str]) -> None:
    """``hb-ssl push`` and ``scripts/push_to_hub.py``."""
    parser = _parser("push", "Put a finished run on the Hub as a model, in one commit.")
    parser.add_argument("run", help="folder of a finished `hb-ssl train` run")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="model repo")
    parser.add_argument("--private", action="store_true", help="make a new repo private")
    parser.add_argument("--revision", help="branch to commit to (main)")
    parser.add_argument("--license", default="apache-2.0", help="the Hub's name of it (apache-2.0)")
    parser.add_argument(
        "--adapter-only", action="store_true", help="without the merged model; needs its base"
    )
    parser.add_argument("--dry-run", action="store_true", help="show it all, upload nothing")
    arguments = parser.parse_args(argv)
    import tempfile

    from hb_ssl.hub import CARD_FILE, bundle_files, make_bundle, push_run

    if not arguments.dry_run:
        done = push_run(
            arguments.run, arguments.repo, private=arguments.private, revision=arguments.revision,
            adapter_only=arguments.adapter_only, license_id=arguments.license,
        )  # fmt: skip
        print(f"{done.url} (commit {done.commit[:8]})")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_bundle(
            arguments.run, Path(temporary) / "bundle", arguments.repo, arguments.adapter_only,
            arguments.license,
        )  # fmt: skip
        for path in bundle_files(folder):
            print(f"{(folder / path).stat().st_size:>12,}  {path}")
        print(f"\nnothing was uploaded; {CARD_FILE}:\n")
        print((folder / CARD_FILE).read_text(encoding="utf-8"))


def export(argv: list[str]) -> None:
    """``hb-ssl export``."""
    parser = _parser("export", "Write a classifier as ONNX, and check that it answers the same.")
    parser.add_argument("model", metavar="RUN_OR_REPO", help="run folder, model folder or Hub repo")
    parser.add_argument("out", help="new folder")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument("--int8", action="store_true", help="also with weights rounded to 8 bits")
    parser.add_argument(
        "--measure", metavar="SOURCE",
        help="score every runtime on these labelled recordings (the run's test split of them)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    from hb_ssl.onnx_export import export_classifier, format_measurement, measure_export

    folder = export_classifier(
        arguments.model, arguments.out, revision=arguments.revision, int8=arguments.int8
    )
    print(f"written to {folder}")
    if arguments.measure:
        measured = measure_export(
            arguments.model, folder, arguments.measure, revision=arguments.revision
        )
        print(format_measurement(measured))


def compare(argv: list[str]) -> None:
    """``hb-ssl compare``."""
    parser = _parser("compare", "Compare two runs on the people they were both tested on.")
    parser.add_argument("runs", nargs=2, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers as JSON")
    arguments = parser.parse_args(argv)
    from hb_ssl.evaluation.compare import compare_runs, format_comparison
    from hb_ssl.files import write_json_atomic

    result = compare_runs(*arguments.runs)
    print(format_comparison(result))
    if arguments.json:
        write_json_atomic(arguments.json, result)


def predict_pascal(argv: list[str]) -> int:
    """``hb-ssl predict-pascal``."""
    parser = _parser("predict-pascal", "Classify the challenge's unlabelled recordings.")
    parser.add_argument("source", help="a folder, or kaggle, challenge, hub:ORG/NAME")
    parser.add_argument("--model-a", help="run folder, model folder or Hub repo for set A")
    parser.add_argument("--model-b", help="the same for set B")
    parser.add_argument("--csv", metavar="FILE", required=True, help="the CSV file to write")
    arguments = parser.parse_args(argv)
    from hb_ssl.challenge import predict_unlabelled
    from hb_ssl.files import write_csv_atomic

    rows = predict_unlabelled(arguments.source, arguments.model_a, arguments.model_b)
    write_csv_atomic(arguments.csv, rows)
    print(f"{len(rows)} rows written to {arguments.csv}", file=sys.stderr)
    return 1 if any(row["error"] for row in rows) else 0


def score_pascal(argv: list[str]) -> None:
    """``hb-ssl score-pascal``."""
    parser = _parser("score-pascal", "The official scores of the PASCAL challenge.")
    parser.add_argument("--reference", required=True, help="workbook .xlsx or CSV file,label")
    parser.add_argument("--predictions", required=True, help="CSV file,prediction")
    parser.add_argument("--set", choices=("a", "b"), help="score this set alone")
    parser.add_argument(
        "--sheet-compatible", action="store_true", help="repeat the published sheet's own F-score"
    )
    parser.add_argument(
        "--train-manifest", action="append", default=[], metavar="FILE",
        help="splits.json, run folder or CSV of the training recordings; may be given twice",
    )  # fmt: skip
    parser.add_argument("--json", metavar="OUT", help="also write the scores as JSON")
    arguments = parser.parse_args(argv)
    from hb_ssl.evaluation.pascal_scorer import format_challenge_scores
    from hb_ssl.evaluation.pascal_scorer import score_pascal as score
    from hb_ssl.files import write_json_atomic

    result = score(
        arguments.reference,
        arguments.predictions,
        (arguments.set,) if arguments.set else None,
        arguments.sheet_compatible,
        arguments.train_manifest,
    )
    print(format_challenge_scores(result))
    if arguments.json:
        write_json_atomic(arguments.json, result)


def _data(argv: list[str]) -> None:
    verbs = {
        "inspect": inspect_data,
        "download": download_data,
        "push": push_data,
        "shards": shard_data,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print("hb-ssl data inspect|download|push|shards; see `hb-ssl data VERB --help`")
        return
    if argv[0] not in verbs:
        raise UserError(f"unknown command 'data {argv[0]}'; expected one of {', '.join(verbs)}")
    verbs[argv[0]](argv[1:])


def inspect_data(argv: list[str]) -> None:
    """``hb-ssl data inspect``."""
    parser = _parser("data inspect", "Counts, duplicates, groups and problems of a source.")
    parser.add_argument("source", help="a folder, or synthetic, kaggle, challenge, hub:ORG/NAME")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args(argv)
    from hb_ssl.config import DataConfig
    from hb_ssl.data.duplicates import find_duplicates
    from hb_ssl.data.groups import assign_groups
    from hb_ssl.data.inspect import format_inspection, inspect_recordings
    from hb_ssl.data.task import load_recordings

    listed = load_recordings(arguments.source, DataConfig().num_synthetic)
    duplicates = find_duplicates(listed.recordings)
    groups = assign_groups(listed.recordings, duplicates)
    card = inspect_recordings(listed, duplicates, groups)
    print(json.dumps(card, indent=2) if arguments.json else format_inspection(card))


def download_data(argv: list[str]) -> None:
    """``hb-ssl data download``."""
    parser = _parser("data download", "Fetch recordings into the cache and say where they are.")
    parser.add_argument("--source", required=True, help="kaggle, challenge or hub:ORG/NAME")
    arguments = parser.parse_args(argv)
    from hb_ssl.data.sources import resolve_source

    print(resolve_source(arguments.source))


def push_data(argv: list[str]) -> None:
    """``hb-ssl data push``."""
    parser = _parser("data push", "Put a folder of recordings on the Hub as parquet.")
    parser.add_argument("source", help="folder with the recordings")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="dataset repo")
    parser.add_argument("--public", action="store_true", help="let everybody see a new repo")
    parser.add_argument(
        "--i-may-share", action="store_true", help="yes, I have the right to share these recordings"
    )
    arguments = parser.parse_args(argv)
    from hb_ssl.data.hub_dataset import push_dataset
    from hb_ssl.data.pascal import list_recordings
    from hb_ssl.data.sources import resolve_source

    listed = list_recordings(resolve_source(arguments.source))
    url = push_dataset(
        listed, arguments.repo, private=not arguments.public, i_may_share=arguments.i_may_share
    )
    print(url)


def shard_data(argv: list[str]) -> None:
    """``hb-ssl data shards``."""
    parser = _parser("data shards", "Pack folders of audio into parquet shards for pre-training.")
    parser.add_argument("folders", nargs="+", help="folders of audio, searched recursively")
    parser.add_argument("--out", required=True, help="new folder for the shards")
    parser.add_argument("--shard-mb", type=float, default=256.0, help="MB of audio a shard (256)")
    parser.add_argument(
        "--held-out-fraction", type=float, default=0.2,
        help="share of known subjects that go whole into the split `validation` (0.2)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    from hb_ssl.data.shards import SPLITS, write_shards

    summary = write_shards(
        arguments.folders, arguments.out, arguments.shard_mb, arguments.held_out_fraction
    )
    for split in SPLITS:
        if split in summary:
            part = summary[split]
            print(
                f"{split}: {part['recordings']} recordings, {part['hours']:g} h, "
                f"{part['bytes'] / 1e6:.1f} MB in {part['shards']} shards"
            )
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
