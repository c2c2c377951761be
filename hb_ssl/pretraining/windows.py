"""The data of a run: features of the corpus, its split by subject, and augmented batches."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import ASTFeatureExtractor

from hb_ssl.data.corpora import CIRCOR_TABLE, Corpus, circor_murmurs, load_corpus, split_corpus
from hb_ssl.data.log_mel import LogMelFrames, frames_of_window, mel_centres
from hb_ssl.data.spectrogram_augment import augment
from hb_ssl.files import cache_folder
from hb_ssl.models.pcg import PCG_SAMPLING_RATE, pcg_feature_extractor
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.features import PairSampler, load_features
from hb_ssl.pretraining.simulated import SimulatedCorpus, load_simulated

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainData:
    """A corpus ready to draw from.

    Attributes:
        corpus: the decoded recordings.
        features: their log-mel frames.
        train: recordings to draw training windows from.
        held_out: recordings of held-out subjects, for the validation loss.
        num_frames: window length in 10 ms frames.
        centres: centre frequencies of the mel bins ``[M]`` in Hz.
        simulated: windows with known truth, if the recipe uses them.
        murmurs: ``[R]`` 1 where a murmur is heard in the recording, 0 where none, -1 unknown.
    """

    corpus: Corpus
    features: LogMelFrames
    train: list[int]
    held_out: list[int]
    num_frames: int
    centres: torch.Tensor
    simulated: SimulatedCorpus | None
    murmurs: np.ndarray

    def sampler(self, indices: list[int], max_tempo_change: float, seed: int) -> PairSampler:
        """Draws pairs of windows from some of the recordings."""
        subjects = [r.subject for r in self.corpus.recordings]
        return PairSampler(
            self.features, indices, subjects, self.num_frames, max_tempo_change, seed
        )


def load_data(config: PretrainConfig) -> PretrainData:
    """Decodes the corpora and computes their features, or maps both from the cache.

    Raises:
        UserError: see ``load_corpus``.
    """
    cache = cache_folder() / "corpora"
    corpus = load_corpus(config.corpora, PCG_SAMPLING_RATE, cache)
    train, held_out = split_corpus(corpus, config.held_out_fraction)
    logger.info(
        "%d recordings, %.1f h; %d for training, %d held out by subject",
        len(corpus.recordings), corpus.hours, len(train), len(held_out),
    )  # fmt: skip
    centres = torch.from_numpy(mel_centres(config.num_mel_bins, PCG_SAMPLING_RATE)).float()
    num_frames = frames_of_window(config.window_seconds, PCG_SAMPLING_RATE)
    simulated = None
    if config.simulated_weight:
        simulated = load_simulated(
            config.num_simulated, config.window_seconds + 1, PCG_SAMPLING_RATE,
            config.num_mel_bins, config.seed, cache,
        )  # fmt: skip
    return PretrainData(
        corpus=corpus,
        features=load_features(corpus, config.num_mel_bins, cache),
        train=train,
        held_out=held_out,
        num_frames=num_frames,
        centres=centres,
        simulated=simulated,
        murmurs=murmur_labels(corpus, config.corpora),
    )


def generator(*parts: int) -> torch.Generator:
    """A source of randomness that depends on these numbers only."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Batch:
    """One step's input, normalised log-mel; ``B`` pairs and ``S`` simulated windows.

    Attributes:
        views: two augmented windows of each recording ``[2, B, F, M]``.
        clean: the first of them before augmentation ``[B, F, M]``.
        murmur: ``[B]`` 1, 0, or -1 for unknown.
        simulated: ``[S, F, M]``, or ``None``.
        events: ``[S, F, E]``.
        finding: ``[S]``.
    """

    views: torch.Tensor
    clean: torch.Tensor
    murmur: torch.Tensor
    simulated: torch.Tensor | None = None
    events: torch.Tensor | None = None
    finding: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {name: t.to(device) for name, t in tensors.items() if t is not None}
        return dataclasses.replace(self, **moved)


def make_batch(
    data: PretrainData,
    sampler: PairSampler,
    config: PretrainConfig,
    step: int,
    rng: torch.Generator,
    normalise: Callable[[torch.Tensor], torch.Tensor],
) -> Batch:
    """The batch of a step; it depends on the sampler's seed, the step and ``rng`` only."""
    views, recordings = sampler.batch(step, config.batch_pairs)
    clean = normalise(views[0])
    augmented = augment(views.flatten(0, 1), data.centres, rng).view_as(views)
    batch = Batch(normalise(augmented), clean, torch.from_numpy(data.murmurs[recordings]))
    if data.simulated is None:
        return batch
    draw = np.random.default_rng([sampler.seed, step, 1])
    windows, events, finding = data.simulated.batch(config.simulated_batch, data.num_frames, draw)
    windows = normalise(augment(windows, data.centres, rng))
    return dataclasses.replace(batch, simulated=windows, events=events, finding=finding)


def murmur_labels(corpus: Corpus, folders: list[str]) -> np.ndarray:
    """Murmur of every recording ``[R]``: 1 heard, 0 not, -1 unknown or no CirCor recording."""
    labels = np.full(len(corpus.recordings), -1)
    for folder in folders:
        table = Path(folder) / CIRCOR_TABLE
        if table.is_file():
            for index, murmur in circor_murmurs(corpus, table):
                labels[index] = murmur == "Present"
    return labels


def normaliser(extractor: ASTFeatureExtractor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The extractor's mean/std normalisation, for tensors on any device."""
    return lambda features: (features - extractor.mean) / (2 * extractor.std)


def fit_extractor(config: PretrainConfig, data: PretrainData) -> ASTFeatureExtractor:
    """Mean and spread of augmented training windows, so that inputs of any level fit in."""
    sampler = data.sampler(data.train, config.max_tempo_change, config.seed)
    views = sampler.batch(0, 256)[0].flatten(0, 1)
    values = augment(views, data.centres, generator(config.seed, 1))
    mean, std = round(float(values.mean()), 3), round(float(values.std()), 3)
    return pcg_feature_extractor(data.num_frames, config.num_mel_bins, PCG_SAMPLING_RATE, mean, std)
