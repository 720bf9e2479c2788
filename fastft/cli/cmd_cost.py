"""`fastft cost RECIPE|TABLE ...`."""

import argparse
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.parser import positive
from fastft.cli.arguments import RECIPE, add_shared, recipe_reference, share, show
from fastft.recipe.recipe_file import is_table

EXAMPLE = "fastft cost final_b16 frugal_b16 --gpu v100 --gpus 8 --price 2.48\n  fastft cost 05_llrd --gpu a100"
TAKES_OPTIONS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    files = f"{RECIPE}, or tables, whose rows are priced and summed"
    add("files", metavar="RECIPE|TABLE", type=recipe_reference, nargs="+", help=files)
    default = "default: the GPU in --measured, or V100, A100 and H100. An unknown name lists all"
    add("--gpu", help=f"V100, A100, H100, L40S, RTX4090, ... ({default})")
    add("--gpus", type=positive(int), default=8, metavar="N", help="number of GPUs (default 8)")
    add_shared(parser, "price")
    add("--mfu", type=share, help="also show the cost at this MFU, such as 0.45 or 45%%")
    measured = (
        "fastft bench results, whose images/s replace assumptions: for the step on "
        "this GPU, and for the loader per core"
    )
    add("--measured", type=Path, metavar="BENCH.json", help=measured)
    cores = "CPU cores that feed each GPU (default: as in a usual cloud machine with this GPU)"
    add("--cores-per-gpu", type=positive(float), metavar="N", help=cores)
    val_images = "images per evaluation (default: 50,000 for ImageNet, and the same fraction for other data)"
    add("--val-images", type=positive(int), metavar="N", help=val_images)
    add_shared(parser, "json")


def run(args: argparse.Namespace) -> int:
    if args.gpu is None and args.price is not None:
        raise UserError("--price applies to one GPU model. Add --gpu, for example --gpu v100")
    from fastft.cli.printing import print_prices
    from fastft.cost.measured import Measured
    from fastft.cost.price import CostQuery, price_recipes
    from fastft.jobs.decided import load_decided
    from fastft.machine.bench_result import read_result
    from fastft.machine.gpus import MAIN_GPUS

    measured = None if args.measured is None else Measured.of(read_result(args.measured), str(args.measured))

    rows = None
    if any(map(is_table, args.files)):
        from fastft.jobs.sweep import read_trainings  # takes seconds to import, which recipes do not need

        recipes, rows = read_trainings(args.files, args.overrides)
    else:
        recipes = [load_decided(name, args.overrides) for name in args.files]
    more = args.gpus, args.price, args.cores_per_gpu, args.mfu, args.val_images, measured
    where = measured.gpu if measured is not None and args.gpu is None else None
    one = where.name if where is not None else args.gpu
    if one is not None:
        prices = price_recipes(recipes, CostQuery(one, *more), rows)
        return show(prices, args.json, lambda values, console: print_prices([values], console))
    by_gpu = {gpu: price_recipes(recipes, CostQuery(gpu, *more), rows) for gpu in MAIN_GPUS}
    return show(by_gpu, args.json, lambda values, console: print_prices([*values.values()], console))
