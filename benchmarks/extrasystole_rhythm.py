"""Can an extrasystole of set B be told from a normal recording by its rhythm? What was tried.

    python benchmarks/extrasystole_rhythm.py --source DIR

Events (S1, S2, extra sound, murmurs) are learned on simulated recordings, whose truth is known, by
logistic regression on the tokens of the frozen backbone, and read off the recordings of set B in
the first outer training part (seed 0, fold 0); their statistics, and those of the beats that
``hb_ssl.heart_rate`` finds, are compared by the area under the ROC curve: 0.5 is no difference.
The strongest of many statistics is optimistic. Writes
``benchmarks/results/extrasystole_rhythm.{json,md}``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import find_peaks
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from hb_ssl.audio import split_windows
from hb_ssl.cli import run_command
from hb_ssl.data.dataset import Waveforms, waveform_dataset
from hb_ssl.data.log_mel import frames_of_window, mel_centres
from hb_ssl.data.spectrogram_augment import augment
from hb_ssl.data.splits import grouped_folds
from hb_ssl.data.task import prepare_task
from hb_ssl.evaluation.probes import FrozenBackbone
from hb_ssl.files import cache_folder, write_json_atomic, write_text_atomic
from hb_ssl.heart_rate import estimate_heart_rate
from hb_ssl.models.pcg import PCG_SAMPLING_RATE
from hb_ssl.models.pooling import NUM_CLASS_TOKENS
from hb_ssl.pretraining.simulated import EVENTS, load_simulated
from hb_ssl.runs import describe_environment

RESULTS = Path(__file__).parent / "results"
NUM_SIMULATED, BATCH, MEL_BINS = 1200, 48, 20
WINDOW_SECONDS, HOP_SECONDS = 5.0, 1.25
TOKEN_FRAMES = 5  # a token in 50 ms
FIRST_FRAME = (MEL_BINS - TOKEN_FRAMES) // 2  # a token answers for the middle of its patch
LAYERS = (2, 3, 4)
TOKENS_PER_SECOND = 20
EVENT_STATISTICS = [f"{s} of {e}" for s in ("mean", "deviation", "95 %") for e in EVENTS]
RHYTHM_STATISTICS = [
    "S1 cycle", "S1 repeats after one cycle", "after two", "beats", "interval deviation",
    "shortest interval", "longest interval", "beat strength deviation",
]  # fmt: skip
BEAT_STATISTICS = ["heart rate", "tracked interval deviation", "heart-rate confidence"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="folder of the PASCAL recordings")
    arguments = parser.parse_args()
    frozen = FrozenBackbone("bundled", WINDOW_SECONDS, HOP_SECONDS)
    heads, simulated_auc = event_heads(frozen)
    task = prepare_task(arguments.source, "set_b")
    outer = set(grouped_folds(task.items, 5, seed=0)[0])
    items = [item for item in task.items if item.recording_id not in outer]
    recordings = [task.recordings[item.recording_id] for item in items]
    waveforms = Waveforms(waveform_dataset(recordings, PCG_SAMPLING_RATE))
    labels = np.array([item.label for item in items])
    rows = np.stack([statistics_of(frozen, heads, waveforms[i.recording_id]) for i in items])
    of_windows = EVENT_STATISTICS + RHYTHM_STATISTICS
    names = [f"{name}, {how}" for how in ("mean", "maximum") for name in of_windows]
    names += BEAT_STATISTICS
    aucs: dict[str, Any] = {}
    for other in ("normal", "murmur"):
        chosen = np.isin(labels, ["extrastole", other])
        truth = labels[chosen] == "extrastole"
        values = [roc_auc_score(truth, rows[chosen, k]) for k in range(len(names))]
        aucs[other] = dict(zip(names, map(float, values), strict=True))
    environment = describe_environment()
    environment["command"] = ["extrasystole_rhythm.py", "--source", "DIR"]
    counts = {str(label): int((labels == label).sum()) for label in np.unique(labels)}
    content = {
        "environment": environment,
        "counts": counts,
        "auc_on_simulated": simulated_auc,
        "auc_of_extrastole_against": aucs,
    }
    write_json_atomic(RESULTS / "extrasystole_rhythm.json", content)
    write_text_atomic(RESULTS / "extrasystole_rhythm.md", table(content))
    print(table(content))


def tokens_of(frozen: FrozenBackbone, features: torch.Tensor) -> torch.Tensor:
    """Normalised log-mel ``[N, F, M]`` to the states of some layers side by side ``[N, T, D]``."""
    with torch.inference_mode():
        states = frozen.model(features, output_hidden_states=True).hidden_states
    return torch.cat([states[layer][:, NUM_CLASS_TOKENS:] for layer in LAYERS], dim=2)


def event_heads(frozen: FrozenBackbone) -> tuple[list[Pipeline], dict[str, float]]:
    """A classifier of every event, and its area under the curve on windows it never saw."""
    cache = cache_folder() / "corpora"
    cache.mkdir(parents=True, exist_ok=True)
    simulated = load_simulated(
        NUM_SIMULATED, WINDOW_SECONDS + 1, PCG_SAMPLING_RATE, MEL_BINS, seed=7, cache_dir=cache
    )
    draw, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    centres = torch.from_numpy(mel_centres(MEL_BINS, PCG_SAMPLING_RATE)).float()
    num_frames = frames_of_window(WINDOW_SECONDS, PCG_SAMPLING_RATE)
    inputs, truths = [], []
    for _ in range(NUM_SIMULATED // BATCH):
        windows, events, _ = simulated.batch(BATCH, num_frames, draw)
        normalised = frozen.make_features.extractor.normalize(augment(windows, centres, noise))
        tokens = tokens_of(frozen, normalised)
        around = events[:, FIRST_FRAME : FIRST_FRAME + tokens.shape[1] * TOKEN_FRAMES]
        around = around.unflatten(1, (tokens.shape[1], TOKEN_FRAMES)).amax(dim=2)
        inputs.append(tokens.flatten(0, 1).numpy()[::3])
        truths.append(around.flatten(0, 1).numpy()[::3])
    x, y = np.concatenate(inputs), np.concatenate(truths)
    fit, check = slice(0, len(x) * 3 // 4), slice(len(x) * 3 // 4, None)
    heads, auc = [], {}
    for number, event in enumerate(EVENTS):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        head.fit(x[fit], y[fit, number])
        auc[event] = float(roc_auc_score(y[check, number], head.decision_function(x[check])))
        heads.append(head)
    return heads, auc


def statistics_of(
    frozen: FrozenBackbone, heads: list[Pipeline], waveform: np.ndarray
) -> np.ndarray:
    """All statistics of a recording ``[T]``: mean and maximum over windows, then the beats."""
    made = []
    for window in split_windows(waveform, frozen.make_features.window, frozen.hop):
        tokens = tokens_of(frozen, torch.from_numpy(frozen.make_features(window[None])))[0].numpy()
        made.append(_of_window(np.stack([h.predict_proba(tokens)[:, 1] for h in heads], axis=1)))
    rate = estimate_heart_rate(waveform, PCG_SAMPLING_RATE)
    gaps = np.diff(rate.beat_seconds)
    beats = [rate.bpm or 0.0, gaps.std() / gaps.mean() if len(gaps) > 1 else 0.0, rate.confidence]
    return np.concatenate([np.mean(made, axis=0), np.max(made, axis=0), beats])


def _of_window(events: np.ndarray) -> np.ndarray:
    """``EVENT_STATISTICS`` and ``RHYTHM_STATISTICS`` of event probabilities ``[T, E]``."""
    levels = np.concatenate([events.mean(0), events.std(0), np.percentile(events, 95, axis=0)])
    centred = events[:, 0] - events[:, 0].mean()
    correlation = np.correlate(centred, centred, "full")[len(centred) - 1 :]
    correlation /= (correlation[0] + 1e-9) * (1 - np.arange(len(centred)) / len(centred))
    lag = 6 + int(np.argmax(correlation[6:30]))  # 40 to 200 beats a minute
    fine = np.interp(np.arange(0, len(centred), 0.25), np.arange(len(centred)), events[:, 0])
    loudest = fine.max()
    peaks, _ = find_peaks(fine, height=0.3 * loudest, distance=20, prominence=0.15 * loudest)
    gaps = np.diff(peaks)
    gaps = gaps / np.median(gaps) if len(gaps) else np.ones(1)
    strength = fine[peaks] if len(peaks) else np.ones(1)
    rhythm = [
        lag / TOKENS_PER_SECOND, correlation[lag], correlation[min(2 * lag, len(centred) - 10)],
        len(peaks), gaps.std(), gaps.min(), gaps.max(), strength.std() / strength.mean(),
    ]  # fmt: skip
    return np.concatenate([levels, rhythm])


def table(content: dict[str, Any]) -> str:
    """Markdown: how well the heads do on simulated sounds, and the strongest statistics."""
    auc = ", ".join(f"{e} {v:.3f}" for e, v in content["auc_on_simulated"].items())
    counts = ", ".join(f"{n} {label}" for label, n in content["counts"].items())
    lines = [
        "# Extrasystole by rhythm, set B",
        "",
        f"First outer training part: {counts}. Area under the ROC curve of single statistics; 0.5 "
        "is no difference, below 0.5 the other way round. Made by "
        "`benchmarks/extrasystole_rhythm.py`.",
        "",
        f"Event heads on simulated windows they never saw: {auc}.",
    ]
    for other, values in content["auc_of_extrastole_against"].items():
        lines += ["", f"## Against {other}", "", "| statistic | area |", "|---|---|"]
        strongest = sorted(values, key=lambda name: -abs(values[name] - 0.5))[:8]
        lines += [f"| {name} | {values[name]:.3f} |" for name in strongest]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
