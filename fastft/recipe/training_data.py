"""A recipe for the images that are there: number of classes and of training images from the training files."""

from dataclasses import replace
from typing import TYPE_CHECKING

from beton_tools.base.errors import UserError
from fastft.recipe.automatic import resolve
from fastft.recipe.load import without_expectation
from fastft.recipe.schema import Choice, Recipe

if TYPE_CHECKING:
    from beton_tools.read.beton_set import BetonSet

NUM_CLASSES = "data.num_classes"
NO_DATA = "no training data; set --data.train to a .beton file, a folder with a folder per class, or a table"


def with_training_files(recipe: Recipe, betons: "BetonSet") -> Recipe:
    """The recipe for the images and classes of its training files.

    Raises:
        UserError: `data.num_classes` on the command line contradicts the files.
    """
    if betons.has_class_names or NUM_CLASSES in recipe.automatic:
        recipe = with_num_classes(recipe, len(betons.class_names), betons.title)
    return with_train_size(recipe, len(betons))


def with_train_size(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with the number of samples of its training file; another one than it states ends its expected accuracy."""
    if samples == recipe.data.train_size:
        return recipe
    recipe = resolve(recipe.with_option("data.train_size", samples))
    return recipe if recipe.about.top1 is None else without_expectation(recipe, ["data.train_size"])


def with_num_classes(recipe: Recipe, count: int, source: object) -> Recipe:
    """The recipe with the number of classes of its training images.

    Raises:
        UserError: the command line gives another number, or there are fewer than 2 classes.
    """
    if count < 2:
        raise UserError(f"{source} has {count} class; training needs images of at least 2")
    stated = recipe.data.num_classes
    if NUM_CLASSES in recipe.automatic:
        if any(c.option == NUM_CLASSES and c.value == count for c in recipe.choices):
            return recipe
        choice = Choice(NUM_CLASSES, count, f"classes of {source}")
        others = tuple(c for c in recipe.choices if c.option != NUM_CLASSES)
        return replace(recipe.with_option(NUM_CLASSES, count), choices=(choice, *others))
    if stated == count:
        return recipe
    if NUM_CLASSES in recipe.given:
        raise UserError(f"{source} has {count} classes, --data.num_classes is {stated}; leave the option out")
    recipe = recipe.with_option(NUM_CLASSES, count)
    return recipe if recipe.about.top1 is None else without_expectation(recipe, [NUM_CLASSES])
