"""Check the spelling of the documentation and of the sources' texts; part of `make docs`.

python docs/spelling.py [FOLDER]    exit 1 and list misspelt words, and American spellings in Markdown

FOLDER contains what is checked (default: the repository). codespell brings lists of misspellings, and one of British words with
their American forms, which is used in reverse: the documentation is in British English.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import codespell_lib

ROOT = Path(__file__).resolve().parents[1]
LISTS = Path(codespell_lib.__file__).parent / "data"
# American forms that are names (torch's optimizer, Pillow's equalize, compute-sanitizer) or British words too
NAMES = "optimizer,optimizers,equalize,sanitizer,practice,program,programs,writable,disk,meter"
CODE = "reencode,caf,experiements"  # a variable; the beginning of an undecodable name in tests; a folder in a source of images
SOURCES = ("fastft", "beton_tools", "examples", "rcp", "benchmarks", "docs")


def american_words() -> str:
    """Lines "american->british", as codespell's dictionaries have them."""
    pairs = (line.split("->") for line in (LISTS / "dictionary_en-GB_to_en-US.txt").read_text().splitlines())
    lines = {f"{us.split(',')[0].strip()}->{gb}" for gb, us in pairs}
    return "\n".join(sorted(line for line in lines if line.split("->")[0] != line.split("->")[1])) + "\n"


def codespell(paths: list[Path], *options: str) -> bool:
    """Return True if there are no misspelled words; print those that there are."""
    command = [sys.executable, "-m", "codespell_lib", "--skip", "*.json,*.png,*.svg,*.html,*.pyc", *options]
    return subprocess.run([*command, *map(str, paths)]).returncode == 0


def main() -> int:
    root = Path(sys.argv[1]) if sys.argv[1:] else ROOT
    pages = [*sorted(root.glob("*.md")), root / "docs"]
    sources = [root / name for name in SOURCES if (root / name).exists()]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as dictionary:
        dictionary.write(american_words())
        dictionary.flush()
        british = codespell(pages, "-D", dictionary.name, "-L", NAMES)
    return int(not (codespell([*pages, *sources], "-L", CODE) and british))


if __name__ == "__main__":
    sys.exit(main())
