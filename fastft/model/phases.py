"""The phases of a run: consecutive epochs at one image size and one patch dropout."""

from dataclasses import dataclass, replace
from itertools import groupby

from beton_tools.base.errors import UserError
from fastft.model.interface import TowerArch
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, epoch_values


@dataclass(frozen=True)
class Phase:
    """Epochs `first` to `first + epochs - 1`; size in pixels."""

    first: int
    epochs: int
    size: int
    patch_dropout: float


def find_phases(recipe: Recipe, arch: TowerArch | None = None) -> list[Phase]:
    """The phases of the epochs that are trained, in order; one phase without schedules.

    arch: the recipe's, if the caller has it. Raises UserError: a size is not a multiple of the patch size.
    """
    arch = arch or recipe_arch(recipe)
    check_sizes(recipe, arch)
    phases, first = [], 0
    for (size, dropout), epochs in groupby(_settings(recipe, arch, epoch) for epoch in range(recipe.epochs)):
        count = len(list(epochs))
        phases.append(Phase(first, count, size, dropout))
        first += count
    return phases


def phase_at(recipe: Recipe, epoch: int) -> Phase:
    """The phase of an epoch; after the last epoch the last one. Raises as `find_phases`."""
    phases = find_phases(recipe)
    return next(phase for phase in reversed(phases) if phase.first <= epoch)


def check_sizes(recipe: Recipe, arch: TowerArch) -> None:
    """Raise UserError if a size in `schedule.sizes` is not a multiple of the patch size."""
    if recipe.schedule.sizes is None:
        return
    for size in epoch_values(recipe.schedule.sizes).values:
        try:
            arch.at(int(size))
        except UserError as error:
            raise UserError(f"schedule.sizes: {error}") from None


def with_phase(recipe: Recipe, phase: Phase) -> Recipe:
    """A recipe whose every epoch trains as the phase does; its length is that of the whole run."""
    model = replace(recipe.model, image_size=phase.size, patch_dropout=phase.patch_dropout)
    return replace(recipe, model=model, schedule=replace(recipe.schedule, sizes=None))


def _settings(recipe: Recipe, arch: TowerArch, epoch: int) -> tuple[int, float]:
    """(image size, patch dropout) of an epoch; sizes within a ramp are rounded to whole patches."""
    size = arch.patch_size * round(recipe.size_at(epoch) / arch.patch_size)
    return size, recipe.patch_dropout_at(epoch)
