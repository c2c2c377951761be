"""Decode, resample, band-limit and window recordings.

Every waveform here is a mono ``float32`` NumPy array of shape ``[T]`` with values near [-1, 1].
Training, the command line and the Space all go through these functions.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torchaudio.functional as AF
from scipy.signal import butter, sosfiltfilt

from hb_ssl.errors import UserError

MIN_SAMPLING_RATE = 100  # Hz; below this no heart sound survives
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".au"}
MAX_SAMPLING_RATE = 384_000  # Hz; the highest rate of common audio hardware
MAX_AMPLITUDE = 1e6  # full scale is 1; 16-bit integers stored as floats reach 32768
MAX_FILTERS = 2_000_000  # of a resampler; 11025 to 16000 Hz has 441 * 640
BLOCK_SAMPLES = 2**22  # samples of all channels decoded at a time: 16 MB, 95 s of 44.1 kHz mono


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        sampling_rate: Hz.
        num_samples: samples per channel.
        num_channels: channel count.
        subtype: sample format as libsndfile names it, e.g. ``PCM_16``.
    """

    sampling_rate: int
    num_samples: int
    num_channels: int
    subtype: str

    @property
    def duration_seconds(self) -> float:
        return self.num_samples / self.sampling_rate


def read_audio_info(path: str | Path) -> AudioInfo:
    """Reads the header of an audio file.

    Raises:
        UserError: the file is missing, empty or not audio, or its rate is out of range.
    """
    path = _checked_file(path)
    try:
        info = sf.info(os.fsencode(path))  # a name need not be valid text
    except (sf.LibsndfileError, RuntimeError) as error:
        raise _not_audio(path, error) from error
    if info.frames <= 0:
        raise UserError(f"{path}: holds no audio samples; re-export or re-record the file")
    if not MIN_SAMPLING_RATE <= info.samplerate <= MAX_SAMPLING_RATE:
        raise UserError(
            f"{path}: sampling rate {info.samplerate} Hz, expected {MIN_SAMPLING_RATE} to "
            f"{MAX_SAMPLING_RATE} Hz; re-export the file at its true rate"
        )
    return AudioInfo(info.samplerate, info.frames, info.channels, info.subtype)


def find_audio_files(paths: list[str]) -> list[Path]:
    """Files as given, and the audio files below folders, sorted.

    Raises:
        UserError: a path does not exist or a folder holds no audio file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            is_folder = path.is_dir()
        except OSError:  # a name too long: opening it will say so
            is_folder = False
        if not is_folder:
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        if not inside:
            raise UserError(
                f"{path}: holds no audio file; expected {', '.join(sorted(AUDIO_SUFFIXES))}"
            )
        found += inside
    return found


def load_audio(
    path: str | Path, sampling_rate: int | None = None, max_seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Decodes an audio file to mono and resamples it.

    Long files are decoded block by block, so that only the result is ever held whole.

    Args:
        path: any file that libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF, ...).
        sampling_rate: target rate in Hz; ``None`` keeps the file's own.
        max_seconds: stop reading here; ``None`` reads all.

    Returns:
        The waveform ``[T]`` (float32; channels are averaged) and its rate in Hz.

    Raises:
        UserError: the file can't be decoded, is empty, or holds NaN or infinite samples.
    """
    info = read_audio_info(path)
    rate = info.sampling_rate if sampling_rate is None else sampling_rate
    blocks = _mono_blocks(Path(path), BLOCK_SAMPLES // info.num_channels)
    if max_seconds is not None:
        num_samples = max(round(max_seconds * info.sampling_rate), 1)
        blocks = _first_samples(blocks, num_samples)
    parts = list(_resample_blocks(blocks, info.sampling_rate, rate))
    if not parts:
        raise UserError(f"{path}: holds no audio samples; re-export or re-record the file")
    return parts[0] if len(parts) == 1 else np.concatenate(parts), rate


def _mono_blocks(path: Path, num_frames: int) -> Iterator[np.ndarray]:
    try:
        with sf.SoundFile(os.fsencode(path)) as file:
            while len(samples := file.read(num_frames, dtype="float32", always_2d=True)):
                block = samples.mean(axis=1)
                if not np.isfinite(block).all():
                    raise UserError(f"{path}: holds NaN or infinite samples; re-export the file")
                if np.abs(block).max() > MAX_AMPLITUDE:
                    raise UserError(
                        f"{path}: holds samples up to {np.abs(block).max():.0e}, expected about 1 "
                        "at most; re-export the file as 16-bit WAV"
                    )
                yield block
    except (sf.LibsndfileError, RuntimeError) as error:
        raise _not_audio(path, error) from error


def _first_samples(blocks: Iterable[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block[:num_samples]
        num_samples -= len(block)
        if num_samples <= 0:
            return


def _resample_blocks(
    blocks: Iterable[np.ndarray], orig_rate: int, target_rate: int
) -> Iterator[np.ndarray]:
    """Resamples consecutive blocks; together they equal ``resample`` of the whole.

    torchaudio's kernel reaches ``width`` samples to both sides, and its outputs repeat every
    ``step`` input samples: blocks are cut at multiples of ``step`` and keep that much context.
    """
    if orig_rate == target_rate:
        yield from blocks
        return
    made, step = resampling_ratio(orig_rate, target_rate)  # `made` outputs a `step` inputs
    width = math.ceil(6 * step / (0.99 * min(step, made)))  # AF.resample's default kernel
    context = step * (math.ceil(width / step) + 1)
    held = np.empty(0, dtype=np.float32)
    left = 0  # samples at the head of `held` that are context only
    previous = None  # one block late, so that a file of one block is resampled at once
    for block in blocks:
        if previous is not None:
            held = np.concatenate([held, previous])
            ready = (len(held) - left - context) // step * step
            if ready > 0:
                end = (left + ready) // step * made
                yield resample(held[: left + ready + context], orig_rate, target_rate)[
                    left // step * made : end
                ]
                dropped = max(left + ready - context, 0)
                held, left = held[dropped:], left + ready - dropped
        previous = block
    if previous is not None:
        held = np.concatenate([held, previous])
        yield resample(held, orig_rate, target_rate)[left // step * made :]


def _checked_file(path: str | Path) -> Path:
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL byte
        raise UserError(f"{str(path)!r}: no such file; check the path") from error
    except OSError as error:
        raise UserError(
            f"{path}: can't be opened ({error.strerror}); expected an audio file"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file; expected an audio file")
    if status.st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); copy or record it again")
    try:
        path.open("rb").close()  # libsndfile says "System error" only
    except OSError as error:
        raise UserError(
            f"{path}: can't be opened ({error.strerror}); expected a file that you may read"
        ) from error
    return path


def _not_audio(path: Path, error: Exception) -> UserError:
    reason = str(error).split(": ")[-1].rstrip(".") or type(error).__name__
    return UserError(
        f"{path}: can't be read as audio ({reason}); expected WAV, FLAC, Ogg, MP3 or AIFF"
    )


def resample(waveform: np.ndarray, orig_rate: int, target_rate: int) -> np.ndarray:
    """Resamples ``[T]`` from ``orig_rate`` to ``target_rate`` Hz (torchaudio windowed sinc)."""
    if orig_rate == target_rate:
        return waveform
    made, step = resampling_ratio(orig_rate, target_rate)
    return AF.resample(torch.from_numpy(waveform), step, made).numpy()


def resampling_ratio(orig_rate: int, target_rate: int) -> tuple[int, int]:
    """``made`` output samples for every ``step`` input samples.

    Exact for the rates that devices have. torchaudio's filter bank has made x step entries, which
    would be tens of gigabytes for 16000 and 191999 Hz, so such a ratio is met to 0.04 % instead.
    """
    ratio = Fraction(target_rate, orig_rate)
    if ratio.numerator * ratio.denominator > MAX_FILTERS:
        ratio = ratio.limit_denominator(math.isqrt(int(MAX_FILTERS / ratio)))
    return ratio.numerator, ratio.denominator


def band_limit(
    waveform: np.ndarray, sampling_rate: int, low_hz: float | None, high_hz: float | None
) -> np.ndarray:
    """Zero-phase Butterworth filter (order 4 each way) keeping ``low_hz`` to ``high_hz``.

    A common band makes both PASCAL devices look alike: set B is low-passed near 195 Hz.

    Args:
        waveform: ``[T]``.
        sampling_rate: Hz.
        low_hz: lower edge in Hz, or ``None`` for none.
        high_hz: upper edge in Hz, or ``None`` (or at least half the rate) for none.
    """
    nyquist = sampling_rate / 2
    high = high_hz if high_hz is not None and high_hz < nyquist else None
    if low_hz is None and high is None:
        return waveform
    if low_hz is not None and low_hz >= (high or nyquist):
        raise UserError(
            f"band limits {low_hz} to {high_hz} Hz at {sampling_rate} Hz keep nothing; "
            "expected low_hz < high_hz and low_hz below half the sampling rate"
        )
    if low_hz is not None and high is not None:
        sos = butter(4, [low_hz, high], "bandpass", fs=sampling_rate, output="sos")
    elif low_hz is not None:
        sos = butter(4, low_hz, "highpass", fs=sampling_rate, output="sos")
    else:
        sos = butter(4, high, "lowpass", fs=sampling_rate, output="sos")
    pad = min(len(waveform) - 1, 3 * sampling_rate)
    if pad < 1:
        return waveform
    return sosfiltfilt(sos, waveform, padlen=pad).astype(np.float32)


def tile_to_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """Repeats ``[T]`` until it is at least ``num_samples`` long.

    Never pads with zeros: the length of the silence would tell the recording's duration, and in
    PASCAL the duration alone names the class (every artifact lasts exactly 9.0 s).
    """
    if len(waveform) >= num_samples:
        return waveform
    return np.tile(waveform, -(-num_samples // len(waveform)))[:num_samples]


def split_windows(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Cuts ``[T]`` into fixed windows ``[N, W]`` that together cover every sample.

    A shorter recording is tiled to one window. The last window ends at the last sample, so no two
    recordings differ in padding.

    Args:
        waveform: ``[T]``, T >= 1.
        window: window length W in samples.
        hop: step between window starts in samples.
    """
    starts = window_starts(len(waveform), window, hop)
    waveform = tile_to_length(waveform, window)
    return np.stack([waveform[start : start + window] for start in starts])


def window_starts(num_samples: int, window: int, hop: int) -> list[int]:
    """First sample of every window that ``split_windows`` cuts."""
    if window < 1 or hop < 1:
        raise ValueError(f"window and hop must be at least 1 sample, got {window} and {hop}")
    last = max(num_samples - window, 0)
    starts = list(range(0, last, hop))
    return [*starts, last]


def random_window(waveform: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """A random window ``[W]`` of ``[T]``; a shorter recording is tiled from a random phase."""
    if len(waveform) < window:
        return tile_to_length(np.roll(waveform, -int(rng.integers(len(waveform)))), window)
    start = int(rng.integers(len(waveform) - window + 1))
    return waveform[start : start + window]
