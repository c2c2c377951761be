"""Simulated recordings with their exact truth: what happens in every frame, and the finding."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hb_ssl.data.log_mel import LogMelFrames, log_mel_frames
from hb_ssl.data.recording import RAW_LABELS
from hb_ssl.data.synthetic import DEVICES, RecordingTruth, simulate_recording
from hb_ssl.data.synthetic_dataset import GENERATOR_VERSION

logger = logging.getLogger(__name__)

EVENTS = ("s1", "s2", "extra_sound", "systolic_murmur", "diastolic_murmur")
FINDINGS = RAW_LABELS
SOUND_SECONDS = 0.08  # how long a heart sound rings, for the frame targets
_CACHE_VERSION = 1


@dataclass(frozen=True)
class SimulatedCorpus:
    """Windows with known truth.

    Attributes:
        features: log-mel frames, one recording a row.
        events: ``[total_frames, len(EVENTS)]`` bool, what sounds in each frame.
        findings: index into ``FINDINGS`` of each recording ``[N]``.
    """

    features: LogMelFrames
    events: np.ndarray
    findings: np.ndarray

    def batch(
        self, size: int, num_frames: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random windows ``[B, F, M]``, their events ``[B, F, E]`` and findings ``[B]``."""
        chosen = rng.integers(len(self.findings), size=size)
        windows, events = [], []
        for index in chosen:
            start = int(rng.integers(self.features.counts[index] - num_frames + 1))
            windows.append(self.features.window(index, start, num_frames))
            first = self.features.starts[index] + start
            events.append(self.events[first : first + num_frames])
        return (
            torch.from_numpy(np.stack(windows)),
            torch.from_numpy(np.stack(events)).float(),
            torch.from_numpy(self.findings[chosen]),
        )


def frame_events(truth: RecordingTruth, num_frames: int, frame_rate: float = 100.0) -> np.ndarray:
    """Which ``EVENTS`` sound in each frame, ``[num_frames, E]`` bool.

    A systolic murmur lasts from S1 to S2, a diastolic one from S2 to the next S1; where in between
    it is loudest depends on its shape.

    Args:
        truth: of one simulated recording.
        num_frames: frames to describe.
        frame_rate: frames a second.
    """
    events = np.zeros((num_frames, len(EVENTS)), dtype=bool)
    beats = truth.heartbeats
    if beats is None:
        return events

    def mark(column: str, start: float, end: float) -> None:
        first, last = round(start * frame_rate), max(round(end * frame_rate), 0)
        events[max(first, 0) : last, EVENTS.index(column)] = True

    for name, onsets in (("s1", beats.s1_seconds), ("s2", beats.s2_seconds)):
        for onset in onsets:
            mark(name, onset, onset + SOUND_SECONDS)
    for onset, _ in beats.extra_sounds:
        mark("extra_sound", onset, onset + SOUND_SECONDS)
    for beat in beats.premature_beats:
        onset = beats.s1_seconds[beat]
        mark("extra_sound", onset, onset + SOUND_SECONDS)
    if truth.murmur is not None:
        systolic = truth.murmur.timing == "systolic"
        starts, ends = beats.s1_seconds, beats.s2_seconds
        if not systolic:
            starts, ends = ends, starts
        for start in starts:
            after = ends[ends > start]
            end = after[0] if len(after) else num_frames / frame_rate
            mark("systolic_murmur" if systolic else "diastolic_murmur", start, min(end, start + 1))
    return events


def load_simulated(
    num_recordings: int,
    seconds: float,
    sampling_rate: int,
    num_mel_bins: int,
    seed: int,
    cache_dir: str | Path,
) -> SimulatedCorpus:
    """Simulates recordings of every finding and device in equal numbers, or maps them.

    Args:
        num_recordings: how many.
        seconds: length of each.
        sampling_rate: Hz.
        num_mel_bins: mel bins.
        seed: of the simulator.
        cache_dir: where the features are kept.
    """
    stem = (
        f"simulated-v{GENERATOR_VERSION}.{_CACHE_VERSION}-{num_recordings}-{seconds:g}s-"
        f"{sampling_rate}-{num_mel_bins}-{seed}"
    )
    path = Path(cache_dir) / f"{stem}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _simulate(path, num_recordings, seconds, sampling_rate, num_mel_bins, seed)
    with np.load(path) as stored:
        frames, power = stored["frames"], stored["power"]
        events, findings = stored["events"], stored["findings"]
    count = frames.shape[1]
    counts = np.full(num_recordings, count)
    features = LogMelFrames(
        frames.reshape(-1, num_mel_bins),
        power.reshape(-1),
        np.arange(num_recordings) * count,
        counts,
    )
    return SimulatedCorpus(features, events.reshape(-1, len(EVENTS)), findings)


def _simulate(
    path: Path, number: int, seconds: float, rate: int, num_mel_bins: int, seed: int
) -> None:
    frames, power, events, findings = [], [], [], []
    for index in tqdm(range(number), desc="Simulating", unit="recording", disable=None):
        rng = np.random.default_rng([seed, index])
        finding = index % len(FINDINGS)
        device = DEVICES[index // len(FINDINGS) % len(DEVICES)]
        noisy = bool(rng.random() < 0.3)
        waveform, truth = simulate_recording(
            FINDINGS[finding], seconds, rate, rng, device, noisy=noisy
        )
        rows, energy = log_mel_frames(waveform, rate, num_mel_bins)
        frames.append(rows.astype(np.float16))
        power.append(energy)
        events.append(frame_events(truth, len(rows)))
        findings.append(finding)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(
        temporary,
        frames=np.stack(frames),
        power=np.stack(power),
        events=np.stack(events),
        findings=np.array(findings),
    )
    temporary.replace(path)
