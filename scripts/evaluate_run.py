"""Score a finished run again; also under `accelerate launch` or torchrun.

Not named evaluate.py: this folder comes first on the import path of the scripts, so that name would
hide the `evaluate` library.
"""

import sys

from hb_ssl.cli import evaluate, run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: evaluate(sys.argv[1:])))
