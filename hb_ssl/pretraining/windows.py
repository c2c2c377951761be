"""The data of a run: a corpus or a stream, its split by subject, and augmented batches."""

import dataclasses
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hb_ssl.data.corpora import (
    Corpus,
    CorpusRecording,
    circor_murmurs,
    circor_table,
    load_corpus,
    split_corpus,
    take_share,
)
from hb_ssl.data.shards import is_shard_source, open_shards
from hb_ssl.errors import UserError
from hb_ssl.files import cache_folder
from hb_ssl.models.pcg import PCG_SAMPLING_RATE
from hb_ssl.models.wav2vec2 import load_wav2vec2_extractor, small_feature_extractor
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.features import PairSampler, Windowed
from hb_ssl.pretraining.inputs import Inputs, LogMelInputs, WaveformInputs
from hb_ssl.pretraining.simulated import SimulatedCorpus, load_simulated
from hb_ssl.pretraining.stream import Pool, StreamSampler, pool_batches, read_held_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainData:
    """A corpus ready to draw from.

    Attributes:
        inputs: what the backbone hears.
        corpus: the decoded recordings; of a stream those held out.
        features: windows are cut from these.
        train: recordings to draw training windows from; none of a stream.
        held_out: recordings of held-out subjects, for the validation loss.
        murmurs: ``[R]`` 1 where a murmur is heard in the recording, 0 where none, -1 unknown.
        simulated: windows with known truth, if the recipe uses them.
        stream: the training recordings where they are streamed from shards.
    """

    inputs: Inputs
    corpus: Corpus
    features: Windowed
    train: list[int]
    held_out: list[int]
    murmurs: np.ndarray
    simulated: SimulatedCorpus | None = None
    stream: datasets.IterableDataset | None = None

    def sampler(self, indices: list[int], max_tempo_change: float, seed: int) -> PairSampler:
        """Draws pairs of windows from some of the recordings."""
        subjects = [r.subject for r in self.corpus.recordings]
        return PairSampler(
            self.features, indices, subjects, self.murmurs, self.inputs.length, max_tempo_change,
            seed,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What a card says of the training data."""
        if self.stream is not None:
            recordings = {"train_shards": self.stream.num_shards, "held_out": len(self.held_out)}
            return {"recordings": recordings, "hours": None, "corpus_sha256": None}
        trained = [self.corpus.recordings[index] for index in self.train]
        seconds = sum(r.num_samples for r in trained) / self.corpus.sampling_rate
        return {
            "recordings": {"train": len(trained), "held_out": len(self.held_out)},
            "recordings_of_corpora": dict(
                Counter(r.recording_id.split("/")[0] for r in self.corpus.recordings)
            ),
            "hours": round(seconds / 3600, 2),
            "corpus_sha256": self.corpus.content_hash,
        }


def load_data(config: PretrainConfig) -> PretrainData:
    """Decodes the corpora and computes their features, or maps both from the cache.

    Shards are opened only; their split ``validation`` is read into memory.

    Raises:
        UserError: ``data_fraction`` leaves no recording, or is not 1 of shards; a murmur loss
            without murmur labels; see ``load_corpus``, ``open_shards`` and
            ``load_wav2vec2_extractor``.
    """
    inputs = _inputs(config)
    if any(map(is_shard_source, config.corpora)):
        data = _stream(config, inputs)
    else:
        cache = cache_folder() / "corpora"
        corpus = load_corpus(config.corpora, inputs.sampling_rate, cache)
        train, held_out = split_corpus(corpus, config.held_out_fraction)
        train = take_share(corpus, train, config.data_fraction)
        if not train:
            raise UserError(
                f"data_fraction {config.data_fraction}: leaves no recording to train on; expected "
                "a larger share"
            )
        logger.info(
            "%d recordings, %.1f h; %d for training, %d held out by subject",
            len(corpus.recordings), corpus.hours, len(train), len(held_out),
        )  # fmt: skip
        features = inputs.of_corpus(corpus, cache)
        murmurs = murmur_labels(corpus, config.corpora)
        if config.murmur_weight and not (murmurs[train] >= 0).any():
            raise UserError(
                f"murmur_weight {config.murmur_weight:g}: no training recording has a murmur "
                "label; expected CirCor's recordings with training_data.csv among the corpora, or "
                "--murmur_weight 0"
            )
        data = PretrainData(inputs, corpus, features, train, held_out, murmurs)
    if config.simulated_weight:
        simulated = load_simulated(
            config.num_simulated, config.window_seconds + 1, PCG_SAMPLING_RATE,
            config.num_mel_bins, config.seed, cache_folder() / "corpora",
        )  # fmt: skip
        data = dataclasses.replace(data, simulated=simulated)
    if isinstance(inputs, LogMelInputs):
        inputs.fit(_first_views(config, data), generator(config.seed, 1))
    return data


def _inputs(config: PretrainConfig) -> Inputs:
    if config.objective != "wav2vec2":
        return LogMelInputs(config.window_seconds, config.num_mel_bins)
    if config.backbone is None:
        return WaveformInputs(config.window_seconds, small_feature_extractor())
    return WaveformInputs(config.window_seconds, load_wav2vec2_extractor(config.backbone))


def _stream(config: PretrainConfig, inputs: Inputs) -> PretrainData:
    if config.data_fraction != 1:
        raise UserError(
            f"data_fraction {config.data_fraction}: shards are streamed whole; expected 1, or name "
            "fewer shards"
        )
    splits = open_shards(config.corpora)
    held_out = read_held_out(splits["validation"], inputs) if "validation" in splits else []
    logger.info(
        "%d shards to stream, %d recordings held out", splits["train"].num_shards, len(held_out)
    )
    corpus = Corpus(
        samples=np.zeros(0, dtype=np.int16),  # the windows are cut from the features
        recordings=tuple(
            CorpusRecording(r.recording_id, r.subject, 0, r.num_samples) for r in held_out
        ),
        sampling_rate=inputs.sampling_rate,
        content_hash="",
    )
    return PretrainData(
        inputs, corpus, Pool(held_out), [], list(range(len(held_out))),
        np.array([r.murmur for r in held_out]), stream=splits["train"],
    )  # fmt: skip


def _first_views(config: PretrainConfig, data: PretrainData) -> torch.Tensor:
    """Windows ``[2, B, ...]`` of the first step, the same in every process."""
    if data.stream is None:
        sampler = data.sampler(data.train, config.max_tempo_change, config.seed)
        return sampler.batch(0, 256).views
    reading = pool_batches(
        data.stream, data.inputs, config.pool_recordings, 256, 1, config.max_tempo_change,
        config.seed,
    )  # fmt: skip
    return next(reading)[0].views


def train_sampler(
    data: PretrainData, config: PretrainConfig, rank: int, world: int, readers: list[Any] | None
) -> PairSampler | StreamSampler:
    """What one process trains on.

    Args:
        data: see ``load_data``.
        config: the recipe.
        rank: number of the process.
        world: how many processes there are.
        readers: of a resumed run, what ``StreamSampler.state`` said in every process.
    """
    if data.stream is None:
        return data.sampler(data.train, config.max_tempo_change, config.seed + 1000 * rank)
    if readers is not None and len(readers) != world:
        raise UserError(
            f"--resume with {world} processes of a streamed run with {len(readers)}: expected the "
            "same number, since each goes on with its own shards"
        )
    return StreamSampler(
        data.stream, data.inputs, rank, world, config.reader_threads, config.pool_recordings,
        config.batch_pairs, config.pairs_per_recording, config.max_tempo_change, config.seed,
        readers[rank] if readers else None,
    )  # fmt: skip


def generator(*parts: int) -> torch.Generator:
    """A source of randomness that depends on these numbers only."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Batch:
    """One step's normalised input; ``B`` pairs and ``S`` simulated windows.

    Attributes:
        views: two augmented windows of each recording ``[2, B, F, M]``, or waveforms ``[2, B, W]``.
        clean: the first of them before augmentation ``[B, F, M]``.
        murmur: ``[B]`` 1, 0, or -1 for unknown.
        simulated: ``[S, F, M]``, or ``None``.
        events: ``[S, F, E]``.
        finding: ``[S]``.
        progress: share of the run that is done, for schedules.
    """

    views: torch.Tensor
    clean: torch.Tensor
    murmur: torch.Tensor
    simulated: torch.Tensor | None = None
    events: torch.Tensor | None = None
    finding: torch.Tensor | None = None
    progress: float = 1.0

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: Any = {n: v.to(device) for n, v in values.items() if isinstance(v, torch.Tensor)}
        return dataclasses.replace(self, **moved)


def make_batch(
    data: PretrainData,
    sampler: PairSampler | StreamSampler,
    config: PretrainConfig,
    step: int,
    rng: torch.Generator,
) -> Batch:
    """The batch of a step; it depends on the sampler's seed, the step and ``rng`` only."""
    pairs = sampler.batch(step, config.batch_pairs)
    batch = Batch(
        views=data.inputs.augmented(pairs.views.flatten(0, 1), rng).view_as(pairs.views),
        clean=data.inputs.normalise(pairs.views[0]),
        murmur=torch.from_numpy(pairs.murmur),
        progress=step / config.steps,
    )
    if data.simulated is None:
        return batch
    draw = np.random.default_rng([sampler.seed, step, 1])
    windows, events, finding = data.simulated.batch(
        config.simulated_batch, data.inputs.length, draw
    )
    windows = data.inputs.augmented(windows, rng)
    return dataclasses.replace(batch, simulated=windows, events=events, finding=finding)


def murmur_labels(corpus: Corpus, folders: list[str]) -> np.ndarray:
    """Murmur of every recording ``[R]``: 1 heard, 0 not, -1 unknown or no CirCor recording."""
    labels = np.full(len(corpus.recordings), -1)
    for folder in folders:
        table = circor_table(Path(folder).resolve())
        if table is not None:
            for index, murmur in circor_murmurs(corpus, table):
                labels[index] = murmur == "Present"
    return labels
