"""Start from another run: `model.weights=RUN` means the weights that this run chose, and the tower that has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from beton_tools.base.user_files import expand_home
from beton_tools.read.class_list import Classes
from fastft.model.weight_files import stored_classes
from fastft.recipe import AskedRecipe
from fastft.recipe.constants import FROM_WEIGHTS, IMAGE_SIZE, PROBE
from fastft.recipe.schema import Choice, option_fields
from fastft.run.checkpoint import is_checkpoint, read_checkpoint, stored_recipe
from fastft.run.find_weights import find_weights

WEIGHTS, HEAD_INIT = "model.weights", "model.head_init"
# what the weights belong to: the new run takes these over unless its command line sets them
OF_THE_TOWER = ("model.arch", IMAGE_SIZE, "model.pool", "model.layer_scale", "model.rel_pos_bias")
OF_THE_PIXELS = tuple(key for key, field in option_fields().items() if field.metadata["published"])
# what the run's linear probe has decided, where the new run would let its own decide
OF_THE_PROBE = ("augment.policy", "augment.scale_min", "augment.ratio_min", "augment.ratio_max", "augment.hflip")


def is_run(path: Path) -> bool:
    """True for a run directory with a checkpoint, or for one of its checkpoints."""
    return is_checkpoint(path) or (path / "checkpoints").is_dir()


def with_run_weights(recipe: AskedRecipe) -> AskedRecipe:
    """Return the recipe that starts from a run.

    It has the file with the weights that the run chose, its architecture, and the head's classes. Recipes with other
    `model.weights` are returned unchanged.

    Raises:
        UserError: no usable checkpoint.
    """
    run = expand_home(recipe.model.weights)
    if not run.is_dir() or not is_run(run):
        return recipe
    chosen = find_weights(run)
    old = stored_recipe(read_checkpoint(chosen.path, ()))
    values: dict[str, Any] = {WEIGHTS: str(chosen.path / f"{chosen.stem}.safetensors")}
    reasons = {WEIGHTS: f"the {chosen.description}"}
    if chosen.kind == PROBE:  # the tower is the pretrained one
        values = {WEIGHTS: old.model.weights}
        reasons = {WEIGHTS: f"{run} chose its linear probe, whose tower has these weights"}
    elif _is_free(recipe, HEAD_INIT) and recipe.model.head is None:
        values[HEAD_INIT], reasons[HEAD_INIT] = FROM_WEIGHTS, f"rows for its classes in the head of {run}"
    of_run = old.flat() | ({} if chosen.image_size is None else {IMAGE_SIZE: chosen.image_size})
    if old.model.arch.endswith(".json"):  # the file may lie elsewhere now, or hold something else
        of_run["model.arch"] = str(chosen.path)
    now = recipe.flat()
    differ = {o for o in now if of_run[o] != now[o]} | recipe.automatic
    taken = [o for o in (*OF_THE_TOWER, *OF_THE_PIXELS) if _is_free(recipe, o) and o in differ]
    for option in (*taken, *(o for o in OF_THE_PROBE if o in recipe.automatic and HEAD_INIT in values)):
        values[option], reasons[option] = of_run[option], f"as in {run}"
    recipe = recipe.with_choices(*(Choice(option, value, reasons[option]) for option, value in values.items()))
    return replace(recipe, automatic=recipe.automatic - values.keys())


def without_foreign_head(recipe: AskedRecipe, classes: Classes) -> AskedRecipe:
    """Return the recipe with an automatic head instead of a run's, if the run has none of the classes.

    Args:
        recipe: from `with_run_weights`.
        classes: of the training images.
    """
    chosen = any(choice.option == HEAD_INIT for choice in recipe.choices)
    if recipe.model.head_init != FROM_WEIGHTS or not chosen:
        return recipe
    old = stored_classes(expand_home(recipe.model.weights))
    if old is not None and any(row is not None for row in classes.rows_in(old)):
        return recipe
    others = tuple(choice for choice in recipe.choices if choice.option != HEAD_INIT)
    return replace(recipe, automatic=recipe.automatic | {HEAD_INIT}, choices=others)


def _is_free(recipe: AskedRecipe, option: str) -> bool:
    """True unless the command line gives the option a value."""
    return option in recipe.automatic or option not in recipe.given
