"""`fastft doctor`."""

import argparse
from pathlib import Path

from beton_tools.base.console import make_console
from fastft.cli.arguments import add_shared, show

EXAMPLE = "fastft doctor --data in1k/train.beton"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="FILE.beton", help="training file, to compare its size with the memory"
    )
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    from fastft.cli.doctor import examine
    from fastft.cli.printing import print_checks
    from fastft.machine.facts import gather

    waiting = (
        "examining this machine. The first time, this compiles the loader and a kernel, which takes a minute or two"
    )
    with make_console(stderr=True).status(waiting):
        checks = examine(gather(args.data))
    show(checks, args.json, print_checks)
    return 0 if checks.ready else 1
