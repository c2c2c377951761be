"""Audio files of every kind, good and bad, and what must come of each: a table for the tests."""

import io
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 4000
Maker = Callable[[Path], None]


def sound(seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    times = np.arange(max(round(seconds * rate), 1)) / rate
    one = 0.5 * np.sin(2 * np.pi * 40 * times) * (1 + np.sin(2 * np.pi * 1.2 * times)) / 2
    return np.stack([one] * channels, axis=1) if channels > 1 else one


def written(samples: np.ndarray, rate: int = RATE, **options: str) -> Maker:
    return lambda path: sf.write(path, samples, rate, **{"format": "WAV", **options})


def content(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data)


def encoded(format_: str = "WAV", subtype: str = "PCM_16", seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    rate = 8000 if format_ in ("OGG", "MP3") else RATE
    sf.write(buffer, sound(seconds, rate), rate, format=format_, subtype=subtype)
    return buffer.getvalue()


def wav(
    data: bytes, rate: int = RATE, channels: int = 1, bits: int = 16, kind: int = 1,
    align: int | None = None, data_size: int | None = None, riff_size: int | None = None,
    before: bytes = b"", after: bytes = b"", fmt: bool = True,
) -> bytes:  # fmt: skip
    """A RIFF file byte by byte, so that its header can lie."""
    align = channels * bits // 8 if align is None else align
    speed = rate * align & 0xFFFFFFFF
    header = struct.pack("<HHIIHH", kind, channels, rate, speed, align & 0xFFFF, bits)
    chunks = (b"fmt " + struct.pack("<I", 16) + header) if fmt else b""
    size = len(data) if data_size is None else data_size
    chunks += before + b"data" + struct.pack("<I", size) + data + after
    size = 4 + len(chunks) if riff_size is None else riff_size
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + chunks


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def make_unreadable(path: Path) -> None:
    written(sound())(path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read it all the same, but not the kernel's knobs
        path.unlink()
        path.symlink_to(min(Path("/sys/bus").glob("*/drivers_probe")))


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", encoded())


PCM = (sound() * 30000).astype("<i2").tobytes()
FLOATS = sound().astype(np.float32)
FLAC = encoded("FLAC")
OGG, MP3 = encoded("OGG", "VORBIS"), encoded("MP3", "MPEG_LAYER_III")


def with_sample(value: float) -> Maker:
    samples = FLOATS.copy()
    samples[1234] = value
    return written(samples, subtype="FLOAT")


# File name: how to make it. Each must be decoded and classified.
GOOD: dict[str, Maker] = {
    **{
        f"wav-{subtype}.wav": written(sound(), subtype=subtype)
        for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW",
                        "IMA_ADPCM", "MS_ADPCM", "GSM610")
    },
    **{
        f"{format_}-{subtype}.{suffix}": written(sound(rate=rate), rate, format=format_,
                                                subtype=subtype)
        for format_, subtype, suffix, rate in (
            ("FLAC", "PCM_S8", "flac", RATE), ("FLAC", "PCM_16", "flac", RATE),
            ("FLAC", "PCM_24", "flac", RATE), ("OGG", "VORBIS", "ogg", 8000),
            ("OGG", "OPUS", "opus", 48000), ("MP3", "MPEG_LAYER_III", "mp3", 44100),
            ("AIFF", "PCM_16", "aiff", RATE), ("AIFF", "FLOAT", "aif", RATE),
            ("AU", "PCM_16", "au", RATE), ("W64", "PCM_16", "w64", RATE),
            ("RF64", "PCM_16", "rf64", RATE), ("CAF", "PCM_16", "caf", RATE),
            ("WAVEX", "PCM_16", "wav", RATE),
        )
    },
    **{f"channels-{n}.wav": written(sound(channels=n)) for n in range(1, 9)},
    **{
        f"rate-{rate}.wav": written(sound(rate=rate), rate)
        for rate in (100, 101, 997, 2000, 4001, 8000, 11025, 22050, 44100, 48000, 96000, 192000,
                     191999)
    },
    **{
        f"samples-{n}.wav": written(sound()[:n] + 0.01) for n in (1, 2, 3, 27, 399, 400, 401)
    },
    "zeros.wav": written(np.zeros(RATE)),
    "constant.wav": written(np.full(RATE, 0.7)),
    "clipped.wav": written(np.sign(sound())),
    "step.wav": written(np.r_[np.zeros(2000), np.ones(2000)]),
    "faint.wav": written(FLOATS * 1e-30, subtype="FLOAT"),
    "denormal.wav": written(np.full(RATE, 1e-42, np.float32), subtype="FLOAT"),
    "integers-as-floats.wav": written(FLOATS * 32768, subtype="FLOAT"),
    "impulse.wav": written(np.eye(1, RATE)[0]),
    "noise.wav": written(np.random.default_rng(0).uniform(-1, 1, RATE)),
    "wav-named.mp3": written(sound()),
    "flac-named.wav": content(FLAC),
    "no-suffix": written(sound()),
    "UPPER.WAV": written(sound()),
    "herz töne ♥ 心音.wav": written(sound()),
    "-dash --model x.wav": written(sound()),
    "quote' \"$(x) `y`.wav": written(sound()),
    "x" * 251 + ".wav": written(sound()),
    "link.wav": lambda path: path.symlink_to(path.parent / "wav-PCM_16.wav"),
    "says-more-than-it-holds.wav": content(wav(PCM, data_size=0x7FFFFFF0)),
    "streamed.wav": content(wav(PCM, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF)),
    "riff-size-zero.wav": content(wav(PCM, riff_size=0)),
    "says-less-than-it-holds.wav": content(wav(PCM, data_size=2000)),
    "junk-behind.wav": content(wav(PCM, after=bytes(range(256)))),
    "chunk-before.wav": content(wav(PCM, before=b"LIST" + struct.pack("<I", 8) + b"INFOabcd")),
    "half-a-sample.wav": content(wav(PCM[:-1])),
    "truncated.wav": content(encoded()[:3000]),
    "truncated.mp3": content(MP3[: len(MP3) * 3 // 4]),
    "wrong-align.wav": content(wav(PCM, align=0)),
}  # fmt: skip

# File name: how to make it, and what the one line must say.
BAD: dict[str, tuple[Maker, str]] = {
    "empty.wav": (content(b""), "0 bytes"),
    "one-byte.wav": (content(b"R"), "can't be read as audio"),
    "text.wav": (content(b"no sound"), "can't be read as audio"),
    "page.mp3": (content(b"<!doctype html><html></html>" * 40), "can't be read as audio"),
    "json.flac": (content(b'{"audio": []}'), "can't be read as audio"),
    "zip.wav": (make_zip, "can't be read as audio"),
    "pickle.wav": (content(pickle.dumps([1, 2, 3])), "can't be read as audio"),
    "png.wav": (content(b"\x89PNG\r\n\x1a\n" + bytes(200)), "can't be read as audio"),
    "zeros-only.wav": (content(bytes(5000)), "can't be read as audio"),
    "noise-bytes.wav": (content(np.random.default_rng(1).bytes(5000)), "can't be read as audio"),
    "header-only.wav": (content(wav(b"")), "no audio samples"),
    "header-only.flac": (content(FLAC[:42]), ""),
    "header-only.ogg": (content(OGG[:58]), "can't be read as audio"),
    "no-format.wav": (content(wav(PCM, fmt=False)), "can't be read as audio"),
    "no-data.wav": (content(wav(PCM)[:36]), ""),
    **{
        f"first-{n}.wav": (content(wav(PCM)[:n]), "can't be read as audio")
        for n in (4, 12, 20, 35)
    },
    "nan.wav": (with_sample(np.nan), "NaN or infinite"),
    "inf.wav": (with_sample(np.inf), "NaN or infinite"),
    "minus-inf.wav": (with_sample(-np.inf), "NaN or infinite"),
    "all-nan.wav": (written(FLOATS * np.nan, subtype="FLOAT"), "NaN or infinite"),
    "nan-in-one-channel.wav": (
        written(np.stack([FLOATS, FLOATS * np.nan], 1), subtype="FLOAT"), "NaN or infinite"
    ),
    "huge.wav": (written(FLOATS * 1e30, subtype="FLOAT"), "expected about 1 at most"),
    "huge-double.wav": (written(sound() * 1e300, subtype="DOUBLE"), ""),
    "rate-0.wav": (content(wav(PCM, rate=0)), ""),
    "rate-1.wav": (written(sound(), 1), "sampling rate 1 Hz"),
    "rate-99.wav": (written(sound(), 99), "sampling rate 99 Hz"),
    "rate-384001.wav": (written(sound(), 384_001), "sampling rate 384001 Hz"),
    "rate-4-billion.wav": (content(wav(PCM, rate=0xFFFFFFFF)), ""),
    "channels-0.wav": (content(wav(PCM, channels=0, align=2)), "can't be read as audio"),
    "channels-65535.wav": (content(wav(PCM, channels=65535)), ""),
    "bits-0.wav": (content(wav(PCM, bits=0, align=2)), "can't be read as audio"),
    "bits-77.wav": (content(wav(PCM, bits=77)), "can't be read as audio"),
    "codec-unknown.wav": (content(wav(PCM, kind=0x4242)), "can't be read as audio"),
    "flac-broken-header.flac": (content(patched(FLAC, 8, b"\xff" * 20)), ""),
    "truncated.flac": (content(FLAC[: len(FLAC) * 3 // 4]), "can't be read as audio"),
    "ogg-one-page.ogg": (content(OGG[: len(OGG) // 9]), ""),
    "aiff-rate-nan.aiff": (content(patched(encoded("AIFF"), 28, b"\x7f\xff" * 5)), ""),
    "au-lies.au": (content(b".snd" + struct.pack(">5I", 24, 0xFFFFFFFF, 3, 0, 0)), ""),
    "folder.wav": (lambda path: path.mkdir(), "not a regular file"),
    "pipe.wav": (lambda path: os.mkfifo(path), "not a regular file"),
    "socket.wav": (make_socket, "not a regular file"),
    "device.wav": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "loop.wav": (lambda path: path.symlink_to(path), "can't be opened"),
    "dangling.wav": (lambda path: path.symlink_to(path.parent / "nowhere"), "no such file"),
    "absent.wav": (lambda path: None, "no such file"),
    "absent/deep.wav": (lambda path: None, "no such file"),
    "empty.wav/inside.wav": (lambda path: None, "no such file"),
    "y" * 300 + ".wav": (lambda path: None, "can't be opened"),
    "unreadable.wav": (make_unreadable, "can't be opened (Permission denied)"),
    "new\nline.wav": (content(b"no sound"), "can't be read as audio"),
}  # fmt: skip


class Payload:
    """Unpickling it makes a file: the test looks whether anything did."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def two_hours(path: Path) -> None:
    """A small file, but two hours of 100 Hz."""
    minute = sound(60, 100)
    with sf.SoundFile(path, "w", 100, 1, "PCM_U8", format="WAV") as file:
        for _ in range(120):
            file.write(minute)


def make_files(folder: Path) -> None:
    """Makes every file of the table."""
    for name, make in GOOD.items():
        make(folder / name)
    for name, (make, _) in BAD.items():
        make(folder / name)
