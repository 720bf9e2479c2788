"""The images that a recipe is for: numbers of images and classes, and the accuracy that is expected on ImageNet."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from beton_tools.base.errors import UserError
from fastft.recipe.automatic import resolve
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE
from fastft.recipe.load import without_expectation
from fastft.recipe.schema import Choice, Recipe

if TYPE_CHECKING:
    from beton_tools.read.beton_set import BetonSet

CLASSES = 1000
VAL_IMAGES = 50_000  # ILSVRC2012 validation
NO_EXPECTATION = "no expectation"
NUM_CLASSES, MULTI_LABEL = "data.num_classes", "data.multi_label"
NO_DATA = "no training data; set --data.train to a .beton file, a folder with a folder per class, or a table"


def is_imagenet(recipe: Recipe) -> bool:
    """True if the recipe has ImageNet's number of classes and of training images."""
    return (recipe.data.num_classes, recipe.data.train_size) == (CLASSES, IMAGENET_TRAIN_SIZE)


def expected_top1(recipe: Recipe) -> float | None:
    """The recipe's expected accuracy; None without one, or for other data than ImageNet."""
    return recipe.about.top1 if is_imagenet(recipe) else None


def describe_expectation(recipe: Recipe) -> str:
    """The expected accuracy with its source, or why there is none."""
    if recipe.about.top1 is None:
        return recipe.about.source or NO_EXPECTATION
    if not is_imagenet(recipe):  # the training file has another number of images than the recipe says
        return f"{NO_EXPECTATION}: differs in data.train_size"
    return f"expected {recipe.about.top1:g} % top-1 ({recipe.about.source})"


def assumed_val_images(recipe: Recipe) -> int:
    """Number of validation images: ImageNet's 50,000, or for other data the same share of the training images."""
    return round(recipe.data.train_size * VAL_IMAGES / IMAGENET_TRAIN_SIZE)


def val_images_row(recipe: Recipe, given: int | None = None) -> dict[str, Any]:
    """The number of validation images as an assumption to show, like those of `Overheads.describe`."""
    what, train_size = "validation images", recipe.data.train_size
    if given is not None:
        return {"name": "val_images", "what": what, "value": given, "basis": "given"}
    same = train_size == IMAGENET_TRAIN_SIZE
    rule = "as many as ImageNet has" if same else f"ImageNet's share of {train_size:,} training images"
    value = assumed_val_images(recipe)
    return {"name": "val_images", "what": f"{what}, {rule}", "value": value, "basis": "assumed"}


# the recipe for training files


def with_training_files(recipe: Recipe, betons: "BetonSet") -> Recipe:
    """The recipe for the images and classes of its training files.

    Raises UserError: `data.num_classes` on the command line contradicts the files.
    """
    recipe = with_multi_label(recipe, betons.label_sets is not None, betons.title)
    if betons.has_class_names or recipe.data.multi_label or NUM_CLASSES in recipe.automatic:
        recipe = with_num_classes(recipe, len(betons.class_names), betons.title)
    return with_train_size(recipe, len(betons))


def with_train_size(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with the number of samples of its training file, less those of `data.selection_share`.

    Another number than it states ends its expected accuracy.
    """
    samples -= recipe.selection_images(samples)
    if samples == recipe.data.train_size:
        return recipe
    recipe = resolve(recipe.with_option("data.train_size", samples))
    return recipe if recipe.about.top1 is None else without_expectation(recipe, ["data.train_size"])


def with_multi_label(recipe: Recipe, multi_label: bool, source: object, reading: str = "") -> Recipe:
    """The recipe for training images with one label each, or multi-label. Raises UserError: the command line says otherwise.

    reading: see `beton_tools.sources.Source`; with `data.multi_label=false` on the command line cells are not read so.
    """
    if multi_label == recipe.data.multi_label:
        return recipe
    if not multi_label or MULTI_LABEL in recipe.given:
        labels, stated = ("several labels", "false") if multi_label else ("one label", "true")
        raise UserError(f"{source} has {labels} per image, --{MULTI_LABEL} is {stated}; leave the option out")
    reason = f"several labels per image in {source}: sigmoids instead of a softmax"
    if reading:
        reason = f"{source}: {reading}; false reads each as the name of one class"
    choice = Choice(MULTI_LABEL, True, reason)
    return replace(recipe.with_option(MULTI_LABEL, True), choices=(choice, *recipe.choices))


def with_num_classes(recipe: Recipe, count: int, source: object) -> Recipe:
    """The recipe with the number of classes of its training images.

    Raises UserError: the command line gives another number, or there are fewer than 2 classes.
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
