"""The work of `fastft train` and `fastft.fit`: prepare the images, train, and with `train.refit` train again on all images."""

from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.read.beton_set import BetonSet
from fastft.machine.distributed import World, connected, find_world
from fastft.photos.paths import holds_out_of_beton
from fastft.photos.prepare import line_printer, prepare_data
from fastft.recipe import Recipe
from fastft.recipe.constants import LAST, PROBE
from fastft.run.continuation import PER_HOST_OPTIONS
from fastft.run.evaluations import describe_figures
from fastft.run.run_directory import load_run, run_folder, write_result
from fastft.run.start_weights import with_run_weights, without_foreign_head
from fastft.train.train import train

REFIT = "refit"  # folder in the run directory


def train_recipe(recipe: Recipe, console: Console) -> tuple[Path, dict[str, Any]]:
    """Train; photographs are prepared by process 0 while the others wait. Returns (run directory, content of result.json)."""
    options = recipe.train
    with connected(find_world(options.device, options.timeout_minutes, "train.device")) as world:
        prepared = without_foreign_head(with_run_weights(prepare_data(recipe, line_printer(console), world)))
        own = ",".join(filter(None, (prepared.data.train, prepared.data.val))) or None
        data = recipe.data.train if holds_out_of_beton(recipe) else own
        if options.refit and data is not None:  # refuse files that cannot be read together before the first training
            world.in_main(lambda: BetonSet.open(data).title)
        result = train(prepared, console)
        return _refit(prepared, data, result, world, console) if options.refit else (run_folder(recipe), result)


def _refit(
    recipe: Recipe, data: str | None, first: dict[str, Any], world: World, console: Console
) -> tuple[Path, dict[str, Any]]:
    """Train on `data`, training and validation images together, in RUN/refit; returns as `train_recipe`.

    Every option has the value of the first run, automatic ones too; the training ends with the epoch whose weights that run
    chose, and the same kind of weights is taken.
    """
    say, folder, chosen = line_printer(console), run_folder(recipe), first["weights"]
    if chosen is None:
        say("train.refit: no images were held out, the weights are of all images already")
        return folder, first
    again, own = world.in_main(lambda: load_run(folder).recipe), recipe.flat()
    own |= {"data.train": data, "data.val": None, "train.run_dir": str(folder / REFIT)}
    for option in PER_HOST_OPTIONS:
        again = again.with_option(option, own[option])
    unchosen = {"data.hold_out_beton": False, "data.selection_share": 0.0, "train.stop_when": None}
    for option, value in ({"schedule.stop_epoch": chosen["epoch"] + 1} | unchosen).items():
        again = again.with_option(option, value)
    say(
        f"train.refit: training again on all images, up to epoch {chosen['epoch']}, whose {chosen['kind']} weights were chosen"
    )
    result = train(again, console)
    reason = (
        "trained on all images, without a held-out figure of their own; as chosen on held-out images by the first run"
    )
    take = PROBE if chosen["take"] == PROBE else LAST
    result |= {"weights": {"take": take, "kind": chosen["kind"], "epoch": chosen["epoch"], "reason": reason}}
    result |= {"first_run": {"run": str(folder), **{key: first.get(key) for key in ("weights", "last", "baseline")}}}
    if world.is_main:
        write_result(folder / REFIT, result)
    note = "weights of all images; they have no held-out figure of their own. The first run's:"
    say(f"{folder / REFIT}: {note} {describe_figures(chosen)}")
    return folder / REFIT, result
