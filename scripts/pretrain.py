"""Pre-train a phonocardiogram backbone; with `accelerate launch` on one device or many."""

import sys

from hb_ssl.cli import run_command
from hb_ssl.config import parse_config
from hb_ssl.pretraining.config import PretrainConfig
from hb_ssl.pretraining.run import pretrain


def main() -> None:
    (config,) = parse_config(
        [PretrainConfig], sys.argv[1:], description="Self-supervised pre-training on audio folders."
    )
    pretrain(config)


if __name__ == "__main__":
    sys.exit(run_command(main))
