"""Write docs/options.md and fastft/recipe/option_types.py from the recipe schema and the commands.

python docs/options_page.py            rewrite the page and the module
python docs/options_page.py --check    exit 1 if one of them is out of date
"""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

from beton_tools.cli import build_parser as beton_parser
from fastft.cli import build_parser
from fastft.recipe import SECTIONS
from fastft.recipe.check import OptionChecker
from fastft.recipe.constants import AUTO, SHORT_NAMES
from fastft.recipe.option_list import OptionInfo, list_options

PAGE = Path(__file__).resolve().parent / "options.md"
PATHS = ("data.train", "data.val", "model.arch", "model.weights", "model.head", "train.run_dir")
TYPES = PAGE.parents[1] / "fastft/recipe/option_types.py"


def options_page() -> str:
    """Return the Markdown of docs/options.md."""
    parts = [
        "# Options",
        "This page lists every recipe option with its meaning, default and allowed values, as `fastft options [SECTION|NAME]` "
        "does. You set an option in its section of a recipe (`optim: {lr: 3e-4}`) or on the command line (`--optim.lr=3e-4` or "
        "`--optim.lr 3e-4`). Some have a short name, such as `--lr`, which is also the argument of `fastft.fit`. "
        "'Paper's runs' are the values in the reference's logs, which differ from the paper's Table 10 in a few places "
        "([Recipes](recipes.md)).",
        "Written by `python docs/options_page.py` from `fastft/recipe/schema.py` and the commands. A test keeps it up to date.",
    ]
    for section, cls in SECTIONS.items():
        options = list_options(section)
        # can be closed, because all sections together fill fifteen phone screens
        opening = f'<details markdown="1" open>\n<summary>{len(options)} options</summary>'
        parts += [f"## {section}", str(cls.__doc__), opening, *map(_page_entry, options), "</details>"]
    parts += [
        "## Arguments of the commands",
        "Commands that take a recipe accept the options above and their short names too, unless they have an argument with "
        "the same name.",
        "`--data` names the images that a command works on: `convert` converts them, `train`, `sweep`, `preview` and "
        "`explain` read them as training images, and `eval`, `zeroshot` and `average` evaluate on them. For a recipe's training "
        "and validation images, every command that takes its options also accepts `--data.train` and `--data.val`.",
        "\n".join(["| argument | commands | meaning |", "|---|---|---|", *_argument_rows()]),
    ]
    return "\n\n".join(parts) + "\n"


def arguments() -> dict[str, dict[str, list[str]]]:
    """Map each argument of a command to its meanings, and each meaning to the commands that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for program, parser in (("", build_parser()), ("beton ", beton_parser())):
        for name, command in _subcommands(parser, program):
            for action in command._actions:
                flags = [flag for flag in action.option_strings if flag.startswith("--") and flag != "--help"]
                if flags and action.dest != "overrides":
                    meaning = str(action.help).replace("%%", "%")
                    found.setdefault(flags[0], {}).setdefault(meaning, []).append(name)
    return dict(sorted(found.items()))


def _subcommands(parser: argparse.ArgumentParser, prefix: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                below = list(_subcommands(child, f"{prefix}{name} "))
                yield from below or [(prefix + name, child)]


def _argument_rows() -> Iterator[str]:
    for flag, meanings in arguments().items():
        for meaning, commands in meanings.items():
            text = meaning.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
            yield f"| `{flag}` | {', '.join(f'`{name}`' for name in commands)} | {text} |"


def _page_entry(option: OptionInfo) -> str:
    """Return the option's entry in a definition list, which fits narrow screens."""
    short = next((f", `--{name.replace('_', '-')}`" for name, full in SHORT_NAMES.items() if full == option.name), "")
    paper = f" Paper's runs: {option.paper}." if option.paper else ""
    text = f"{option.meaning}\n\n    Default {option.default}. Values: {option.limits.removeprefix('one of ')}.{paper}"
    return f"`{option.name}`{short}\n:   {text.replace('[', chr(92) + '[')}"  # [...] would be a link


def types_module() -> str:
    """Return the Python of fastft/recipe/option_types.py: for each section a TypedDict with its options."""
    parts = [
        '"""The options of each section as types, for `fastft.fit`: a checker finds a misspelt option or a wrong type.\n\n'
        'Written by `python docs/options_page.py` from `fastft/recipe/schema.py`. A test keeps it up to date.\n"""\n\n'
        "from collections.abc import Sequence\nfrom pathlib import Path\nfrom typing import Literal, TypedDict"
    ]
    for section, cls in SECTIONS.items():
        if section == "about":  # describes a recipe; fit has no such argument
            continue
        hints = typing.get_type_hints(cls)
        entries = [
            f"    {f.name}: {_annotation(OptionChecker(f, hints[f.name]), f'{section}.{f.name}')}"
            for f in dataclasses.fields(cls)
        ]
        head = f'class {cls.__name__}Options(TypedDict, total=False):\n    """{cls.__doc__}"""\n\n'
        parts.append(head + "\n".join(entries))
    return "\n\n\n".join(parts) + "\n"


def _annotation(checker: OptionChecker, name: str) -> str:
    """Return the type of the values that the option takes from Python."""
    text = "str | Path" if name in PATHS else "str"
    parts = (
        []
        if checker.choices
        else [{bool: "bool", int: "int", float: "float", str: text, tuple: "Sequence[float]"}[checker.type]]
    )
    if checker.choices or (checker.auto and checker.type is not str):
        named = ", ".join(f'"{word}"' for word in (*checker.choices, *[AUTO] * checker.auto))
        parts.append(f"Literal[{named}]")
    return " | ".join(parts + ["None"] * checker.optional)


def is_current() -> bool:
    files = {PAGE: options_page(), TYPES: types_module()}
    return all(path.exists() and path.read_text(encoding="utf-8") == text for path, text in files.items())


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not is_current())
    PAGE.write_text(options_page(), encoding="utf-8")
    TYPES.write_text(types_module(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
