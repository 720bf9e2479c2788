"""The second stage of a run: every option gets its final value, by the number of images and by linear probes.

It writes `recipe.yaml`, in which nothing is `auto` any more, and `choices.json`: option, value, reason, evidence.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from beton_tools.base.console import format_duration
from fastft.choose.augmentation import (
    HFLIP,
    choose_flips,
    compare_losses,
    is_plain,
    keep_or_leave_out,
    recognise_mirrored,
)
from fastft.choose.automatic import probes_sizes, resolve
from fastft.choose.image_size import TRAINING_COST, choose_image_size, describe_probe
from fastft.data.selection import open_files
from fastft.evaluate.linear_probe import FrozenTower, LinearProbe, fit_probe, keep_probe, probe_of_run
from fastft.machine.distributed import World
from fastft.recipe import Choice, Recipe
from fastft.recipe.constants import PROBE
from fastft.recipe.training_images import Images
from fastft.run.checkpoint import list_checkpoints
from fastft.run.run_directory import read_choices, run_folder, write_choices, write_recipe

Say = Callable[[str], None]


def choose_options(
    recipe: Recipe, images: Images, key: str, world: World, stop: Callable[[], bool], say: Say
) -> Recipe:
    """Return the final recipe, which the run directory keeps.

    All processes get the same recipe, except for what differs between hosts. What the directory has is used again:
    always once there is a checkpoint, and before that if the same was asked for.

    Args:
        images: the images in `data.train` and `data.val`.
        key: identifies what the run is asked for. See `fastft.run.continuation.request_key`.
        stop: ends the stage in all processes once it returns true in one.

    Raises:
        UserError: the images do not fit the recipe, or the recipe contradicts itself.
        EvaluationStopped: a stop was requested.
    """
    folder = run_folder(recipe)
    has_begun, stored = world.in_main(lambda: _read(folder, key))
    recipe = resolve(recipe, images, stored)
    if stored is None and not has_begun and recipe.model.head_init == PROBE:
        recipe = _choose_by_probes(recipe, folder, key, world, stop, say)
    recipe = replace(recipe, automatic=frozenset())
    if world.is_main and not has_begun:  # if the run has begun, the trainer compares its recipe before it writes
        write_recipe(folder, recipe)
        write_choices(folder, recipe.choices, key)
    return recipe


def _read(folder: Path, key: str) -> tuple[bool, dict[str, Choice] | None]:
    """Return (whether there is a checkpoint; the choices that are used again)."""
    has_begun = bool(list_checkpoints(folder / "checkpoints"))
    return has_begun, read_choices(folder, None if has_begun else key)


def _choose_by_probes(
    recipe: Recipe, folder: Path, key: str, world: World, stop: Callable[[], bool], say: Say
) -> Recipe:
    files = open_files(recipe).train
    if probes_sizes(recipe):

        def fit(sized: Recipe) -> LinearProbe:
            probe = fit_probe(FrozenTower.build(sized, world, stop), files, say)
            epoch = format_duration(TRAINING_COST * probe.seconds)
            say(f"linear probe at {describe_probe(probe)}. Training would take about {epoch} per epoch")
            return probe

        began = time.monotonic()
        recipe, probe = choose_image_size(recipe, fit)
        keep_probe(replace(probe, seconds=time.monotonic() - began), folder, key, world)
    tries_flips = HFLIP in recipe.automatic and not recipe.data.multi_label
    if not tries_flips and is_plain(recipe):
        return recipe
    tower = FrozenTower.build(recipe, world, stop)
    probe = probe_of_run(tower, files, folder, key, say)
    if tries_flips and (mirrored := recognise_mirrored(tower, files, probe)) is not None:
        recipe = choose_flips(recipe, mirrored)
    if is_plain(recipe):
        return recipe
    recipe, warning = keep_or_leave_out(recipe, compare_losses(replace(tower, recipe=recipe), files, probe))
    if warning:
        say(warning)
    return recipe
