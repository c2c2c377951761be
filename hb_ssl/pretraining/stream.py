"""Training windows from shards: a bounded pool of recordings that slides over the stream.

Every process and every reader thread in it has shards of its own (``split_dataset_by_node``), whose
order changes with the epoch. A reader holds the last ``pool_recordings`` recordings of its shards,
draws a batch from them, takes in a few new recordings and drops the oldest. So the pool is the
shuffle buffer; but unlike that of `datasets`, whose content is lost on resume, it can be filled
again exactly: the state of a reader is where in the stream its oldest recording lies.
"""

import io
import itertools
import logging
import math
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile as sf
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from hb_ssl.audio import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE, resample
from hb_ssl.data.corpora import to_int16
from hb_ssl.errors import UserError, first_line
from hb_ssl.pretraining.features import Pairs, PairSampler, Windowed
from hb_ssl.pretraining.inputs import Inputs

logger = logging.getLogger(__name__)

MAX_SECONDS = 60.0  # of a longer recording, a random minute is taken each epoch
MAX_HELD_OUT = 512  # recordings of the split `validation` that are held in memory
START: dict[str, Any] = {"epoch": 0, "position": None, "batch": 0}


@dataclass(frozen=True)
class PooledRecording:
    """A decoded recording.

    Attributes:
        recording_id: as in the shard.
        subject: as in the shard; ``None`` makes it its own.
        murmur: 1 heard, 0 not, -1 unknown.
        num_samples: length at the inputs' rate.
        windows: to cut windows from.
        epoch: passes over the shards before it.
        position: state of the dataset from which it is the next recording.
    """

    recording_id: str
    subject: str | None
    murmur: int
    num_samples: int
    windows: Windowed
    epoch: int
    position: dict[str, Any] | None


class Pool:
    """Recordings in memory, cut like ``LogMelFrames``."""

    def __init__(self, recordings: Sequence[PooledRecording]) -> None:
        self._recordings = recordings
        self.counts = np.array([r.windows.counts[0] for r in recordings], dtype=np.int64)

    def window(self, index: int, start: int, length: int) -> np.ndarray:
        return self._recordings[index].windows.window(0, start, length)

    def random_window(
        self, index: int, length: int, max_tempo_change: float, rng: np.random.Generator
    ) -> np.ndarray:
        windows = self._recordings[index].windows
        return windows.random_window(0, length, max_tempo_change, rng)


def pool_batches(
    dataset: IterableDataset,
    inputs: Inputs,
    pool_recordings: int,
    num_pairs: int,
    new_recordings: int,
    max_tempo_change: float,
    seed: int,
    reader: int = 0,
    start: dict[str, Any] | None = None,
) -> Iterator[tuple[Pairs, dict[str, Any]]]:
    """Batches without end from the shards of one reader.

    Args:
        dataset: undecoded recordings, see ``hb_ssl.data.shards.open_shards``.
        inputs: what the backbone hears.
        pool_recordings: recordings held in memory.
        num_pairs: pairs in a batch, fewer if the pool has fewer subjects.
        new_recordings: taken in after every batch, at most ``pool_recordings``.
        max_tempo_change: see ``PairSampler``.
        seed: of the order of the shards, so the same for every reader, and of the windows.
        reader: number of this reader, so that each draws other windows.
        start: a state that this function gave; by default the beginning.

    Yields:
        Pairs, and the state that goes on behind them.

    Raises:
        UserError: the shards hold no recording that can be decoded.
    """
    state = start or START
    recordings = _recordings(dataset, inputs, seed, state["epoch"], state["position"])
    pool = deque(itertools.islice(recordings, pool_recordings))
    for number in itertools.count(state["batch"]):
        held = list(pool)
        subjects = [r.subject or r.recording_id for r in held]
        murmurs = np.array([r.murmur for r in held])
        sampler = PairSampler(
            Pool(held), range(len(held)), subjects, murmurs, inputs.length, max_tempo_change,
            seed + 1000 * reader,
        )  # fmt: skip
        pairs = sampler.batch(number, num_pairs)
        pool.extend(itertools.islice(recordings, new_recordings))
        for _ in range(new_recordings):
            pool.popleft()
        oldest = pool[0]
        yield pairs, {"epoch": oldest.epoch, "position": oldest.position, "batch": number + 1}


def _recordings(
    dataset: IterableDataset,
    inputs: Inputs,
    seed: int,
    epoch: int,
    position: dict[str, Any] | None,
) -> Iterator[PooledRecording]:
    while True:
        # Where the epoch is not 0, `datasets` shuffles the shards by its number alone.
        order = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
        dataset.set_epoch(1 + int(order))
        if position is not None:
            dataset.load_state_dict(position)
        whole, decoded = position is None, 0
        for row in dataset:
            recording = _decode(row, inputs, epoch, position)
            position = dataset.state_dict()
            if recording is not None:
                decoded += 1
                yield recording
        if whole and not decoded:
            raise UserError(
                "the shards of a reader hold no recording that can be decoded; check them, or "
                "write them again with `hb-ssl data shards`"
            )
        epoch, position = epoch + 1, None


def _decode(
    row: dict[str, Any], inputs: Inputs, epoch: int, position: dict[str, Any] | None
) -> PooledRecording | None:
    audio = row["audio"] or {}
    name = row.get("recording_id") or audio.get("path") or "a recording without a name"
    rng = np.random.default_rng([epoch, zlib.crc32(name.encode())])
    try:
        samples = decode_audio(audio.get("bytes") or b"", inputs.sampling_rate, rng)
    except (sf.LibsndfileError, RuntimeError, ValueError) as error:
        logger.warning("left out of the stream: %s (%s)", name, first_line(error))
        return None
    if len(samples) < inputs.min_samples:
        return None
    murmur = {"Present": 1, "Absent": 0}.get(row.get("murmur") or "", -1)
    windows = inputs.of_recordings([samples])
    return PooledRecording(name, row.get("subject"), murmur, len(samples), windows, epoch, position)


def decode_audio(content: bytes, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Mono samples ``[T]`` (int16) of a file's bytes; of a long file a random ``MAX_SECONDS``.

    Raises:
        sf.LibsndfileError: it is no audio.
        ValueError: it is empty, its rate is out of range, or it holds NaN or infinite samples.
    """
    with sf.SoundFile(io.BytesIO(content)) as file:
        rate = file.samplerate
        if not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
            raise ValueError(f"sampling rate {rate} Hz")
        limit = round(MAX_SECONDS * rate)
        if file.frames > limit:
            file.seek(int(rng.integers(file.frames - limit + 1)))
        waveform = file.read(limit, dtype="float32", always_2d=True).mean(axis=1)
    if not len(waveform):
        raise ValueError("no samples")
    if not np.isfinite(waveform).all():
        raise ValueError("NaN or infinite samples")
    return to_int16(resample(waveform, rate, sampling_rate))


def read_held_out(dataset: IterableDataset, inputs: Inputs) -> list[PooledRecording]:
    """The first ``MAX_HELD_OUT`` recordings of the split ``validation``, decoded."""
    decoded = (_decode(row, inputs, 0, None) for row in dataset)
    return list(itertools.islice((r for r in decoded if r is not None), MAX_HELD_OUT))


class StreamSampler:
    """The batches of one process, prepared by reader threads in turn.

    Which batch a step gets depends on the seed, the number of processes and of threads, and the
    step; ``state`` makes a resumed run go on with the very next one.

    Args:
        dataset: training recordings, not yet split.
        inputs: what the backbone hears.
        rank: number of this process.
        world: how many processes there are.
        threads: readers of this process; step ``s`` gets its batch from reader ``s % threads``.
        pool_recordings: recordings each of them holds.
        num_pairs: pairs in a batch.
        pairs_per_recording: pairs drawn for every recording taken in.
        max_tempo_change: see ``PairSampler``.
        seed: the same in every process.
        state: of a resumed run, what ``state`` said at its checkpoint.

    Raises:
        UserError: fewer shards than readers, a pool smaller than a batch, or another number of
            readers than the resumed run had.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        inputs: Inputs,
        rank: int,
        world: int,
        threads: int,
        pool_recordings: int,
        num_pairs: int,
        pairs_per_recording: int,
        max_tempo_change: float,
        seed: int,
        state: list[dict[str, Any]] | None = None,
    ) -> None:
        if dataset.num_shards < world * threads:
            raise UserError(
                f"{dataset.num_shards} shards for {world} processes with {threads} reader_threads: "
                "expected a shard for each; write more (a smaller --shard-mb) or read with fewer"
            )
        if pool_recordings < num_pairs:
            raise UserError(
                f"pool_recordings {pool_recordings}: expected at least batch_pairs ({num_pairs}), "
                "since a batch holds every recording once"
            )
        self.seed = seed + 1000 * rank
        self._states = [START] * threads if state is None else state
        if len(self._states) != threads:
            raise UserError(
                f"--resume with {threads} reader_threads of a run with {len(self._states)}: "
                "expected the same number"
            )
        self._readers = [
            pool_batches(
                split_dataset_by_node(dataset, rank * threads + t, world * threads, "shards"),
                inputs, pool_recordings, num_pairs, math.ceil(num_pairs / pairs_per_recording),
                max_tempo_change, seed, rank * threads + t, self._states[t],
            )
            for t in range(threads)
        ]  # fmt: skip
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="shards")
        self._pending: list[Future[Any]] = [
            self._executor.submit(next, reader) for reader in self._readers
        ]

    def batch(self, step: int, num_pairs: int) -> Pairs:
        """The pairs of the next step; steps must follow one another."""
        reader = step % len(self._readers)
        pairs, self._states[reader] = self._pending[reader].result()
        self._pending[reader] = self._executor.submit(next, self._readers[reader])
        return pairs

    def state(self) -> list[dict[str, Any]]:
        """Where every reader stands behind the last batch, to resume from."""
        return list(self._states)
