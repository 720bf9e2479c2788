"""`fastft explain RECIPE`."""

import argparse
from typing import TYPE_CHECKING

from beton_tools.base.console import format_duration
from fastft.cli.arguments import add_recipe, add_shared, show
from fastft.recipe import AskedRecipe, load_recipe
from fastft.recipe.constants import EPOCHS

if TYPE_CHECKING:
    from rich.console import Console

    from fastft.cost.explanation import Explanation
    from fastft.machine.gpus import Gpu

EXAMPLE = "fastft explain final_b16 --json"
TAKES_OPTIONS = True
CPU_SHARE = 0.4  # fraction of a CPU's matrix-product rate. Training a ViT-S/14 at 42 px reached 0.27 to 0.66
LONG = 2  # hours on this machine. Above this, a way out is named
WAY_OUT = (
    ". --schedule.budget=1h fits image size and epochs into an hour, and stops at a linear probe at a larger image size if "
    "that promises more than training does. --schedule.stop_epoch=0 trains nothing and stops at the linear probe"
)
SMALL = 4  # hours on one A100. Up to this, the cost is shown for one GPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_shared(parser, "json")
    parser.add_argument(
        "--verbose", action="store_true", help="also print other GPUs, every option, parameter group and learning rate"
    )


def run(args: argparse.Namespace) -> int:
    from fastft.cli.printing import print_explanation
    from fastft.cost.explanation import explain
    from fastft.jobs.decided import decide
    from fastft.machine.gpus import GPUS, MAIN_GPUS

    recipe, images, warnings = decide(load_recipe(args.recipe, args.overrides))
    # data.val may not exist yet
    val_images = None if images is None or (recipe.data.val and not images.val) else images.val
    values = _on_one_gpu(recipe, explain(recipe, warnings, val_images), val_images)

    def print_text(values: "Explanation", console: "Console") -> None:
        shown = [*GPUS] if args.verbose else [gpu.name] if (gpu := _this_gpu()) else MAIN_GPUS
        print_explanation(values, recipe, console, shown, args.verbose)

    return show(values, args.json, print_text)


def _this_gpu() -> "Gpu | None":
    """Return this machine's GPU, if it has one whose peak is known."""
    import torch

    from fastft.machine.gpus import find_gpu

    return find_gpu(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def _on_one_gpu(recipe: AskedRecipe, values: "Explanation", val_images: int | None) -> "Explanation":
    """Replace a small recipe's cost by its cost on one GPU, and add its time `here`, in words."""
    import torch
    from msgspec.structs import replace

    from fastft.cost.explanation import predict_cost
    from fastft.machine.gpus import peak_flops
    from fastft.machine.precision import inference_precision

    if recipe.schedule.budget is not None:
        return replace(values, here=f"{recipe.schedule.budget} at most, for linear probes, training and evaluation")
    on_one = predict_cost(recipe, 1, val_images)
    hours = on_one.gpu_hours["A100"]
    if hours is None or hours > SMALL:
        return values
    values = replace(values, cost=on_one, gpus=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        gpu = _this_gpu()
        hours, how = on_one.gpu_hours[gpu.name] if gpu else None, "on this machine's GPU, modelled"
    else:
        rate = peak_flops(device, inference_precision(recipe.train.amp, device).dtype) or 1.0
        hours = on_one.total_flops / (CPU_SHARE * rate) / 3600
        how = (
            f"on this machine's CPU (assuming {CPU_SHARE:.0%} of its {rate / 1e9:,.0f} GFLOP/s in matrix products. The estimate "
            "can be wrong by a factor of 2)"
        )
    if hours is None:
        return values
    text = f"about {format_duration(3600 * hours)} {how}"
    return replace(values, here=text + WAY_OUT * (hours > LONG and EPOCHS in recipe.automatic))
