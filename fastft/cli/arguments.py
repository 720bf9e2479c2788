"""Argument types and arguments that several commands share."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beton_tools.base import torchrun
from beton_tools.base.console import make_console, printable, say
from beton_tools.base.parser import CommandParser, parse_number, positive, renamed_argument, similar_argument
from fastft.recipe.check import show_value
from fastft.recipe.constants import AUTO, DEVICES, SHORT_NAMES, WEIGHT_CHOICES
from fastft.recipe.load import advice_without_option, full_name, nearest_option
from fastft.recipe.other_names import OTHER_NAMES, WITHOUT_OPTION
from fastft.recipe.recipe_file import is_elsewhere, recipe_names
from fastft.recipe.schema import SECTIONS, option_fields

_SHORT = {option: name.replace("_", "-") for name, option in SHORT_NAMES.items()}
CONFIG_FLAGS = ("-C", "--config-file")  # as fastargs names them
OVERRIDES = (
    "You can add any recipe option as --section.key VALUE or --section.key=VALUE, e.g. --optim.lr 3e-4. fastft options lists\n"
    "them all. Short names: "
)
RECIPE = (
    "a recipe that fastft recipes lists (final_b16), a file (mine.yaml), or a table row (02_lr[1e-5], mine.yaml[LABEL])"
)


def print_line(console: Any, text: str) -> None:
    console.print(printable(text), soft_wrap=True)


def show(values: Any, as_json: bool, printer: Callable[[Any, Any], None]) -> int:
    """Print a result as JSON, or with `printer` on a console. Returns the exit code 0."""
    if as_json:
        import msgspec  # most commands do without

        print(json.dumps(msgspec.to_builtins(values), indent=1))
    else:
        printer(values, make_console())
    return 0


class Parser(CommandParser):
    """A parser whose errors are one line, and which reads `-C RECIPE` as `RECIPE`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        if CONFIG_FLAGS[0] in self._option_string_actions:
            words = [word.removeprefix(f"{CONFIG_FLAGS[1]}=") for word in words if word not in CONFIG_FLAGS]
        return super().parse_known_args(words, namespace)


class _Override(argparse.Action):
    """Append `--section.key=value` to `overrides`, as `load_recipe` takes them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.overrides = [*namespace.overrides, f"{option_string}={values}"]


def add_recipe_options(parser: argparse.ArgumentParser, listed: bool) -> None:
    """Add every option of a recipe, and its short name unless the command has an argument with that name.

    The end of the help explains them.

    Args:
        listed: show the options in the command's help.
    """
    taken = set(parser._option_string_actions)
    parser.set_defaults(overrides=[])
    short = ", ".join(flag for flag in (f"--{name}" for name in _SHORT.values()) if flag not in taken)
    parser.epilog = f"{parser.epilog}\n\n{OVERRIDES}{short}"
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ").replace("%", "%%")
    parser.usage = f"{usage} [--section.key VALUE ...]"
    fields = option_fields()
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(section, cls.__doc__) if listed else parser
        for option in (name for name in fields if name.startswith(f"{section}.")):
            names = dict.fromkeys((option, _SHORT.get(option, option)))
            flags = [f"--{name}" for name in names if f"--{name}" not in taken]
            text = f"{fields[option].metadata['help']} (default {show_value(fields[option].default)})"
            group.add_argument(
                *flags, action=_Override, default=argparse.SUPPRESS, dest="overrides", metavar="X",
                help=text.replace("%", "%%") if listed else argparse.SUPPRESS,
            )  # fmt: skip


def hint(parser: argparse.ArgumentParser, name: str) -> str | None:
    """Say what was probably meant: one of the command's arguments, or a recipe option, by another name or misspelt."""
    elsewhere = name.replace("-", "_")
    takes_options = "--optim.lr" in parser._option_string_actions
    is_option = elsewhere in OTHER_NAMES or full_name(name) in option_fields()
    found = renamed_argument(parser, name)
    if found is None and "." not in name and not (takes_options and (is_option or elsewhere in WITHOUT_OPTION)):
        found = similar_argument(parser, name)
    if found is not None:
        return f"Did you mean {found}?"
    if not takes_options:
        return f"This is a recipe option, and {parser.prog} takes none" if is_option else None
    option = full_name(name) if full_name(name) in option_fields() else nearest_option(name)
    if option is None:
        return advice_without_option(name)
    return f"Did you mean --{option if '.' in name else _SHORT.get(option, option)}?"


def recipe_reference(text: str) -> str:
    """An argparse type: a recipe.

    Says on stderr if `rcp/...` is not here and the one that comes with fastft is used.
    """
    option = None if Path(text).exists() else nearest_option(full_name(text.partition("=")[0])) if "=" in text else None
    if option is not None:  # Ultralytics writes options in this way
        raise argparse.ArgumentTypeError(
            f"give a recipe, such as photos, before options. Did you mean --{_SHORT.get(option, option)}?"
        )
    if is_elsewhere(text) and torchrun.rank() == 0:
        say(f"there is no {text} in this folder, so the one that comes with fastft is used")
    return text


def add_recipe(parser: argparse.ArgumentParser) -> None:
    recipe = parser.add_argument("recipe", metavar="RECIPE", type=recipe_reference, help=RECIPE)
    recipe.completer = lambda **_: recipe_names()  # type: ignore[attr-defined]  # argcomplete's
    parser.add_argument(*CONFIG_FLAGS, metavar="RECIPE", dest="recipe", help="another way to give RECIPE")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="a run directory, or a checkpoint in it")
    add_shared(parser, "weights")


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the arguments in SHARED."""
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name])


def share(text: str) -> float:
    """An argparse type: a fraction in (0, 1], written as 0.45 or 45%."""
    number = parse_number(float, text.removesuffix("%"))
    value = None if number is None else number / (100 if text.endswith("%") else 1)
    if value is None or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.45 or 45%, not '{text}'")
    return value


SHARED: dict[str, dict[str, Any]] = {
    "weights": {
        "choices": WEIGHT_CHOICES, "default": AUTO,
        "help": "auto (default): the weights that the run chose. raw, ema: these weights of the last epoch. last: the kind that "
        "the run chose, from the last epoch. best: from the best epoch. probe: the pretrained tower with its linear probe",
    },
    "device": {"choices": DEVICES, "default": AUTO, "help": "auto (default): on the GPU if there is one"},
    "logit-adjustment": {
        "action": "store_true",
        "help": "correct the logits for unequal class sizes in the training file, which raises balanced accuracy",
    },
    "no-temperature": {
        "action": "store_true",
        "help": "use the plain softmax, without dividing the logits by the temperature that was fitted on held-out images",
    },
    "overwrite": {"action": "store_true", "help": "replace existing files"},
    "only-present-classes": {
        "action": "store_true",
        "help": "rank only the classes that have images in the file, as published for ImageNet-A and ImageNet-R",
    },
    "price": {"type": positive(float), "help": "price per GPU-hour (default: no money is shown)"},
    "json": {"action": "store_true", "help": "print JSON"},
}  # fmt: skip
