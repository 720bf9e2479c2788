"""Claim: a training step of B/16 on 256 images at 224 px moves at most 90 GB outside matrix products and attention under
autocast, and at most 58 GB with a half-precision copy of the weights.

Setting: no GPU, data or weights; the operations of one forward and backward pass on tensors without data, each counting its
inputs and outputs once. Deterministic, so n = 1. The same as `fastft bench traffic RECIPE`.

Run: python benchmarks/traffic.py [RECIPE] [--json benchmarks/results/traffic.json]
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from fastft.bench.traffic_table import measure_traffic, print_traffic
from fastft.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("rcp/final_b16.yaml"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    values = measure_traffic(load_recipe(arguments.recipe))
    print_traffic(values, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
