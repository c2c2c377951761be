"""Corpora as parquet shards: written once from folders of audio, read as a stream.

A shard holds the untouched bytes of some hundred recordings, drawn at random from all of them, so
that a run which reads shard after shard sees the corpus well mixed.
"""

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, IterableDataset, Value, load_dataset
from tqdm import tqdm

from hb_ssl.audio import read_audio_info
from hb_ssl.data.corpora import (
    CorpusFile,
    circor_patients,
    is_held_out,
    list_corpus_files,
    murmur_heard,
)
from hb_ssl.errors import UserError, first_line
from hb_ssl.files import folder_written_whole, write_json_atomic

logger = logging.getLogger(__name__)

# Audio's own encoder wants torchcodec; its storage type takes the bytes as they are.
FEATURES = Features(
    {
        "recording_id": Value("string"),
        "subject": Value("string"),
        "murmur": Value("string"),  # Present, Absent or null
        "sampling_rate": Value("int32"),
        "num_samples": Value("int64"),
        "audio": Audio(decode=False),
    }
)
SPLITS = ("train", "validation")
SUMMARY_FILE = "shards.json"
ROW_GROUP_BYTES = 4 * 2**20  # what a reader holds at a time, besides its pool
HUB_PREFIX = "hub:"


def write_shards(
    folders: Sequence[str | Path],
    output: str | Path,
    shard_mb: float = 256.0,
    held_out_fraction: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Packs folders of audio into ``train-*.parquet`` and ``validation-*.parquet``.

    Known subjects (CirCor patients) of the held-out share go whole into ``validation``. Files
    whose header can't be read are left out and logged by name.

    Args:
        folders: searched recursively.
        output: new folder; it appears whole or not at all.
        shard_mb: audio bytes in a shard, in units of 10^6; the last recording may go over it.
        held_out_fraction: share of the known subjects.
        seed: of the order of the recordings.

    Returns:
        Recordings, hours, bytes and shards of each split, as in ``shards.json``.

    Raises:
        UserError: ``shard_mb`` is not above 0, ``output`` exists, or a folder holds no audio.
    """
    output = Path(output)
    if not shard_mb > 0:
        raise UserError(f"shard_mb {shard_mb:g}: expected a number above 0")
    if output.exists():
        raise UserError(f"{output}: exists; expected a new folder, choose another one")
    files = list_corpus_files(folders)
    parts: dict[str, list[CorpusFile]] = {name: [] for name in SPLITS}
    for number in np.random.default_rng(seed).permutation(len(files)):
        file = files[number]
        parts[SPLITS[is_held_out(file.subject, held_out_fraction)]].append(file)
    summary: dict[str, Any] = {"shard_mb": shard_mb, "held_out_fraction": held_out_fraction}
    with folder_written_whole(output) as temporary:
        for split, members in parts.items():
            if members:
                summary[split] = _write_split(members, temporary, split, int(shard_mb * 1e6))
        write_json_atomic(temporary / SUMMARY_FILE, summary)
    return summary


def _write_split(
    files: list[CorpusFile], folder: Path, split: str, shard_bytes: int
) -> dict[str, Any]:
    totals = {"recordings": 0, "hours": 0.0, "bytes": 0, "shards": 0}
    rows = _rows(files, f"Writing {split}")
    row = next(rows, None)
    while row is not None:
        path = folder / f"{split}-{totals['shards']:06d}.parquet"
        temporary = path.with_name(f".{path.name}.tmp")
        size = held = 0
        group: list[dict[str, Any]] = []
        with pq.ParquetWriter(temporary, FEATURES.arrow_schema, compression="none") as writer:
            while row is not None and size < shard_bytes:
                group.append(row)
                length = len(row["audio"]["bytes"])
                size, held = size + length, held + length
                totals["recordings"] += 1
                totals["hours"] += row["num_samples"] / row["sampling_rate"] / 3600
                if held >= ROW_GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))
                    group, held = [], 0
                row = next(rows, None)
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))
        temporary.replace(path)
        totals["bytes"] += size
        totals["shards"] += 1
    totals["hours"] = round(totals["hours"], 4)
    return totals


def _rows(files: Sequence[CorpusFile], title: str) -> Iterator[dict[str, Any]]:
    patients = {t: circor_patients(t) for t in {file.table for file in files} if t}
    for file in tqdm(files, desc=title, unit="recording", disable=None):
        try:
            info = read_audio_info(file.path)
        except UserError as error:
            logger.warning("left out of the shards: %s", error)
            continue
        yield {
            "recording_id": file.recording_id,
            "subject": file.subject,
            "murmur": murmur_heard(patients[file.table], file.path.stem) if file.table else None,
            "sampling_rate": info.sampling_rate,
            "num_samples": info.num_samples,
            "audio": {"bytes": file.path.read_bytes(), "path": file.path.name},
        }


def is_shard_source(name: str) -> bool:
    """Whether a corpus is streamed: ``hub:ORG/NAME``, a glob, or a folder of parquet files."""
    if name.startswith(HUB_PREFIX) or glob.has_magic(name) or name.endswith(".parquet"):
        return True
    return any(Path(name).glob("*.parquet"))


def open_shards(sources: Sequence[str]) -> dict[str, IterableDataset]:
    """Opens shards for streaming; nothing but their schema is read.

    Args:
        sources: folders and globs of parquet files together, or one ``hub:ORG/NAME``. Files named
            ``validation*`` are the split ``validation``, all others ``train``.

    Returns:
        ``train``, and ``validation`` where there is one, with the columns of ``FEATURES`` that
        exist; ``audio`` is undecoded.

    Raises:
        UserError: nothing is there, folders of audio are among them, or there is no audio column.
    """
    names = ", ".join(sources)
    plain = [source for source in sources if not is_shard_source(source)]
    if plain:
        raise UserError(
            f"corpora {names}: {plain[0]} is no shard; expected audio folders alone or shards "
            "alone, make shards of it with `hb-ssl data shards`"
        )
    arguments: dict[str, Any] = {}
    if any(source.startswith(HUB_PREFIX) for source in sources):
        if len(sources) > 1:
            raise UserError(f"corpora {names}: expected one hub:ORG/NAME and nothing beside it")
        arguments["path"] = sources[0].removeprefix(HUB_PREFIX)
    else:
        arguments = {"path": "parquet", "data_files": _local_files(sources)}
    try:
        splits = load_dataset(streaming=True, **arguments)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{names}: can't be opened as shards ({first_line(error)}); expected parquet files "
            "with an `audio` column, or the Hub id of such a dataset"
        ) from error
    if "train" not in splits:
        raise UserError(f"{names}: has no split `train`, only {', '.join(splits)}; add one")
    return {name: _checked(splits[name], names) for name in SPLITS if name in splits}


def _local_files(sources: Sequence[str]) -> dict[str, list[str]]:
    paths: list[str] = []
    for source in sources:
        pattern = os.path.join(source, "*.parquet") if Path(source).is_dir() else source  # noqa: PTH118
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not found:
            raise UserError(f"{source}: no such shards; expected parquet files")
        paths += [str(Path(path).resolve()) for path in found]
    files: dict[str, list[str]] = {}
    for path in paths:
        split = "validation" if Path(path).name.startswith("validation") else "train"
        files.setdefault(split, []).append(path)
    return files


def _checked(dataset: IterableDataset, names: str) -> IterableDataset:
    columns = dataset.column_names or []
    if "audio" not in columns:
        raise UserError(
            f"{names}: has no column `audio` but {', '.join(columns) or 'none known'}; expected "
            "shards as `hb-ssl data shards` writes them"
        )
    wanted = [column for column in FEATURES if column in columns]
    return dataset.select_columns(wanted).cast_column("audio", Audio(decode=False))
