"""A run's second stage: every option gets its final value, by the number of images and by linear probes.

It writes `recipe.yaml`, in which nothing is `auto` any more, and `choices.json`: option, value, reason, evidence.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from beton_tools.base.console import format_duration
from beton_tools.base.errors import CORRECT, report_disk_errors
from beton_tools.read.beton_set import BetonSet
from fastft.choose.augmentation import HFLIP, TRIED, choose_flips, compare_losses, keep_or_leave_out, recognise_mirrored
from fastft.choose.automatic import is_plain, probes_sizes, resolve
from fastft.choose.budget import Budget, choose_epochs, choose_within, larger_probe, probe_within
from fastft.choose.image_size import TRAINING_COST, choose_image_size, describe_probe
from fastft.data.warnings import TRAINING, Warned
from fastft.evaluate.linear_probe import FrozenTower, LinearProbe, fit_probe, keep_probe, probe_of_run, time_forward
from fastft.machine.distributed import World
from fastft.recipe import AskedRecipe, Choice, FinalRecipe
from fastft.recipe.check import parse_duration
from fastft.recipe.constants import BUDGET, IMAGE_SIZE, PROBE, STOP_EPOCH
from fastft.run.checkpoint import list_checkpoints
from fastft.run.inputs import Inputs
from fastft.run.run_directory import LARGER_HEAD, read_choices, remove_heads, run_folder, write_choices, write_recipe
from fastft.run.said import Say


def choose_options(
    recipe: AskedRecipe, inputs: Inputs, world: World, stop: Callable[[], bool], say: Say
) -> FinalRecipe:
    """Return the final recipe, which the run directory keeps.

    All processes get the same recipe, except for options that differ between hosts. Choices in the directory are used again
    once there is a checkpoint. Before that, they are used again if the request is the same.

    Args:
        stop: ends the stage in all processes once it returns true in one.

    Raises:
        UserError: the images do not fit the recipe, or the recipe contradicts itself.
        EvaluationStopped: a stop was requested.
    """
    folder, asked, images = run_folder(recipe), recipe, inputs.images
    has_begun, stored = world.in_main(lambda: _read(folder, inputs.request))
    recipe = resolve(asked, images, stored)
    if stored is None and not has_begun:
        world.in_main(lambda: remove_heads(folder))  # they belong to other choices
        probing = _Probing(folder, inputs, world, stop, say, time.monotonic())
        if recipe.schedule.budget is not None:
            recipe = resolve(asked, images, {c.option: c for c in probing.choose_within_budget(recipe)})
        elif probes_sizes(recipe):
            recipe = probing.choose_size(recipe)
        if recipe.model.head_init == PROBE:
            recipe = probing.choose_augmentation(recipe)
    final = FinalRecipe.of(recipe)
    if world.is_main and not has_begun:  # if the run has begun, the trainer compares its recipe before it writes
        write_recipe(folder, final)
        write_choices(folder, final.choices, inputs.request)
    return final


def _read(folder: Path, request: str) -> tuple[bool, dict[str, Choice] | None]:
    """Return (whether there is a checkpoint, the choices that are used again)."""
    has_begun = bool(list_checkpoints(folder / "checkpoints"))
    return has_begun, read_choices(folder, None if has_begun else request)


@dataclass(frozen=True)
class _Probing:
    """Chooses options for a new run with linear probes. began: `time.monotonic()` when the stage began."""

    folder: Path
    inputs: Inputs
    world: World
    stop: Callable[[], bool]
    say: Say
    began: float

    def choose_size(self, recipe: AskedRecipe) -> AskedRecipe:
        recipe, probe = choose_image_size(recipe, partial(self._fit, self.inputs.train))
        self._keep(probe)
        return recipe

    def choose_within_budget(self, recipe: AskedRecipe) -> list[Choice]:
        """Return what the time budget decides."""
        images, files = self.inputs.images, self.inputs.train
        seconds = parse_duration(str(recipe.schedule.budget), BUDGET)
        evaluated = images.val + recipe.selection_images(images.train)
        tries = sum((self._tries_flips(recipe), not is_plain(recipe)))

        def left() -> float:
            return seconds - self.world.broadcast(time.monotonic() - self.began)

        budget = Budget(recipe, left, evaluated, evaluated + tries * min(TRIED, recipe.data.train_size))
        if recipe.model.head_init != PROBE:
            return choose_epochs(budget, time_forward(self._tower(recipe), files))
        fit, tries_sizes = partial(self._fit, files), probes_sizes(recipe)
        sizes = probe_within(budget, fit, tries_sizes)
        choices, probe = choose_within(budget, sizes)
        if tries_sizes and _stops_at_probe(recipe, choices):
            sizes = probe_within(budget, fit, tries_sizes, sizes)
            choices, probe = choose_within(budget, sizes)
        self._keep(probe)
        self._keep_larger(None if _stops_at_probe(recipe, choices) else larger_probe(sizes, probe), recipe)
        return choices

    def choose_augmentation(self, recipe: AskedRecipe) -> AskedRecipe:
        tries_flips = self._tries_flips(recipe)
        if recipe.epochs == 0 and STOP_EPOCH in recipe.automatic:  # nothing is trained
            return recipe
        if not tries_flips and is_plain(recipe):
            return recipe
        files, tower = self.inputs.train, self._tower(recipe)
        probe = probe_of_run(tower, files, self.inputs.units_N, self.folder, self.inputs.request, self.say)
        if tries_flips and (mirrored := recognise_mirrored(tower, files, probe)) is not None:
            recipe = choose_flips(recipe, mirrored)
        if is_plain(recipe):
            return recipe
        recipe, warning = keep_or_leave_out(recipe, compare_losses(replace(tower, recipe=recipe), files, probe))
        if warning:
            self.say(Warned(warning, TRAINING))
        return recipe

    def _tries_flips(self, recipe: AskedRecipe) -> bool:
        return HFLIP in recipe.automatic and not recipe.data.multi_label

    def _tower(self, recipe: AskedRecipe) -> FrozenTower:
        return FrozenTower.build(recipe, self.world, self.stop)

    def _fit(self, files: BetonSet, sized: AskedRecipe) -> LinearProbe:
        probe = fit_probe(self._tower(sized), files, self.inputs.units_N, self.say)
        epoch = format_duration(TRAINING_COST * probe.seconds)
        self.say(f"linear probe at {describe_probe(probe)}. Training would take about {epoch} per epoch")
        return probe

    def _keep_larger(self, probe: LinearProbe | None, recipe: AskedRecipe) -> None:
        """Write the head of a probe at a larger size, which is compared with the trained model. None: there is none."""
        path = self.folder / LARGER_HEAD
        if probe is None or not self.world.is_main:
            return
        head, size = probe.head, str(probe.size)
        made = {"image_size": size, "penalty": repr(float(head.penalty)), "scale": repr(float(head.scale))}
        with report_disk_errors(path, CORRECT):
            tower = self._tower(recipe.with_option(IMAGE_SIZE, probe.size))
            tower.write_head(head, self.inputs.train, path, request=self.inputs.request, **made)

    def _keep(self, probe: LinearProbe) -> None:
        """Keep the probe in the run directory, with the time for all probes."""
        keep_probe(replace(probe, seconds=time.monotonic() - self.began), self.folder, self.inputs.request, self.world)


def _stops_at_probe(recipe: AskedRecipe, choices: list[Choice]) -> bool:
    decided = {choice.option: choice.value for choice in choices}
    return decided.get(STOP_EPOCH, recipe.schedule.stop_epoch) == 0
