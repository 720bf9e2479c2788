"""`fastft sweep TABLE ...`, and `fastft sweep RECIPE --option=value,value`."""

import argparse
from pathlib import Path

from beton_tools.base.console import make_console
from beton_tools.base.errors import UserError
from fastft.cli.arguments import recipe_reference
from fastft.recipe.recipe_file import is_table, open_sweep
from fastft.recipe.tables import split_reference

EXAMPLE = (
    "fastft sweep photos --data=photos --optim.lr=1e-4,3e-4,1e-3\n"
    "  fastft sweep 05_llrd --data.train=in1k/train.beton --data.val=in1k/val.beton"
)
TAKES_OPTIONS = True
TABLES = Path("runs/sweeps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    tables = (
        "tables (05_llrd, mine.yaml), table rows (02_lr[1e-5]), or one recipe, with options that list several values separated "
        "by commas"
    )
    add("sweeps", metavar="TABLE", type=recipe_reference, nargs="+", help=tables)
    add("--out", type=Path, help=f"folder for runs and tables (default {TABLES}, for a recipe runs/RECIPE-OPTION)")


def run(args: argparse.Namespace) -> int:
    from fastft.jobs.grid import read_grid, write_grid
    from fastft.jobs.sweep import run_sweeps

    recipes = [name for name in args.sweeps if split_reference(name)[1] is None and not is_table(name)]
    if not recipes:
        sweeps, overrides, out = list(map(open_sweep, args.sweeps)), args.overrides, args.out or TABLES
    elif len(args.sweeps) > 1:
        raise UserError(f"{recipes[0]} is a recipe, not a table. Give it alone, with options that have several values")
    else:
        grid = read_grid(recipes[0], args.overrides)
        out = args.out or Path("runs") / grid.name
        sweeps, overrides = [open_sweep(write_grid(grid, out))], grid.overrides
    outcomes = run_sweeps(sweeps, overrides, out, make_console(lasting=True))
    return int(any(outcome.error for outcome in outcomes))
