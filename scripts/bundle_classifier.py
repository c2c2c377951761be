"""Makes the bundled classifier: hb_ssl/models/assets/heart-sound-classifier.

hb-ssl cv --config configs/pcg_lora.yaml --source DIR --output_dir runs/cv
hb-ssl evaluate runs/cv --full
hb-ssl train --config configs/pcg_lora.yaml --source DIR --test_fraction 0 --output_dir runs/all
python scripts/bundle_classifier.py runs/all --cv runs/cv
"""

import argparse

from hb_ssl.bundling import bundle_classifier
from hb_ssl.cli import run_command
from hb_ssl.inference import BUNDLED_CLASSIFIER


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="trained on every recording")
    parser.add_argument("--cv", required=True, help="fully evaluated cross-validation")
    parser.add_argument("--target", default=str(BUNDLED_CLASSIFIER), help="folder to replace")
    arguments = parser.parse_args()
    print(bundle_classifier(arguments.run, arguments.cv, arguments.target))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
