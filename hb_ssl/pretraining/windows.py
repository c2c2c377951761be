"""The data of a run: features of the corpus, its split by subject, and augmented batches."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import ASTFeatureExtractor

from hb_ssl.data.corpora import Corpus, load_corpus, split_corpus
from hb_ssl.files import cache_folder
from hb_ssl.models.pcg import PCG_SAMPLING_RATE, pcg_feature_extractor
from hb_ssl.pretraining.augment import augment
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.features import (
    CorpusFeatures,
    PairSampler,
    frames_of_window,
    load_features,
    mel_centres,
)

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
    """

    corpus: Corpus
    features: CorpusFeatures
    train: list[int]
    held_out: list[int]
    num_frames: int
    centres: torch.Tensor

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
    return PretrainData(
        corpus=corpus,
        features=load_features(corpus, config.num_mel_bins, cache),
        train=train,
        held_out=held_out,
        num_frames=frames_of_window(config.window_seconds, PCG_SAMPLING_RATE),
        centres=centres,
    )


def generator(*parts: int) -> torch.Generator:
    """A source of randomness that depends on these numbers only."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def make_batch(
    data: PretrainData, sampler: PairSampler, step: int, pairs: int, rng: torch.Generator,
    normalise: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Augmented views ``[2, B, F, M]`` of a step, and its clean first views ``[B, F, M]``."""
    views = sampler.batch(step, pairs)
    clean = normalise(views[0])
    augmented = augment(views.flatten(0, 1), data.centres, rng).view_as(views)
    return normalise(augmented), clean


def normaliser(extractor: ASTFeatureExtractor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The extractor's mean/std normalisation, for tensors on any device."""
    return lambda features: (features - extractor.mean) / (2 * extractor.std)


def fit_extractor(config: PretrainConfig, data: PretrainData) -> ASTFeatureExtractor:
    """Mean and spread of augmented training windows, so that inputs of any level fit in."""
    sampler = data.sampler(data.train, config.max_tempo_change, config.seed)
    views = sampler.batch(0, 256).flatten(0, 1)
    values = augment(views, data.centres, generator(config.seed, 1))
    mean, std = round(float(values.mean()), 3), round(float(values.std()), 3)
    return pcg_feature_extractor(data.num_frames, config.num_mel_bins, PCG_SAMPLING_RATE, mean, std)
