"""Write the tables in README.md and docs/ and the pictures in docs/images from benchmarks/results. No number is typed.

The demo's results come from runs/demo/figures.json, which `make demo` writes, kept as benchmarks/results/demo.json.
Costs are modelled by `fastft cost`. A table is placed between `<!-- bench:NAME -->` and `<!-- /bench -->`. NAME is a
key of TABLES.

Run: python benchmarks/tables.py [--check]     (--check writes nothing; exit code 1 if a table or picture is out of date)
"""

import argparse
import io
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import costs
import fake_card
import foreign
import half_residual
import msgspec
import nodes
import photos
import probe
import speed
import study
from rich.console import Console

from beton_tools.base.console import markdown_table as markdown
from fastft.cli.printing import print_explanation
from fastft.cost.explanation import explain
from fastft.jobs.demo import CONTENDERS, DemoFigures, figure_cells
from fastft.machine.gpus import MAIN_GPUS
from fastft.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in (
            "benchmarks",
            "cost",
            "large-data",
            "measurements/half-precision",
            "measurements/photos",
            "measurements/published",
            "measurements/study",
            "models",
            "step",
            "study",
        )
    ),
)
TRAFFIC = ROOT / "fastft" / "cost" / "traffic.json"
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
CODE_WIDTH, CODE_INDENT = 100, 9  # characters; explain's texts begin in this column
BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


class Results:
    """The demo's results. speed.py reads the results of `fastft bench`."""

    def __init__(self, folder: Path) -> None:
        self.demo = msgspec.json.decode((folder / "demo.json").read_bytes(), type=DemoFigures)


# tables


def demo(results: Results) -> str:
    """Tabulate the contenders of `make demo`."""
    d = results.demo
    rows = [["always the largest class", f"{d.majority:.1f}", "", ""]]
    rows += [[c.title, *figure_cells(d, c.name)] for c in reversed(CONTENDERS)]
    head = ["", "top-1 %, ± standard error", "fine-tuning gains", "minutes of training"]
    return (
        f"{markdown(head, rows)}\n\n{d.train_images:,} photos for training, {d.n} others for validation, 4 classes, "
        f"{d.image_size} px; EMA after the last epoch. Gains are paired by image. {d.cpu}, {d.date}."
    )


def explained(recipe: str) -> str:
    """Return some of the first lines that `fastft explain` prints."""
    text = io.StringIO()
    console = Console(file=text, width=120, markup=False, highlight=False)
    print_explanation(explain(load_recipe(recipe)), load_recipe(recipe), console, MAIN_GPUS, verbose=False)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    shown = [next(line for line in lines if line.startswith(name)) for name in ("training", "accuracy", "cost")]
    return code("\n".join([shown[0], "...", *shown[1:]]))


def code(text: str) -> str:
    """Make a code block, with lines that fit the width of a page on GitHub."""
    lines = (textwrap.fill(line, CODE_WIDTH, subsequent_indent=" " * CODE_INDENT) for line in text.splitlines())
    return "```\n{}\n```".format("\n".join(lines))


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": lambda _: speed.summary(),
    "processors": lambda _: speed.processors(),
    "machines": lambda _: speed.machines(),
    "order": lambda _: speed.order(),
    "launches": fake_card.launches,
    "node": nodes.node,
    "conversion": nodes.conversion,
    "long-files": nodes.long_files,
    "demo": demo,
    "readme-run": lambda results: code("\n".join(results.demo.conclusion.splitlines()[:2])),  # result and baseline
    "readme-explain": lambda _: explained("final_b16"),
    "recipes": costs.recipes,
    "recipes-not-run": costs.not_run,
    "readme-cost": costs.readme,
    "cost-published": costs.cost_published,
    "cost-plans": costs.plans,
    "cost-sentence": lambda _: costs.sentence(),
    "models": costs.model_costs,
    "starts": costs.starts,
    "study-complete": study.complete,
    "study-ways": study.compared,
    "study-short": study.short,
    "study-summary": study.summary,
    "study-statistics": study.statistics,
    "study-shorter": study.shorter,
    "provenance": study.provenance,
    "half-residual": half_residual.table,
    "probe": probe.table,
    "attentive": probe.attentive,
    "readme-photos": lambda _: photos.summary(),
    "photos-sets": lambda _: photos.headline("fastft"),
    "photos-setting": lambda _: photos.setting("fastft"),
    "photos-heads": lambda _: photos.heads(),
    "photos-seconds": lambda _: photos.headline(photos.LOOP_SECONDS),
    "photos-seconds-setting": lambda _: photos.setting(photos.LOOP_SECONDS),
    "photos-seconds-shorter": lambda _: photos.shorter(photos.TWENTY),
    "photos-budget-shorter": lambda _: photos.shorter(photos.SHORTER_BUDGET),
    "photos-longer": lambda _: photos.tried(photos.TRIED_LONGER),
    "photos-resized": lambda _: photos.resized(),
    "photos-tried": lambda _: photos.tried(photos.TRIED_RATE),
    "photos-start": lambda _: photos.start(),
    "photos-centre": lambda _: photos.tried(photos.TRIED_CENTRE),
    "photos-parts": lambda _: photos.tried(photos.TRIED_PARTS),
    "photos-augmentation": lambda _: photos.augmentation(),
    "photos-budget": lambda _: photos.headline(photos.BUDGET),
    "photos-budget-setting": lambda _: photos.setting(photos.BUDGET),
    "photos-steps": lambda _: photos.gains_by_steps(),
    "photos-foreign": lambda _: foreign.table(),
    "photos-few-steps": lambda _: photos.few_steps(),
    "photos-sources": lambda _: photos.sources(),
    "photos-auto": lambda _: photos.beside("ours", "", ("auto",), "fastft, 42 px"),
    "photos-whole": lambda _: photos.beside("loop, whole length", ", whole length", ("ours",)),
    "photos-whole-seconds": lambda _: photos.beside(
        "loop, whole length", ", whole length, as many seconds", photos.LONG
    ),
    "photos-head": lambda _: photos.beside("linear head", ", whole length", ("ours",), "linear head"),
    "photos-values": lambda _: photos.beside(
        "ours, earlier values, whole length", ", whole length", ("ours",), "earlier"
    ),
}


# pictures


PICTURES: dict[str, Callable[[Results, str], str]] = {
    "speed": lambda _, theme: speed.picture(theme),
    "study": study.picture,
    "frontier": costs.picture,
}


def filled(text: str, results: Results) -> str:
    """Return the page with every table made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]](results)}\n{block[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is out of date")
    check = parser.parse_args().check
    results = Results(RESULTS)
    new = {TRAFFIC: costs.traced_traffic()}
    if not check:
        TRAFFIC.write_text(new[TRAFFIC], encoding="utf-8")  # the tables' costs are read from it
    new |= {page: filled(page.read_text(encoding="utf-8"), results) for page in PAGES}
    for name, draw in PICTURES.items():
        new |= {IMAGES / f"{name}-{theme}.svg": draw(results, theme) for theme in ("light", "dark")}
    stale = [path for path, text in new.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(f"out of date: {', '.join(p.name for p in stale)}. Run: python benchmarks/tables.py")
    for path in stale:
        path.write_text(new[path], encoding="utf-8")


if __name__ == "__main__":
    main()
