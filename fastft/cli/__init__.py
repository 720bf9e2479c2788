"""The `fastft` command: parse the arguments, run the command, turn errors into exit codes.

This module imports nothing heavy. For its help, a command's module imports only what is fast, and `run` imports the
rest.

Exit codes: 0 success, 1 training or a sweep row failed, 2 bad input, 75 stopped by a signal after a checkpoint (run the
same command again), 128 + n stopped by signal n (130: Ctrl-C, during training after a checkpoint).
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Protocol, cast

from beton_tools.base import torchrun
from beton_tools.base.compilation import announce_compilation
from beton_tools.base.signals import imports_of, leave, raise_on_stop_signals

with imports_of("fastft"):
    from beton_tools import __version__
    from beton_tools.base.console import (
        ENDINGS,
        EXIT_BAD_INPUT,
        end_command,
        has_memory,
        print_error,
        print_warnings_in_one_line,
        start_command,
    )
    from beton_tools.base.errors import UserError
    from beton_tools.base.parser import refuse_unknown
    from fastft.cli.arguments import Parser, add_recipe_options, hint
    from fastft.machine.exits import (
        EXIT_REQUEUE,
        GpuFailed,
        LocalRankError,
        NonFinite,
        PeerCrashed,
        PeerLost,
        Preempted,
    )

EXIT_FAILED = 1
# As LEAST_MEMORY in `beton_tools.base.console`, for all commands but LIGHT, which do with less.
TORCH_MEMORY = 1.6e9
LIGHT = ("convert", "recipes", "options", "explain", "cost")


class Command(Protocol):
    """One command, or one kind of `fastft convert`: a module in this package, or a class in one."""

    EXAMPLE: str
    TAKES_OPTIONS: bool  # accepts recipe options, which are in `overrides`

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


# When one process ends, torchrun ends the others at once. So the others let local rank 0 print the error for this long.
SECONDS_TO_REPORT = 15
# (module in this package, or class in one, help). Only the module of the command that runs is imported.
CONVERT_KINDS = {
    "folder": (
        "cmd_convert.Folder",
        "write a labelled set, such as a folder with one folder per class, to a .beton file",
    ),
    "imagenet": ("cmd_convert.Imagenet", "write ImageNet, in any common layout, to train.beton and val.beton"),
}
COMMANDS = {
    "train": ("cmd_train", "train a recipe, or continue its run directory"),
    "recipes": ("cmd_recipes.Recipes", "list fastft's recipes and tables, with expected accuracy and predicted cost"),
    "options": ("cmd_recipes.Options", "list every recipe option: meaning, default, limits, value in the paper's runs"),
    "explain": ("cmd_explain", "show what a recipe will do and cost, without data, weights or GPU"),
    "preview": ("cmd_preview", "draw what the model will see: originals, crops, results and the ops between"),
    "cost": (
        "cmd_cost",
        "predict GPU-hours and money for recipes or whole sweeps, modelled from FLOPs and memory traffic",
    ),
    "sweep": ("cmd_sweep", "train or resume the rows in a paper table or an option grid, and compare them"),
    "eval": ("cmd_eval", "evaluate a checkpoint on .beton files: accuracy, metrics per class, calibration"),
    "predict": ("cmd_predict", "label image files with a checkpoint, or write their embeddings"),
    "zeroshot": (
        "cmd_zeroshot",
        "evaluate CLIP's zero-shot classifier, and write it as a head that training can start from",
    ),
    "average": (
        "cmd_average",
        "average the weights at the start and end of a run (WiSE-FT), or of several runs (soups)",
    ),
    "export": (
        "cmd_export",
        "write a checkpoint for another library, check it by loading it there, and add a model card",
    ),
    "demo": (
        "cmd_demo",
        "download photographs, fine-tune a model on them and draw its predictions, in minutes on a CPU",
    ),
    "report": ("cmd_report", "write an HTML page about a run or benchmark results, or one that compares several"),
    "bench": ("cmd_bench", "measure the speed on this machine beside FFCV, timm and DALI, as JSON and a table"),
    "doctor": (
        "cmd_doctor",
        "check whether this machine is ready: libraries, GPU, memory, disk (exit code 1 if it is not)",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow: `eval "$(register-python-argcomplete fastft)"`
        import argcomplete

        argcomplete.autocomplete(build_parser(os.environ["COMP_LINE"].split()[1:]))
    if not start_command("fastft"):
        return EXIT_BAD_INPUT
    if is_program := argv is None:
        announce_compilation(_say_once_per_host)
        argv = sys.argv[1:]
    try:
        args, rest = build_parser(argv).parse_known_args(argv)
    except ENDINGS as error:
        return end_command(error, partial(print_error, "fastft"))
    if args.command not in LIGHT and not has_memory(f"fastft {args.command}", TORCH_MEMORY):
        return EXIT_BAD_INPUT
    try:
        refuse_unknown(args.parser, rest, hint)
        print_warnings_in_one_line(f"fastft {args.command}")
        with raise_on_stop_signals(f"fastft {args.command}"):
            code = args.run(args)
            sys.stdout.flush()  # an error, such as a full disk, is reported here
            return code
    except Preempted as stop:
        _print_error(args.command, stop)
        return EXIT_REQUEUE
    except (NonFinite, PeerCrashed) as error:
        _print_error(args.command, error)
        return EXIT_FAILED
    except ENDINGS as error:
        code = end_command(error, partial(_print_error, args.command))
        if is_program and isinstance(error, KeyboardInterrupt) and torchrun.world_size() == 1:
            leave(code)
        return code


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Build the parser for `argv`. Commands that it does not name have only their help, not their arguments.

    Some commands' arguments need seconds of imports. Without `argv` every command has its arguments.
    """
    chosen = None if argv is None else next((word for word in argv if not word.startswith("-")), "")
    parser = Parser(prog="fastft", description="Fine-tune CLIP vision transformers for the fewest GPU-hours.")
    parser.add_argument("--version", action="version", version=f"fastft {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert = commands.add_parser("convert", help="write images to .beton files", allow_abbrev=False)
    kinds = convert.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, kind in CONVERT_KINDS.items():
        _add_command(kinds, name, *kind, is_chosen=chosen in (None, "convert"))
    for name, command in COMMANDS.items():
        _add_command(commands, name, *command, is_chosen=chosen in (None, name))
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, place: str, text: str, *, is_chosen: bool) -> None:
    if not is_chosen:
        commands.add_parser(name, help=text)
        return
    module, _, attribute = place.partition(".")
    with imports_of("fastft"):
        try:
            command: Command = cast(Command, import_module(f"fastft.cli.{module}"))
        except OSError as error:  # llvmlite's, for a library that cannot be loaded
            raise ImportError(str(error)) from error
    command = getattr(command, attribute) if attribute else command
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=command.run, parser=parser)
    command.add_arguments(parser)
    if command.TAKES_OPTIONS:
        add_recipe_options(parser, listed=name == "train")


def _say_once_per_host(text: str) -> None:
    if torchrun.local_rank() == 0:
        print(f"fastft: {text}", file=sys.stderr, flush=True)


def _print_error(command: str, error: object) -> None:
    """Print one line, once per host: from local rank 0, or from the only process that has this error."""
    is_told = isinstance(error, LocalRankError | GpuFailed) or torchrun.local_rank() == 0
    if isinstance(error, PeerLost) and error.is_told_here is not None:
        is_told = error.is_told_here
    if is_told:
        print_error(f"fastft {command}", error)
    elif isinstance(error, UserError):
        time.sleep(SECONDS_TO_REPORT)
