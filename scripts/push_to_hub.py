"""Push a finished run to the Hugging Face Hub, with its model card."""

import sys

from hb_ssl.cli import push, run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: push(sys.argv[1:])))
