"""Repeated grouped k-fold cross-validation of a recipe or a baseline."""

import sys

from hb_ssl.cli import cross_validate, run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: cross_validate(sys.argv[1:])))
