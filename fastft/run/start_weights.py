"""Start from another run: `model.weights=RUN` means the weights that this run chose, and the tower that has them."""

from dataclasses import replace
from pathlib import Path

from beton_tools.base.user_files import expand_home
from beton_tools.read.class_list import Classes
from fastft.model.weight_files import stored_classes
from fastft.recipe import AskedRecipe, Recipe
from fastft.recipe.constants import FROM_WEIGHTS, IMAGE_SIZE, PROBE
from fastft.recipe.schema import Choice, option_fields
from fastft.run.checkpoint import is_checkpoint, read_checkpoint, stored_recipe
from fastft.run.find_weights import ChosenWeights, find_weights
from fastft.run.identity import refuse_changed_weights

WEIGHTS, HEAD_INIT = "model.weights", "model.head_init"
# options that belong to the weights: the new run adopts them unless its command line sets them
OF_THE_TOWER = ("model.arch", IMAGE_SIZE, "model.pool", "model.layer_scale", "model.rel_pos_bias")
OF_THE_PIXELS = tuple(key for key, field in option_fields().items() if field.metadata["published"])
# options that the run's linear probe has decided, where the new run would let its own probe decide
OF_THE_PROBE = ("augment.policy", "augment.scale_min", "augment.ratio_min", "augment.ratio_max", "augment.hflip")


def is_run(path: Path) -> bool:
    """True for a run directory with a checkpoint, or for one of its checkpoints."""
    return is_checkpoint(path) or (path / "checkpoints").is_dir()


def with_run_weights(recipe: AskedRecipe) -> AskedRecipe:
    """Return the recipe that starts from a run.

    It names the file with the weights that the run chose, their architecture, and the head's classes. Recipes with other
    `model.weights` are returned unchanged.

    Raises:
        UserError: there is no usable checkpoint, or the run chose its linear probe and the weights below it have changed.
    """
    run = expand_home(recipe.model.weights)
    if not run.is_dir() or not is_run(run):
        return recipe
    chosen = find_weights(run)
    checkpoint = read_checkpoint(chosen.path, ())
    old = stored_recipe(checkpoint)
    if chosen.kind == PROBE:  # the tower is read from the weights that the run started from
        refuse_changed_weights(checkpoint.state, old, run)
    choices = _start(recipe, run, chosen, old)
    if old.model.arch.endswith(".json"):  # the file may lie elsewhere now, or hold something else
        old = old.with_option("model.arch", str(chosen.path))
    theirs = old.flat() | ({} if chosen.image_size is None else {IMAGE_SIZE: chosen.image_size})
    own = recipe.flat()
    free = [option for option in (*OF_THE_TOWER, *OF_THE_PIXELS) if _is_free(recipe, option)]
    taken = [option for option in free if option in recipe.automatic or theirs[option] != own[option]]
    if any(choice.option == HEAD_INIT for choice in choices):
        taken += [option for option in OF_THE_PROBE if option in recipe.automatic]
    choices += [Choice(option, theirs[option], f"as in {run}") for option in taken]
    recipe = recipe.with_choices(*choices)
    return replace(recipe, automatic=recipe.automatic - {choice.option for choice in choices})


def _start(recipe: AskedRecipe, run: Path, chosen: ChosenWeights, old: Recipe) -> list[Choice]:
    """Set the file with the weights, and the run's head too unless the recipe sets its own.

    Args:
        old: the run's recipe.
    """
    if chosen.kind == PROBE:  # the tower is the pretrained one
        return [Choice(WEIGHTS, old.model.weights, f"{run} chose its linear probe, whose tower has these weights")]
    file = Choice(WEIGHTS, str(chosen.path / f"{chosen.stem}.safetensors"), f"the {chosen.description}")
    if recipe.model.head is not None or not _is_free(recipe, HEAD_INIT):
        return [file]
    return [file, Choice(HEAD_INIT, FROM_WEIGHTS, f"rows for its classes in the head of {run}")]


def without_foreign_head(recipe: AskedRecipe, classes: Classes) -> AskedRecipe:
    """Return the recipe with an automatic head if it has a run's head and that run had none of the classes.

    Args:
        recipe: from `with_run_weights`.
        classes: the training images' classes.
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
