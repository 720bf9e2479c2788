"""ImageNet: the data that the paper's accuracies are of, and the number of validation images."""

from typing import Any

from fastft.recipe import Recipe
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE

CLASSES = 1000
VAL_IMAGES = 50_000  # ILSVRC2012 validation
NO_EXPECTATION = "no expectation"


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
