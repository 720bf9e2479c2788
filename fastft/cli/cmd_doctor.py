"""`fastft doctor`."""

import argparse
import json
from pathlib import Path

from fastft.cli.arguments import add_json

HELP = "is this machine ready: libraries, GPU, memory, disk; exit code 1 if something must be fixed"
EXAMPLE = "fastft doctor --data in1k/train.beton"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="FILE.beton", help="training file, compared with the memory"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from fastft.cli.printing import print_checks
    from fastft.machine.doctor import as_json, examine
    from fastft.machine.facts import gather

    with Console(stderr=True).status(
        "examining; compiles the loader and a kernel the first time, a minute or two"
    ):
        checks = examine(gather(args.data))
    result = as_json(checks)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_checks(checks, Console(markup=False))
    return 0 if result["ready"] else 1
