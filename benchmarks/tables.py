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
from records import document
from rich.console import Console

from beton_tools.base.console import markdown_table as markdown
from fastft.cli.printing import print_explanation
from fastft.cost.explanation import explain
from fastft.jobs.demo import CONTENDERS, DemoFigures, figure_cells
from fastft.machine.gpus import MAIN_GPUS
from fastft.recipe import load_recipe

ROOT = Path(__file__).parents[1]
TRAFFIC = ROOT / "fastft" / "cost" / "traffic.json"
IMAGES = ROOT / "docs" / "images"
CODE_WIDTH, CODE_INDENT = 100, 9  # characters; explain's texts begin in this column
BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(p.read_text(encoding="utf-8"))
]


# tables


def demo_figures() -> DemoFigures:
    return msgspec.convert(document("demo"), DemoFigures)


def demo() -> str:
    """Tabulate the contenders of `make demo`."""
    d = demo_figures()
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


TABLES: dict[str, Callable[[], str]] = {
    "summary": speed.summary,
    "processors": speed.processors,
    "machines": speed.machines,
    "order": speed.order,
    "launches": fake_card.launches,
    "node": nodes.node,
    "conversion": nodes.conversion,
    "long-files": nodes.long_files,
    "demo": demo,
    "readme-run": lambda: code("\n".join(demo_figures().conclusion.splitlines()[:2])),  # result and baseline
    "readme-explain": lambda: explained("final_b16"),
    "recipes": costs.recipes,
    "recipes-not-run": costs.not_run,
    "readme-cost": costs.readme,
    "cost-published": costs.cost_published,
    "cost-plans": costs.plans,
    "cost-sentence": costs.sentence,
    "models": costs.model_costs,
    "starts": costs.starts,
    "study-complete": study.complete,
    "study-ways": study.compared,
    "study-short": study.short,
    "study-draws": study.draws,
    "study-drawn": study.drawn,
    "study-summary": study.summary,
    "study-statistics": study.statistics,
    "study-shorter": study.shorter,
    "provenance": study.provenance,
    "half-residual": half_residual.table,
    "probe": probe.table,
    "attentive": probe.attentive,
    "readme-photos": photos.summary,
    "photos-bold": photos.bold,
    "photos-sets": lambda: photos.headline("fastft"),
    "photos-setting": lambda: photos.setting("fastft"),
    "photos-stronger": photos.stronger,
    "photos-stronger-setting": photos.stronger_setting,
    "photos-heads": photos.heads,
    "photos-seconds": lambda: photos.headline(photos.LOOP_SECONDS),
    "photos-seconds-setting": lambda: photos.setting(photos.LOOP_SECONDS),
    "photos-seconds-shorter": lambda: photos.shorter(photos.TWENTY),
    "photos-longer": lambda: photos.tried(photos.TRIED_LONGER),
    "photos-resized": photos.resized,
    "photos-tried": lambda: photos.tried(photos.TRIED_RATE),
    "photos-start": photos.start,
    "photos-centre": lambda: photos.tried(photos.TRIED_CENTRE),
    "photos-parts": lambda: photos.tried(photos.TRIED_PARTS),
    "photos-augmentation": photos.augmentation,
    "photos-steps": photos.gains_by_steps,
    "photos-spread": photos.spread,
    "photos-caution": photos.caution,
    "photos-caution-sets": photos.caution_sets,
    "photos-caution-judged": photos.caution_judged,
    "photos-budgets": photos.budgets,
    "photos-budgets-worst": photos.budgets_worst,
    "photos-budgets-stopped": photos.budgets_stopped,
    "photos-budgets-undecided": photos.budgets_undecided,
    "photos-budgets-setting": photos.budgets_setting,
    "photos-foreign": foreign.table,
    "photos-few-steps": photos.few_steps,
    "photos-sources": photos.sources,
    "photos-auto": lambda: photos.beside("ours", "", ("auto",), "fastft, 42 px"),
    "photos-whole": lambda: photos.beside("loop, whole length", ", whole length", ("ours",)),
    "photos-whole-seconds": lambda: photos.beside("loop, whole length", ", whole length, as many seconds", photos.LONG),
    "photos-head": lambda: photos.beside("linear head", ", whole length", ("ours",), "linear head"),
    "photos-values": lambda: photos.beside(
        "ours, earlier values, whole length", ", whole length", ("ours",), "earlier"
    ),
}


# pictures


PICTURES: dict[str, Callable[[str], str]] = {"speed": speed.picture, "study": study.picture, "frontier": costs.picture}


def filled(text: str) -> str:
    """Return the page with every table made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}\n{block[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table is out of date")
    check = parser.parse_args().check
    new = {TRAFFIC: costs.traced_traffic()}
    if not check:
        TRAFFIC.write_text(new[TRAFFIC], encoding="utf-8")  # the tables' costs are read from it
    new |= {page: filled(page.read_text(encoding="utf-8")) for page in PAGES}
    for name, draw in PICTURES.items():
        new |= {IMAGES / f"{name}-{theme}.svg": draw(theme) for theme in ("light", "dark")}
    stale = [path for path, text in new.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        sys.exit(f"out of date: {', '.join(p.name for p in stale)}. Run: python benchmarks/tables.py")
    for path in stale:
        path.write_text(new[path], encoding="utf-8")


if __name__ == "__main__":
    main()
