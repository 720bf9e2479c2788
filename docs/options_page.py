"""Write docs/options.md from the recipe schema.

python docs/options_page.py            rewrite the page
python docs/options_page.py --check    exit 1 if it is out of date
"""

import sys
from pathlib import Path

from fastft.recipe.option_list import options_page

PAGE = Path(__file__).resolve().parent / "options.md"


def is_current() -> bool:
    return PAGE.exists() and PAGE.read_text(encoding="utf-8") == options_page()


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not is_current())
    PAGE.write_text(options_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
