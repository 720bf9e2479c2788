"""Write docs/options.md from the recipe schema.

python docs/options_page.py            rewrite the page
python docs/options_page.py --check    exit 1 if it is out of date
"""

import sys
from pathlib import Path

from fastft.recipe import SECTIONS
from fastft.recipe.constants import SHORT_NAMES
from fastft.recipe.option_list import OptionInfo, list_options

PAGE = Path(__file__).resolve().parent / "options.md"


def options_page() -> str:
    """Return the Markdown of docs/options.md."""
    parts = [
        "# Options",
        "This page lists every recipe option with its meaning, default and allowed values, as `fastft options [SECTION|NAME]` "
        "does. You set an option in its section of a recipe (`optim: {lr: 3e-4}`) or on the command line (`--optim.lr=3e-4` or "
        "`--optim.lr 3e-4`). Some have a short name, such as `--lr`, which is also the argument of `fastft.fit`. "
        "'Paper's runs' are the values in the reference's logs, which differ from the paper's Table 10 in a few places "
        "([Recipes](recipes.md)).",
        "Written by `python docs/options_page.py` from `fastft/recipe/schema.py`. A test keeps it up to date.",
    ]
    for section, cls in SECTIONS.items():
        options = list_options(section)
        # closed at first, because all sections together fill fifteen phone screens
        opening = f'<details markdown="1">\n<summary>{len(options)} options</summary>'
        parts += [f"## {section}", str(cls.__doc__), opening, *map(_page_entry, options), "</details>"]
    return "\n\n".join(parts) + "\n"


def _page_entry(option: OptionInfo) -> str:
    """Return the option's entry in a definition list, which fits narrow screens."""
    short = next((f", `--{name.replace('_', '-')}`" for name, full in SHORT_NAMES.items() if full == option.name), "")
    paper = f" Paper's runs: {option.paper}." if option.paper else ""
    text = f"{option.meaning}\n\n    Default {option.default}. Values: {option.limits}.{paper}"
    return f"`{option.name}`{short}\n:   {text.replace('[', chr(92) + '[')}"  # [...] would be a link


def is_current() -> bool:
    return PAGE.exists() and PAGE.read_text(encoding="utf-8") == options_page()


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not is_current())
    PAGE.write_text(options_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
