"""Fine-tune a backbone; with `accelerate launch` on one device or many."""

import sys

from hb_ssl.cli import run_command, train

if __name__ == "__main__":
    sys.exit(run_command(lambda: train(sys.argv[1:])))
