"""Write docs/paper-tables.md, and the cost in the first lines of the recipes in rcp/.

python docs/paper_tables.py            rewrite what is out of date
python docs/paper_tables.py --check    exit 1 and name it instead
"""

import argparse
import re
import sys
from pathlib import Path

import yaml

from beton_tools.base.console import markdown_table
from fastft.cost.price import format_range, predict
from fastft.jobs.sweep import as_published, plan_runs
from fastft.machine.gpus import MAIN_GPUS
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.recipe_file import read_recipe
from fastft.recipe.tables import Row, Sweep, load_sweep

ROOT = Path(__file__).resolve().parent.parent
RECIPES, PAGE = ROOT / "rcp", ROOT / "docs" / "paper-tables.md"
HEADED = (
    "baseline_*.yaml",
    "final_*.yaml",
    "frugal_*.yaml",
    "quick_*.yaml",
    "brief_*.yaml",
    "fitted_*.yaml",
    "probe_*.yaml",
)
PAPER_HOURS = yaml.safe_load((ROOT / "benchmarks" / "published.yaml").read_text(encoding="utf-8"))["paper_hours"]
COST = re.compile(r"^# Cost: .*$", re.MULTILINE)
NO_RUNS = Path("no-such-folder")
WEIGHTS = {"ema": "EMA", "raw": "raw"}

INTRO = """# Every row of the paper

You can train every row in the paper's Tables 1 to 9 and 12 to 17, the CLIP rows in Table 11, and every bar or point in
Figures 1 to 3. Each row is a recipe, and one file holds one table. The slow tests train one step on a tiny tower for each
kind of row.

```
fastft cost 05_llrd --gpu a100
fastft sweep 05_llrd --data.train=train.beton --data.val=val.beton
fastft train '05_llrd[LLRD 0.60, 6e-4]' --data.train=train.beton --data.val=val.beton
fastft cost '02_lr[1e-5]' --gpu a100
```

To select a row, give its label, its series and label, or its recipe's name, which its run directory has too. Rows that train
the same thing are trained once over all tables. The column 'paper' gives top-1 in percent at the best epoch, and 'weights'
tells which weights were evaluated. The GPU-hours are modelled for eight GPUs (`fastft explain`), not measured. They go from
the fastest to the slowest among the [published trainings](measurements/published.md) that resemble fastft's. The paper's own
V100-hours are read from the axis in its Figure 1, and stand beside its rows here.

`python docs/paper_tables.py` writes this page from the files in `rcp/tables`, and a test keeps it up to date."""

CHEAPER_RECIPES = "[What a recipe costs](cost.md#all-recipes) lists recipes that cost less."


def headed_recipes() -> list[Path]:
    """List the recipes whose first lines state their cost."""
    return sorted(path for pattern in HEADED for path in RECIPES.glob(pattern))


Hours = dict[str, tuple[float, float]]  # by GPU kind, for the fastest and the slowest published training


def recipe_hours(recipe: Recipe) -> Hours:
    """Return the recipe's GPU-hours by kind of GPU, without the kinds for which the step cannot be counted."""
    return {kind: tuple(p.hours_range) for kind, p in predict(recipe).items() if p.hours_range is not None}


def total_hours(sweeps: list[Sweep]) -> tuple[Hours, int]:
    """Return the GPU-hours and the number of trainings for all rows. A training that rows share counts once."""
    runs = {run.key: run.recipe for sweep in sweeps for run in plan_runs(sweep, (), NO_RUNS)}
    hours = [recipe_hours(recipe) for recipe in runs.values()]
    return {kind: tuple(map(sum, zip(*(h[kind] for h in hours), strict=True))) for kind in MAIN_GPUS}, len(runs)


def cost_line(path: Path) -> str:
    hours = recipe_hours(load_recipe(path))
    listed = ", ".join(f"{format_range(*h)} on {kind}" for kind, h in hours.items()).replace(" on", " GPU-hours on", 1)
    final = RECIPES / f"final_{path.stem.partition('_')[2].removesuffix('_half')}.yaml"
    if final.exists() and final != path and not path.name.startswith("baseline"):
        share = hours["V100"][0] / recipe_hours(load_recipe(final))["V100"][0]
        listed += f", {share:.0%} of {final.stem}"
    return f"# Cost: {listed} (modelled; fastft cost {path.stem} --gpu v100)."


def with_cost(path: Path) -> str:
    """Return the recipe's text with the cost that the cost model gives now."""
    text, count = COST.subn(cost_line(path), path.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{path}: must hold one line that starts with '# Cost: '")
    return text


def page() -> str:
    tables = [load_sweep(path) for path in sorted(RECIPES.glob("tables/*.yaml"))]
    sweeps = [sweep for sweep in tables if sweep.source.startswith("paper")]
    return "\n\n".join([INTRO, _totals(sweeps), *map(_table, sweeps), CHEAPER_RECIPES]) + "\n"


def _totals(sweeps: list[Sweep]) -> str:
    hours, trainings = total_hours(sweeps)
    total = ", ".join(f"{format_range(*h)} on {kind}" for kind, h in hours.items())
    return (
        f"All {sum(len(sweep.rows) for sweep in sweeps)} rows take {trainings} trainings. Predicted GPU-hours: {total}."
    )


def _table(sweep: Sweep) -> str:
    own = {label: [f"{hours:.1f}"] for label, hours in PAPER_HOURS.items()} if sweep.name == "fig1_steps" else {}
    lines = []
    for row, run in zip(sweep.rows, plan_runs(sweep, (), NO_RUNS), strict=True):
        figures = [as_published(row.paper), WEIGHTS[row.number], *_cells(recipe_hours(run.recipe))]
        lines.append([row.title, _recipe(sweep, row), *figures, *own.get(row.label, [])])
    total = _cells(total_hours([sweep])[0])
    lines.append(["**this table, shared rows once**", "", "", "", *total, *[""] * bool(own)])
    header = [sweep.source, "recipe", "paper", "weights", *MAIN_GPUS, *["the paper's own V100-hours"] * bool(own)]
    return f"## {sweep.title}\n\n`rcp/tables/{sweep.path.name}`\n\n{markdown_table(header, lines, left=2)}"


def _recipe(sweep: Sweep, row: Row) -> str:
    """Return the name of the row's recipe, and the table or recipe that it comes from if that is another one."""
    return f"`{row.name or read_recipe(sweep.reference(row)).name}`" + (f" of `{row.recipe}`" if row.recipe else "")


def _cells(hours: Hours) -> list[str]:
    return [format_range(*h) for h in hours.values()]


def stale() -> dict[Path, str]:
    """Return the files that are out of date, with the text that they should contain."""
    wanted = {path: with_cost(path) for path in headed_recipes()} | {PAGE: page()}
    return {p: text for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is out of date")
    check = parser.parse_args().check
    found = stale()
    for path, text in found.items():
        print(path.relative_to(ROOT), "is out of date" if check else "written")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
