"""Writes docs/paper-tables.md, and the predicted hours in the head of every recipe.

python docs/paper_tables.py            rewrite what is out of date
python docs/paper_tables.py --check    exit 1 and name it instead
"""

import argparse
import re
import sys
from pathlib import Path

from fastft.config import load_recipe
from fastft.cost.model import PUBLISHED_MFU
from fastft.machine.gpus import MAIN_GPUS
from fastft.sweep.definition import Sweep, load_sweep
from fastft.sweep.planned_runs import plan_runs
from fastft.sweep.price import price_sweeps, recipe_hours, total_hours
from fastft.sweep.report import as_published, markdown_table

ROOT = Path(__file__).resolve().parent.parent
RECIPES, PAGE = ROOT / "rcp", ROOT / "docs" / "paper-tables.md"
HEADED = ("tables/*/*.yaml", "final_*.yaml", "baseline_*.yaml", "frugal_*.yaml")
PREDICTED = re.compile(r"^# Predicted: .*$", re.MULTILINE)
NO_RUNS = Path("no-such-folder")  # price everything, whatever has been trained here
NUMBERS = {"ema": "EMA", "raw": "raw"}
SHARES = ", ".join(f"{mfu.value:.1%} on {kind}" for kind, mfu in PUBLISHED_MFU.items())

INTRO = f"""# Every row of the paper

Written by `python docs/paper_tables.py` from the recipes and sweep files; a test keeps it up to date.

Each row of Tables 1 to 9 and 12 to 17, the CLIP rows of Table 11, and each point of Figures 2 and 3 is a
recipe that runs, in a folder of `rcp/tables` beside the `sweep.yaml` that lists the table. The slow tests train
one step of every one of them on a tiny tower.

```
fastft sweep rcp/tables/05_llrd/sweep.yaml --dry-run
fastft sweep rcp/tables/05_llrd/sweep.yaml --data.train=train.beton --data.val=val.beton
fastft train rcp/tables/05_llrd/lr_6e-4_decay_0.60.yaml --data.train=train.beton --data.val=val.beton
```

Rows that train the same thing are trained once, over all tables. 'Paper' is top-1 in percent, 'of' the weights
it is of, each at its best epoch. GPU-hours are modelled (`fastft explain`), on eight GPUs at
the best MFU published for them: {SHARES}; they are not measurements."""


def recipe_files() -> list[Path]:
    """Every recipe whose head states what it costs."""
    return sorted(p for pattern in HEADED for p in RECIPES.glob(pattern) if p.name != "sweep.yaml")


def predicted_line(path: Path) -> str:
    hours = recipe_hours(load_recipe(path))
    listed = ", ".join(f"{h:.1f} on {kind}" for kind, h in hours.items()).replace(" on", " GPU-hours on", 1)
    if path.name.startswith("frugal_"):
        final = "final_" + path.stem.split("_")[1]
        share = hours["V100"] / recipe_hours(load_recipe(RECIPES / f"{final}.yaml"))["V100"]
        listed += f", {share:.0%} of {final}"
    return f"# Predicted: {listed} (modelled, see `fastft explain`)."


def with_prediction(path: Path) -> str:
    """The recipe's text with the hours that the cost model gives it now."""
    text, count = PREDICTED.subn(predicted_line(path), path.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{path}: must hold one line that starts with '# Predicted: '")
    return text


def page() -> str:
    sweeps = [load_sweep(path) for path in sorted(RECIPES.glob("tables/*/sweep.yaml"))]
    return "\n\n".join([INTRO, _totals(sweeps), *map(_table, sweeps), _frugal()]) + "\n"


def _totals(sweeps: list[Sweep]) -> str:
    prices = price_sweeps(sweeps, (), NO_RUNS)
    trainings = sum(price.hours is not None for price in prices)
    total = ", ".join(f"{h:,.0f} on {kind}" for kind, h in total_hours(prices).items())
    return f"All {len(prices)} rows are {trainings} trainings; predicted GPU-hours: {total}."


def _table(sweep: Sweep) -> str:
    lines = []
    for row, run in zip(sweep.rows, plan_runs(sweep, (), NO_RUNS), strict=True):
        paper = as_published(row.paper)
        lines.append(
            [row.name, _path(row.recipe), paper, NUMBERS[row.number], *_cells(recipe_hours(run.recipe))]
        )
    total = _cells(total_hours(price_sweeps([sweep], (), NO_RUNS)))
    lines.append(["**this table, shared rows once**", "", "", "", *total])
    header = [sweep.source, "recipe", "paper", "of", *MAIN_GPUS]
    return f"## {sweep.title}\n\n`rcp/tables/{sweep.name}`\n\n{markdown_table(header, lines, left=2)}"


def _frugal() -> str:
    lines = []
    for name in ("final_b16", "frugal_b16", "frugal_b16_half", "final_l14", "frugal_l14", "frugal_l14_half"):
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        expected = [as_published(recipe.about.top1), *_cells(recipe_hours(recipe)), recipe.about.source or ""]
        lines.append([name, _path(RECIPES / f"{name}.yaml"), *expected])
    table = markdown_table(["", "recipe", "expected", *MAIN_GPUS, "source"], lines, left=2)
    return f"## Frugal recipes\n\nNot in the paper: what its logs and its Figure 3 allow.\n\n{table}"


def _cells(hours: dict[str, float]) -> list[str]:
    return [f"{h:.1f}" for h in hours.values()]


def _path(recipe: Path) -> str:
    return f"`{recipe.resolve().relative_to(ROOT)}`"


def stale() -> dict[Path, str]:
    """What is out of date, with the text that it should hold."""
    wanted = {path: with_prediction(path) for path in recipe_files()} | {PAGE: page()}
    return {p: text for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where something is out of date"
    )
    check = parser.parse_args().check
    found = stale()
    for path, text in found.items():
        print(path.relative_to(ROOT), "is out of date" if check else "written")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
