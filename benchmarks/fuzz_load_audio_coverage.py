"""Coverage-guided fuzzing of `load_audio` with atheris (`pip install atheris`, not a dependency).

    python benchmarks/fuzz_load_audio_coverage.py -runs=20000 -seed=1 -max_len=8192

The guide is the coverage of Python code (hb_ssl.audio, soundfile); libsndfile itself is not
instrumented, so `fuzz_load_audio.py` with its larger number of inputs is the main test. Ends with
a traceback and the guilty input in ./crash-* if anything but a UserError comes out.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hb_ssl.audio", "soundfile"]):
    from hb_ssl.audio import load_audio
from fuzz_load_audio import seed_files

from hb_ssl.errors import UserError

SCRATCH = Path(tempfile.mkdtemp())


def one_input(data: bytes) -> None:
    path = SCRATCH / "input.wav"
    path.write_bytes(data)
    try:
        waveform, _ = load_audio(path, 2000)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len(waveform)
        assert abs(waveform).max() < float("inf")


if __name__ == "__main__":
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seed_files()):
        (corpus / str(number)).write_bytes(content)
    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()
