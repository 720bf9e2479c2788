"""The `fastft` command: parse the arguments, run the command, turn errors into exit codes.

This module and those of the commands import nothing heavy: `add_arguments` and `run` import what one command needs.

Exit codes: 0 success, 1 the training or a sweep row failed, 2 bad input, 75 stopped by a signal after a checkpoint (run the
same command again), 128 + n stopped by signal n (130: Ctrl-C, of a training after a checkpoint).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from beton_tools.base import torchrun
from beton_tools.base.signals import describe_stop, exit_code, imports_of, raise_on_stop_signals

with imports_of("fastft"):
    from beton_tools.base.console import describe_os_error, print_error, print_warnings_in_one_line, start_command
    from beton_tools.base.errors import UserError
    from fastft import __version__
    from fastft.cli import (
        cmd_average,
        cmd_bench,
        cmd_convert,
        cmd_cost,
        cmd_demo,
        cmd_doctor,
        cmd_eval,
        cmd_explain,
        cmd_export,
        cmd_predict,
        cmd_preview,
        cmd_recipes,
        cmd_report,
        cmd_search,
        cmd_train,
        cmd_zeroshot,
    )
    from fastft.cli.arguments import OVERRIDES, Parser, add_recipe_options, refuse_unknown
    from fastft.train.exceptions import EXIT_REQUEUE, LocalRankError, NonFinite, PeerCrashed, Preempted

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


class Command(Protocol):
    """One command, or one kind of `fastft convert`: a module of this package, or a class in one."""

    HELP: str
    EXAMPLE: str
    TAKES_OPTIONS: bool  # accepts recipe options, which are in `overrides`

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


CONVERT_KINDS: dict[str, Command] = {"folder": cmd_convert.Folder, "imagenet": cmd_convert.Imagenet}
# When one process ends, torchrun ends the others at once: this long the others leave local rank 0 to print the error.
SECONDS_TO_REPORT = 15
COMMANDS: dict[str, Command] = {
    "train": cmd_train,
    "recipes": cmd_recipes.Recipes,
    "options": cmd_recipes.Options,
    "explain": cmd_explain,
    "preview": cmd_preview,
    "cost": cmd_cost,
    "sweep": cmd_search.Sweep,
    "tune": cmd_search.Tune,
    "eval": cmd_eval,
    "predict": cmd_predict,
    "zeroshot": cmd_zeroshot,
    "average": cmd_average,
    "export": cmd_export,
    "demo": cmd_demo,
    "report": cmd_report,
    "bench": cmd_bench,
    "doctor": cmd_doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if not start_command("fastft"):
        return EXIT_BAD_INPUT
    argv = sys.argv[1:] if argv is None else argv
    args, rest = build_parser(argv).parse_known_args(argv)
    try:
        refuse_unknown(args.parser, rest)
        print_warnings_in_one_line(f"fastft {args.command}")
        with raise_on_stop_signals(f"fastft {args.command}"):
            return args.run(args)
    except UserError as error:
        _print_error(args.command, error)
        return EXIT_BAD_INPUT
    except Preempted as stop:
        _print_error(args.command, stop)
        return EXIT_REQUEUE
    except (NonFinite, PeerCrashed) as error:
        _print_error(args.command, error)
        return EXIT_FAILED
    except KeyboardInterrupt as stop:
        _print_error(args.command, describe_stop(stop))
        return exit_code(stop)
    except BrokenPipeError:  # the reader of our output, such as head, has closed it
        sys.stderr.close()
        return 0
    except OSError as error:
        _print_error(args.command, describe_os_error(error))
        return EXIT_BAD_INPUT


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of `argv`: of the commands that it does not name only the help is known, not the arguments.

    Arguments of some commands need seconds of imports. Without `argv` every command has its arguments.
    """
    chosen = None if argv is None else next((word for word in argv if not word.startswith("-")), "")
    parser = Parser(prog="fastft", description="Fine-tune CLIP vision transformers for the fewest GPU-hours.")
    parser.add_argument("--version", action="version", version=f"fastft {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    convert = commands.add_parser("convert", help="write images to .beton files", allow_abbrev=False)
    kinds = convert.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, kind in CONVERT_KINDS.items():
        _add_command(kinds, name, kind, with_arguments=chosen in (None, "convert"))
    for name, command in COMMANDS.items():
        _add_command(commands, name, command, with_arguments=chosen in (None, name))
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, command: Command, *, with_arguments: bool) -> None:
    parser = commands.add_parser(
        name,
        help=command.HELP,
        description=command.HELP[0].upper() + command.HELP[1:] + ".",
        epilog=f"example:\n  {command.EXAMPLE}" + (f"\n\n{OVERRIDES}" if command.TAKES_OPTIONS else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=command.run, parser=parser)
    if with_arguments:
        command.add_arguments(parser)
    if with_arguments and command.TAKES_OPTIONS:
        add_recipe_options(parser, listed=command is cmd_train)


def _print_error(command: str, error: object) -> None:
    """Print one line, once per host: from local rank 0, or from the only process that has this error (LocalRankError)."""
    if torchrun.local_rank() == 0 or isinstance(error, LocalRankError):
        print_error(f"fastft {command}", error)
    elif isinstance(error, UserError):
        time.sleep(SECONDS_TO_REPORT)
